"""The command line: parse the arguments, run a command, print its errors.

A command is imported only if it is run, so that --help, --cfg and config errors need neither TensorFlow nor MLflow.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from mnistexp import __version__
from mnistexp.commands.args import split_args
from mnistexp.config import user_code
from mnistexp.config.compose import compose, flatten, parse_request, template
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.errors import INTERRUPTED, ConfigError, MnistexpError, without_passwords

REFUSED = {"EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP", "ENOSPC", "EIO", "ESTALE"}
"""Errors of the file system that the user can correct; any other OSError may be a bug of mnistexp."""


@dataclass(frozen=True)
class Command:
    """The help and the arguments of a command."""

    summary: str
    example: str = ""
    keys: tuple[str, ...] = ()  # keys of its own KEY=VALUE words
    names: str = ""  # what a word without `=` is; "" if there is none
    flags: tuple[tuple[str, bool | int | str, str], ...] = ()  # name, default (False: a switch), help
    trains: bool = True  # it trains or loads data, so it may need --code
    interrupted: str = ""  # printed after Ctrl-C


CONTINUE, LOST = "; type the same command to continue", "; the running training is not logged"
VERBOSITY = (
    ("-q", False, "print only the result"),
    ("-v", False, "print every epoch instead of the live view"),
)

COMMANDS = {
    "train": Command(
        "run one training with the composed config, log it, print its scores",
        "optimizer=adam optimizer.learning_rate=0.002 trainer.epochs=20",
        interrupted=LOST,
    ),
    "sweep": Command(
        "search: run a study of study.trials trials, or continue it",
        "study.trials=50 model.activation='choice(relu, tanh)'",
        flags=(*VERBOSITY, ("--plan", False, "print the space, the first trials and the estimated time; run no trial")),
        interrupted=CONTINUE,
    ),
    "best": Command("print a study's best config, as YAML and as one train command", "study.name=mnist"),
    "rerun": Command(
        "train a study's best run (or run=ID) again and compare bit by bit",
        "study.name=mnist",
        keys=("run",),
        interrupted=LOST,
    ),
    "report": Command(
        "write the report of a study as HTML and Markdown, and log it; several studies: a comparison",
        "mnist by=model.activation heatmap=optimizer.learning_rate,model.dropout",
        keys=("heatmap", "by", "sections", "out"),
        names="STUDY",
    ),
    "confirm": Command(
        "train a study's best configs again with new seeds, to see whether the best is really better",
        "top=5 seeds=5",
        keys=("top", "seeds"),
        flags=VERBOSITY,
        interrupted=CONTINUE,
    ),
    "predict": Command(
        "classify pictures of digits with the champion (or with run=ID, a run that saved its weights)",
        "three.png",
        keys=("run",),
        names="IMAGE",
    ),
    "ui": Command(
        "open MLflow's dashboard of the runs (--optuna: Optuna's), only for this machine",
        "--optuna",
        flags=(
            ("--optuna", False, "optuna-dashboard instead of MLflow's"),
            ("--port", 5000, "the port, or the next free one if that is taken"),
            ("--host", "127.0.0.1", "the address to listen on; there is no password"),
            ("--no-browser", False, "print the address and open no browser"),
        ),
        trains=False,
    ),
    "doctor": Command("check what a sweep would use, part by part"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code; 2, with one message on stderr, for what the user can correct."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    if [word for word in more if word.startswith("-")]:
        parser.parse_args(argv)  # prints the error
    arguments.overrides += more  # options may stand between overrides, which argparse does not allow
    try:
        return _run(arguments)
    except MnistexpError as error:
        print(f"mnistexp: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `mnistexp best | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None or errno.errorcode.get(error.errno or 0) not in REFUSED:
            raise
        refused = ConfigError(f"{error.filename}: {error.strerror}; give another path, or permission to use this one")
        print(f"mnistexp: {refused}", file=sys.stderr)
        return refused.exit_code
    except KeyboardInterrupt:
        print(f"mnistexp: interrupted{COMMANDS[arguments.command].interrupted}", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    command = COMMANDS[arguments.command]
    flags = {name: getattr(arguments, name.strip("-").replace("-", "_")) for name, *_ in command.flags}
    words, overrides = split_args(arguments.overrides, command.keys, bool(command.names))
    path = getattr(arguments, "code", None)
    user_code.use(user_code.read(path) if path else None)
    request = parse_request(overrides, arguments.config_dir)
    if arguments.cfg:
        return _show_config(request)
    module = import_module(f"mnistexp.commands.{arguments.command}")  # only now, see above
    return int(getattr(module, arguments.command)(request, replace(words, flags=flags)))


def _show_config(request: ParsedOverrides) -> int:
    """Print the composed config (`--cfg job`)."""
    text = yaml.safe_dump(compose(request).model_dump(mode="json"), sort_keys=False, width=10**6)
    print(without_passwords(text.rstrip()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnistexp",
        description="Tune an MNIST network: Hydra configs, an Optuna study, TensorFlow trials, MLflow records.",
        epilog="Start with:  python -m mnistexp sweep",
    )
    parser.add_argument("--version", action="version", version=f"mnistexp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    groups = "\n".join(f"  {group:<14} {', '.join(options)}" for group, options in config_groups().items())
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about.summary,
            description=f"{about.summary[0].upper()}{about.summary[1:]}.",
            epilog=f"example:\n  {example(name)}\n\nconfig groups, as GROUP=OPTION:\n{groups}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        words = ", ".join([*([f"{about.names}…"] if about.names else []), *(f"{key}=…" for key in about.keys)])
        metavar = f"{about.names}|OVERRIDE" if about.names else "OVERRIDE"
        text = f"{words}{', ' * bool(words)}Hydra overrides: GROUP=OPTION, KEY=VALUE"
        overrides = command.add_argument("overrides", nargs="*", metavar=metavar, help=text)
        for flag, default, about_flag in about.flags:
            kind = {"action": "store_true"} if default is False else {"default": default, "type": type(default)}
            command.add_argument(flag, help=about_flag, **kind)
        overrides.completer = complete  # type: ignore[attr-defined]  # argcomplete's way
        command.add_argument("--cfg", choices=["job"], help="print the composed config and do nothing else")
        folder: dict[str, Any] = {"type": lambda text: Path(text).resolve(), "metavar": "DIR"}
        command.add_argument("--config-dir", **folder, help="a folder with your own config groups")
        if about.trains:
            command.add_argument("--code", type=Path, metavar="FILE", help="a Python file with your own functions")
    if "_ARGCOMPLETE" in os.environ:  # set only by the shell's completion; the import takes 50 ms
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)
    return parser


def example(name: str) -> str:
    """An example of the command."""
    return f"python -m mnistexp {name} {COMMANDS[name].example}".rstrip()


def complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Complete an override: groups with their options, and the keys of the composed config."""
    groups = config_groups(parsed_args.config_dir)
    group = prefix.partition("=")[0]
    if "=" in prefix:
        return [f"{group}={option}" for option in groups.get(group, ())]
    keys = flatten(template(parse_request(())).plain)
    return [f"{key}=" for key in (*groups, *keys) if key != "search"]
