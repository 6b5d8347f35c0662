"""The command line: which command, with which overrides, and how its errors are said. No logic.

Each command imports what it needs: help, --cfg and config errors must answer without TensorFlow and MLflow.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import yaml

from mnistexp import __version__
from mnistexp.commands.args import split_args
from mnistexp.config import user_code
from mnistexp.config.compose import ParsedOverrides, compose, config_groups, flatten, parse_request, template
from mnistexp.errors import INTERRUPTED, ConfigError, MnistexpError, without_passwords

REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOSPC,
    errno.EIO,
    errno.ESTALE,
)
"""What a file system refuses, whatever the program does; any other OSError may be a fault of ours."""

ONWARD = {
    "sweep": "; the same command goes on from here",
    "confirm": "; the same command goes on from here",
    "train": "; what was under way is not logged",
    "rerun": "; what was under way is not logged",
}
"""What Ctrl-C leaves behind, by command; the others leave nothing."""


@dataclass(frozen=True)
class Command:
    """What a command does and how it is typed."""

    summary: str
    example: str = ""
    keys: tuple[str, ...] = ()  # its own KEY=VALUE words, which are not the config's
    names: str = ""  # what its words without `=` are; "" if it has none
    flags: tuple[tuple[str, bool | int | str, str], ...] = ()  # name, default (False: a switch), help
    trains: bool = True  # or loads data: it may need functions of the user's


LOUDNESS = (
    ("-q", False, "print the answer alone"),
    ("-v", False, "print every epoch, and no live view"),
)

COMMANDS = {
    "train": Command(
        "run one training with the composed config, log it, print its scores",
        "optimizer=adam optimizer.learning_rate=0.002 trainer.epochs=20",
    ),
    "sweep": Command(
        "search: run a study of study.trials trials, or go on with it",
        "study.trials=50 model.activation='choice(relu, tanh)'",
        flags=(*LOUDNESS, ("--plan", False, "print the space, the first trials and an estimate of the time; run none")),
    ),
    "best": Command("print a study's best config, as YAML and as one train command", "study.name=mnist"),
    "rerun": Command(
        "train a study's best run (or run=ID) again and compare bit by bit",
        "study.name=mnist",
        keys=("run",),
    ),
    "report": Command(
        "write a study's report, one HTML file and Markdown, and log it; two studies: side by side",
        "mnist by=model.activation heatmap=optimizer.learning_rate,model.dropout",
        keys=("heatmap", "by", "sections", "out"),
        names="STUDY",
    ),
    "confirm": Command(
        "train a study's top configs again with fresh seeds: is the best one better, or was it lucky?",
        "top=5 seeds=5",
        keys=("top", "seeds"),
        flags=LOUDNESS,
    ),
    "predict": Command(
        "say which digits are in pictures, with the champion (or run=ID, any run that kept its weights)",
        "three.png",
        keys=("run",),
        names="IMAGE",
    ),
    "ui": Command(
        "open MLflow's dashboard of the runs (--optuna: Optuna's), on this machine alone",
        "--optuna",
        flags=(
            ("--optuna", False, "optuna-dashboard instead of MLflow's"),
            ("--port", 5000, "the port, or the next free one if that is taken"),
            ("--host", "127.0.0.1", "the address to listen on: this machine's alone, since it has no password"),
            ("--no-browser", False, "print the address and open no browser"),
        ),
        trains=False,
    ),
    "doctor": Command("say what is here, and whether each part works"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code; 2 for what the user can mend, with one message on stderr."""
    parser = _parser()
    arguments, more = parser.parse_known_args(argv)
    if [word for word in more if word.startswith("-")]:
        parser.parse_args(argv)  # says what is wrong with them
    arguments.overrides += more  # Hydra takes options between overrides, argparse doesn't
    try:
        return _run(arguments)
    except MnistexpError as error:
        print(f"mnistexp: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `mnistexp best | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.filename is None or error.errno not in REFUSED:
            raise
        mended = "give another path" + ", or permission to use this one" * isinstance(error, PermissionError)
        print(f"mnistexp: {ConfigError(f'{error.filename}: {error.strerror}; {mended}')}", file=sys.stderr)
        return MnistexpError.exit_code
    except KeyboardInterrupt:
        print(f"mnistexp: interrupted{ONWARD.get(arguments.command, '')}", file=sys.stderr)
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
    module = import_module(f"mnistexp.commands.{arguments.command}")  # each command has imports of its own
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
    for name, about in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=about.summary,
            description=f"{about.summary[0].upper()}{about.summary[1:]}.",
            epilog=f"example:\n  {example(name)}\n\nconfig groups, as GROUP=OPTION:\n{_groups_text()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        overrides = command.add_argument("overrides", nargs="*", metavar=_metavar(about), help=_words_help(about))
        for flag, default, text in about.flags:
            kind = {"action": "store_true"} if default is False else {"default": default, "type": type(default)}
            command.add_argument(flag, help=text, **kind)
        overrides.completer = complete  # type: ignore[attr-defined]  # argcomplete's way
        command.add_argument("--cfg", choices=["job"], help="print the composed config and do nothing else")
        command.add_argument(
            "--config-dir",
            type=lambda text: Path(text).resolve(),
            metavar="DIR",
            help="a folder of your own config groups",
        )
        if about.trains:
            command.add_argument("--code", type=Path, metavar="FILE", help="a Python file with functions of your own")
    _autocomplete(parser)
    return parser


def example(name: str) -> str:
    """A command as one would type it."""
    return f"python -m mnistexp {name} {COMMANDS[name].example}".rstrip()


def _metavar(about: Command) -> str:
    return f"{about.names}|OVERRIDE" if about.names else "OVERRIDE"


def _words_help(about: Command) -> str:
    words = [f"{about.names}…"] if about.names else []
    words += [f"{key}=…" for key in about.keys]
    return ", ".join([*words, "Hydra overrides: GROUP=OPTION, KEY=VALUE"])


def _groups_text() -> str:
    return "\n".join(f"  {group:<14} {', '.join(options)}" for group, options in config_groups().items())


# ---------------------------------------------------------------------------------------- tab completion


def _autocomplete(parser: argparse.ArgumentParser) -> None:
    import os

    if "_ARGCOMPLETE" in os.environ:  # set by the shell's completion alone: the import costs 50 ms
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)


def complete(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """What an override may start with `prefix`: groups with their options, keys of the composed config."""
    groups = config_groups(parsed_args.config_dir)
    group = prefix.partition("=")[0]
    if "=" in prefix:
        return [f"{group}={option}" for option in groups.get(group, ())]
    keys = flatten(template(parse_request(())).plain)
    return [f"{key}=" for key in (*groups, *keys) if key != "search"]
