"""The user's own functions, for data sets and networks: of the one Python file that the command line names (--code).

Code comes from nowhere else. A config names a function, never a file; a record names the file by its SHA-256, and
whoever uses it again gives the file again. So no option file, database or artifact can have anything run here. The
file's text travels to the workers: an edit in mid-sweep changes nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnistexp.config.schema import Config, RunConfig, UserCode, UserData, UserModel, suggestion
from mnistexp.errors import ConfigError

MAX_BYTES = 256 * 1024  # no honest file comes near, and each worker is sent it
MODULE = "mnistexp_code"
"""What the file is called in this process. Keras finds a registered class by its module's name."""

_given: list[UserCode] = []  # what this process was given: one file, or none
_loaded: dict[UserCode, types.ModuleType] = {}  # and what became of it when it was run


def use(code: UserCode | None) -> None:
    """Take a file's functions for this process; None: it has none. Nothing of it is run yet."""
    _given[:] = [code] if code else []
    _loaded.clear()


def code() -> UserCode | None:
    """The file that this process was given."""
    return _given[0] if _given else None


def plain() -> dict[str, str] | None:
    """The file as plain values, for a process that is to have it too."""
    return _given[0].model_dump() if _given else None


def words() -> list[str]:
    """What to type, so that another command has this file too."""
    return ["--code", _given[0].name] if _given else []


def sha256() -> str | None:
    """What a record calls the file by."""
    return _sha256(_given[0].text) if _given else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read(path: Path) -> UserCode:
    """Read a file and look whether it is Python; its line ends become those of Unix. Raises: ConfigError."""
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file" if not path.exists() else "is no plain file"
            raise ConfigError(f"--code {path}: {what}; give the Python file with your functions")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"--code {path}: has {path.stat().st_size} bytes; a file of functions has at most {MAX_BYTES}"
            )
        found = UserCode(name=str(path), text=path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"--code {path}: is not in UTF-8; give a Python file") from None
    except OSError as error:
        raise ConfigError(f"--code {path}: can't be read ({error.strerror}); give another file") from None
    _functions(found)
    return found


# -------------------------------------------------------------------------------------- whose code a config needs


def nodes(config: Config | RunConfig) -> list[UserData | UserModel]:
    """What of a config is made by functions of the user's."""
    return [node for node in (config.data, config.model) if isinstance(node, UserData | UserModel)]


def require(node: UserData | UserModel) -> UserCode:
    """The file that a composed or recorded node is of. Raises: ConfigError unless this process was given that one."""
    ours, theirs = sha256(), node.code or ""
    copy = "MLflow keeps a copy as the artifact code.py of the run or of its sweep: download it, read it"
    if ours is None:
        raise ConfigError(f"{node.function}: is a function of a file of your own; give --code FILE.py. {copy}")
    if ours != theirs:
        raise ConfigError(
            f"--code {_given[0].name}: is other code (SHA-256 {ours[:12]}…) than the {node.function} that was recorded "
            f"({theirs[:12]}…). {copy}, and give --code FILE"
        )
    return _given[0]


def require_for(*configs: Config | RunConfig) -> None:
    """Raises: ConfigError unless this process was given what recorded configs need, and given nothing in vain."""
    for config in configs:
        for node in nodes(config):
            require(node)
    refuse_unused(*configs)


def refuse_unused(*configs: Config | RunConfig) -> None:
    """Raises: ConfigError if this process was given a file that none of these configs names a function of."""
    if _given and not any(map(nodes, configs)):
        raise ConfigError(
            f"--code {_given[0].name}: nothing here is made by it; leave it out, or choose a data set or model of "
            f"yours, whose option file says `name: custom`"
        )


# --------------------------------------------------------------------------------------------------- functions


def check(name: str, arguments: int, settings: Mapping[str, object]) -> None:
    """Look, without running anything, whether a function is there and takes what it is to be given.

    Args:
        arguments: how many it is given by their places, before the settings.

    Raises: ConfigError saying what it takes.
    """
    given = _require_code(name)
    functions = _functions(given)
    if name not in functions:
        others = [other for other in functions if not other.startswith("_")]
        there = f"it has {', '.join(others)}{suggestion(name, others)}" if others else "it has none"
        raise ConfigError(f"{given.name}: has no function {name!r}, as `def` at its top level makes one; {there}")
    where, taken = f"{given.name}:{functions[name].lineno}: {name}()", functions[name].args
    by_place = [*taken.posonlyargs, *taken.args]
    if len(by_place) < arguments and taken.vararg is None:
        raise ConfigError(f"{where} takes {len(by_place)} arguments; it is given {arguments} before its settings")
    allowed, needed = _keywords(taken, arguments)
    placed = {argument.arg for argument in taken.args[: max(0, arguments - len(taken.posonlyargs))]}  # has its value
    unknown = [key for key in settings if key in placed or (key not in allowed and taken.kwarg is None)]
    if unknown:
        there = f"it takes {', '.join(allowed)}{suggestion(unknown[0], allowed)}" if allowed else "it takes none"
        raise ConfigError(f"{where} has no setting {unknown[0]!r}; {there}")
    if missing := [key for key in needed if key not in settings]:
        raise ConfigError(f"{where} needs the setting {missing[0]!r}; give it in `settings`, or a default in the file")


def _keywords(taken: ast.arguments, arguments: int) -> tuple[list[str], list[str]]:
    """The names of a function's settings, and of those without a default."""
    by_place = [*taken.posonlyargs, *taken.args]
    with_default = {argument.arg for argument in by_place[len(by_place) - len(taken.defaults) :]}
    with_default |= {each.arg for each, default in zip(taken.kwonlyargs, taken.kw_defaults, strict=True) if default}
    named = [argument.arg for argument in by_place[max(arguments, len(taken.posonlyargs)) :]]
    allowed = [*named, *(argument.arg for argument in taken.kwonlyargs)]
    unset = [argument.arg for argument in by_place[arguments:]]  # one that takes no name can't be given either
    return allowed, [name for name in dict.fromkeys([*unset, *allowed]) if name not in with_default]


def call(name: str, *arguments: object, settings: Mapping[str, Any]) -> Any:
    """Call a function of the user's file, which is run once for that. Returns: what it returns.

    Raises: ConfigError if it isn't there, doesn't take these arguments, or raises: where, and what.
    """
    check(name, len(arguments), settings)
    given = _require_code(name)
    keywords = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    try:
        return getattr(_module(given), name)(*arguments, **keywords)
    except (Exception, SystemExit) as error:
        raise ConfigError(_told(error, given)) from error


def _require_code(name: str) -> UserCode:
    given = code()
    if given is None:
        raise ConfigError(f"{name}: is a function of a file of your own; give --code FILE.py")
    return given


def _module(given: UserCode) -> types.ModuleType:
    """The file as a module, run when it is asked for first."""
    if given not in _loaded:
        module = types.ModuleType(MODULE)
        module.__file__ = given.name
        sys.modules[MODULE] = module  # data classes and Keras look their own module up there
        exec(compile(given.text, given.name, "exec", dont_inherit=True), vars(module))
        _loaded[given] = module
    return _loaded[given]


@functools.lru_cache(maxsize=4)  # a sweep looks at each trial's settings
def _functions(given: UserCode) -> dict[str, ast.FunctionDef]:
    """The functions that a file makes at its top level, by name. Raises: ConfigError if it is no Python."""
    try:
        body: Sequence[ast.stmt] = ast.parse(given.text, given.name).body
    except SyntaxError as error:
        raise ConfigError(f"{given.name}:{error.lineno}: SyntaxError: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL; brackets nested without end
        raise ConfigError(f"{given.name}: is no Python that can be read ({type(error).__name__}: {error})") from None
    return {statement.name: statement for statement in body if isinstance(statement, ast.FunctionDef)}


def _told(error: BaseException, given: UserCode) -> str:
    """'FILE.py:12: ValueError: …': the last line of the user's file that an error came through."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == given.name]
    if isinstance(error, SyntaxError) and error.filename == given.name:  # what only the compiler sees
        lines = [error.lineno or 1]
    where = f"{given.name}:{lines[-1]}" if lines else given.name
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:500]}".rstrip(": ")
