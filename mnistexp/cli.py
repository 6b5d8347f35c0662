"""The command line: which command, with which overrides, and how its errors are said. No logic.

Each command imports what it needs: help, --cfg and config errors must answer without TensorFlow and MLflow.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mnistexp import __version__
from mnistexp.config import config_groups, flatten, parse_request, template
from mnistexp.errors import INTERRUPTED, ConfigError, MnistexpError

COMMANDS = {
    "train": "run one training with the composed config, log it, print its scores",
    "sweep": "search: run a study of study.trials trials, or go on with it",
    "best": "print a study's best config, as YAML and as one train command",
    "rerun": "train a study's best run (or run=ID) again and compare bit by bit",
    "doctor": "say what is here, and whether each part works",
}

EXAMPLES = {
    "train": "python -m mnistexp train optimizer=adam optimizer.learning_rate=0.002 trainer.epochs=20",
    "sweep": "python -m mnistexp sweep study.trials=50 model.activation='choice(relu, tanh)'",
    "best": "python -m mnistexp best study.name=mnist",
    "rerun": "python -m mnistexp rerun study.name=mnist",
    "doctor": "python -m mnistexp doctor",
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
    except KeyboardInterrupt:
        sweeps = arguments.command == "sweep"
        onward = "the same command goes on from here" if sweeps else "what was under way is not logged"
        print(f"mnistexp: interrupted; {onward}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `mnistexp best | head`
        sys.stderr.close()
        return 1


def _run(arguments: argparse.Namespace) -> int:
    run_id, overrides = _run_id(arguments)
    request = parse_request(overrides, arguments.config_dir)
    if arguments.cfg:
        from mnistexp.commands import show_config

        return show_config(request)
    from mnistexp import commands

    if arguments.command == "rerun":
        return commands.rerun(request, run_id)
    command = {
        "train": commands.train,
        "sweep": commands.sweep,
        "best": commands.best,
        "doctor": commands.doctor,
    }[arguments.command]
    return command(request)


def _run_id(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """`run=ID` is rerun's own; everything else is Hydra's."""
    own = [text for text in arguments.overrides if text.startswith("run=") and arguments.command == "rerun"]
    if "run=" in own:
        raise ConfigError("run=: needs a run's id (`mlflow ui` shows them); leave it out for the study's best")
    return own[-1].partition("=")[2] if own else "", [text for text in arguments.overrides if text not in own]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnistexp",
        description="Tune an MNIST network: Hydra configs, an Optuna study, TensorFlow trials, MLflow records.",
        epilog="Start with:  python -m mnistexp sweep",
    )
    parser.add_argument("--version", action="version", version=f"mnistexp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {EXAMPLES[name]}\n\nconfig groups, as GROUP=OPTION:\n{_groups_text()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        overrides = command.add_argument(
            "overrides", nargs="*", metavar="OVERRIDE", help="Hydra overrides: GROUP=OPTION, KEY=VALUE"
        )
        overrides.completer = complete  # type: ignore[attr-defined]  # argcomplete's way
        command.add_argument("--cfg", choices=["job"], help="print the composed config and do nothing else")
        command.add_argument(
            "--config-dir",
            type=lambda text: Path(text).resolve(),
            metavar="DIR",
            help="a folder of your own config groups",
        )
    _autocomplete(parser)
    return parser


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
