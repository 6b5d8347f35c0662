"""The user's Python file (--code): functions that make a data set or a network.

Code is read only from the file that the command line names. A config names a function and a record stores the SHA-256
of the file, so no option file, database or artifact can make mnistexp run code. Workers receive the text of the file:
an edit during a sweep has no effect.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnistexp.config.schema import Config, RunConfig, UserCode, UserData, UserModel, suggestion
from mnistexp.errors import ConfigError

MAX_BYTES = 256 * 1024  # every worker receives the file
MODULE = "mnistexp_code"
"""The file's module name. Keras finds a registered class by the name of its module."""

_given: UserCode | None = None  # the file of this process
_module: types.ModuleType | None = None  # the same file after it was run


def use(code: UserCode | None) -> None:
    """Set the file of this process; None: no file. The file is not run yet."""
    global _given, _module
    _given, _module = code, None


def code() -> UserCode | None:
    """Return the file of this process."""
    return _given


def plain() -> dict[str, str] | None:
    """Return the file as plain values, for another process."""
    return _given.model_dump() if _given else None


def cli_args() -> list[str]:
    """Return the arguments that give another command the same file."""
    return ["--code", _given.name] if _given else []


def sha256() -> str | None:
    """Return the hash that identifies the file in records."""
    return hashlib.sha256(_given.text.encode()).hexdigest() if _given else None


def read(path: Path) -> UserCode:
    """Read a file with Unix line ends and check that it is Python. Raises: ConfigError."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"--code {path}: is not a Python file of at most {MAX_BYTES} bytes")
        found = UserCode(name=str(path), text=path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--code {path}: can't be read ({error}); give a Python file in UTF-8") from None
    _functions(found)
    return found


def nodes(config: Config | RunConfig) -> list[UserData | UserModel]:
    """Return the nodes of a config that functions of the file make."""
    return [node for node in (config.data, config.model) if isinstance(node, UserData | UserModel)]


def require(node: UserData | UserModel) -> UserCode:
    """Return the file of a node. Raises: ConfigError unless this process has the file that the node was made with."""
    if _given is None or sha256() != node.code:
        raise ConfigError(
            f"{node.function}: is a function of your own file (SHA-256 {str(node.code)[:12]}…); give --code FILE.py. "
            f"MLflow keeps a copy as the artifact code.py of the run or of its sweep: download it and read it first"
        )
    return _given


def require_for(*configs: Config | RunConfig) -> None:
    """Raises: ConfigError if this process lacks the file of a recorded config, or has a file that none of them uses."""
    for config in configs:
        for node in nodes(config):
            require(node)
    refuse_unused(*configs)


def refuse_unused(*configs: Config | RunConfig) -> None:
    """Raises: ConfigError if this process has a file and no config uses a function of it."""
    if _given and not any(map(nodes, configs)):
        raise ConfigError(
            f"--code {_given.name}: no function of it is used; leave it out, or select your data set or model, "
            f"an option file with `name: custom`"
        )


def check(name: str, positional: int, settings: Mapping[str, object]) -> None:
    """Check that a function exists and accepts its arguments, without running the file. Raises: ConfigError.

    Args:
        positional: number of positional arguments, which come before the settings.
    """
    if _given is None:
        raise ConfigError(f"{name}: is a function of your own file; give --code FILE.py")
    functions = _functions(_given)
    if name not in functions:
        others = [other for other in functions if not other.startswith("_")]
        raise ConfigError(
            f"{_given.name}: has no function {name!r} at its top level; it has {', '.join(others) or 'none'}"
            f"{suggestion(name, others)}"
        )
    function = functions[name]
    try:
        _signature(function.args).bind(*[None] * positional, **settings)
    except (TypeError, SyntaxError) as error:  # SyntaxError: def f(a, a)
        raise ConfigError(
            f"{_given.name}:{function.lineno}: {name}({ast.unparse(function.args)}) can't be called with {positional} "
            f"positional arguments and the settings {', '.join(settings) or 'none'}: {error}"
        ) from None


def _signature(arguments: ast.arguments) -> inspect.Signature:
    """Return the signature of a function in the text. Its defaults and annotations are code, so they are left out."""
    stub = ast.Lambda(copy.deepcopy(arguments), ast.Constant(None))
    stub.args.defaults = [ast.Constant(None) for _ in stub.args.defaults]
    stub.args.kw_defaults = [default and ast.Constant(None) for default in stub.args.kw_defaults]
    expression = ast.fix_missing_locations(ast.Expression(stub))
    return inspect.signature(eval(compile(expression, "<signature>", "eval")))


def call(name: str, *arguments: object, settings: Mapping[str, Any]) -> Any:
    """Call a function of the file. The first call runs the file.

    Raises: ConfigError if the function does not exist, does not accept these arguments, or raises an error.
    """
    check(name, len(arguments), settings)
    assert _given is not None
    keywords = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    try:
        return getattr(_load(_given), name)(*arguments, **keywords)
    except (Exception, SystemExit) as error:
        raise ConfigError(_error_text(error, _given.name)) from error


def _load(given: UserCode) -> types.ModuleType:
    """Run the file as a module, once in this process."""
    global _module
    if _module is None:
        module = types.ModuleType(MODULE)
        module.__file__ = given.name
        sys.modules[MODULE] = module  # data classes and Keras look up their module there
        exec(compile(given.text, given.name, "exec", dont_inherit=True), vars(module))
        _module = module
    return _module


@functools.lru_cache(maxsize=4)  # a sweep checks the settings of every trial
def _functions(given: UserCode) -> dict[str, ast.FunctionDef]:
    """Parse the functions at the top level of a file. Raises: ConfigError if it is not Python."""
    try:
        body = ast.parse(given.text, given.name).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # also a NUL, or brackets nested too deeply
        raise ConfigError(f"{given.name}: is not Python ({type(error).__name__}: {error})") from None
    return {statement.name: statement for statement in body if isinstance(statement, ast.FunctionDef)}


def _error_text(error: BaseException, file: str) -> str:
    """Return 'FILE.py:12: ValueError: …' with the last line of the user's file in the traceback."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f"{file}:{lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:500]}".rstrip(": ")
