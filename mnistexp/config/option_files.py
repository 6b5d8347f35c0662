"""A user's own folder of options (--config-dir), looked at before Hydra reads it: it may come from anybody."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from mnistexp.errors import ConfigError

MAX_ENTRIES = 10_000  # files and folders
MAX_BYTES = 64 * 1024  # no honest option file comes near
MAX_DEPTH = 20


def files(folder: Path) -> Iterator[Path]:
    """Every option file of a folder, each one that Hydra may read.

    Raises: ConfigError if one is a bomb, is no YAML, or leads out of the folder; or for a folder of something else.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder}: no such folder; give one that holds groups, such as optimizer/")
    for seen, path in enumerate(folder.rglob("*")):
        if seen == MAX_ENTRIES:
            raise ConfigError(f"--config-dir {folder}: has over {MAX_ENTRIES} files; give a folder of options alone")
        if path.is_symlink():
            _check_link(path, folder)
        if path.suffix == ".yaml":
            _check(path)
            yield path


def _check_link(path: Path, folder: Path) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError: a ring of links
        raise ConfigError(f"{path}: leads nowhere; put a file there") from None
    if not target.is_relative_to(folder.resolve()):
        raise ConfigError(f"{path}: leads to {target}, out of --config-dir; put a copy there")


def _check(path: Path) -> None:
    try:
        if not path.is_file():  # reading a pipe would never end
            raise ConfigError(f"{path}: is no file; an option is a YAML file")
        status = path.stat()
        _check_content(path, status.st_mtime_ns, status.st_size)
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: it is not in UTF-8
        raise ConfigError(f"{path}: can't be read: {' '.join(str(error).split())}") from None


@functools.lru_cache(maxsize=1024)  # a sweep looks at each file with every trial
def _check_content(path: Path, _changed: int, size: int) -> None:
    """Refuse what makes OmegaConf run out of memory or stack: a YAML of 400 bytes can stand for billions of values."""
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {size} bytes; an option file has at most {MAX_BYTES}")
    depth, text = 0, path.read_text(encoding="utf-8")
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}: has the alias *{event.anchor}; write the value itself there")
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}: is nested more than {MAX_DEPTH} deep")
    plain = yaml.safe_load(text)
    defaults = str(plain.get("defaults", "") if isinstance(plain, Mapping) else "")
    if found := re.search(r"(?<![\w.])\.\.(?![\w.])|\$\{[^}]*:", defaults):  # Hydra would read what lies there
        raise ConfigError(f"{path}: its defaults hold {found[0]}; write options of this folder or mnistexp's own")
