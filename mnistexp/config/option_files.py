"""Option files: the config groups in conf/, experiments/ and --config-dir, and the checks of the last.

Anybody may have written a --config-dir, so its files are checked before Hydra reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from mnistexp.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""The folder of conf/ and experiments/: the package itself in a wheel, its parent in a clone."""

MAX_ENTRIES = 10_000  # files and folders
MAX_BYTES = 64 * 1024
MAX_DEPTH = 20


def config_groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Return every config group with its options. This reads the folders without Hydra, so that `--help` is fast."""
    groups: dict[str, set[str]] = {}
    for base, folder in ((ROOT, ROOT / "conf"), (config_dir, config_dir)):
        if base is None or folder is None:
            continue
        for path in folder.rglob("*.yaml"):
            if path.parent != folder:
                groups.setdefault(path.parent.relative_to(folder).as_posix(), set()).add(path.stem)
        for path in (base / "experiments").glob("*/*.yaml"):
            groups.setdefault("experiments", set()).add(f"{path.parent.name}/{path.stem}")
    return {group: sorted(options) for group, options in sorted(groups.items())}


def check_folder(folder: Path) -> None:
    """Check a --config-dir.

    Raises: ConfigError if a file is not YAML, would expand to a huge config, or has the name of an option of mnistexp,
        which Hydra would take instead; or if the folder has far more files than options.
    """
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {folder}: no such folder; give one that holds groups, such as optimizer/")
    for seen, path in enumerate(folder.rglob("*")):
        if seen == MAX_ENTRIES:
            raise ConfigError(f"--config-dir {folder}: has over {MAX_ENTRIES} files; give a folder with options only")
        if path.suffix == ".yaml":
            _check_file(path)
            name = path.relative_to(folder)
            if (ROOT / "conf" / name).exists() or (name.parts[0] == "experiments" and (ROOT / name).exists()):
                raise ConfigError(f"{path}: has the name of mnistexp's own {name}; rename it")


def _check_file(path: Path) -> None:
    """Refuse a file that exhausts memory or stack in OmegaConf: 400 bytes of YAML can expand to billions of values."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:  # reading a pipe would never end
            raise ConfigError(f"{path}: an option is a file of at most {MAX_BYTES} bytes")
        _check_content(path, path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"{path}: can't be read: {' '.join(str(error).split())}") from None


def _check_content(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
            raise ConfigError(f"{path}: has an alias, or is nested more than {MAX_DEPTH} deep")
    plain = yaml.safe_load(text)
    defaults = str(plain.get("defaults", "") if isinstance(plain, Mapping) else "")
    if found := re.search(r"(?<![\w.])\.\.(?![\w.])|\$\{[^}]*:", defaults):  # Hydra would read other folders
        raise ConfigError(f"{path}: its defaults hold {found[0]}; name options of this folder or of mnistexp")
