"""The command `best`: print a study's best config, as YAML and as one train command."""

from __future__ import annotations

import shlex

import yaml

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.terminal import console
from mnistexp.tracking import run_context


def best(request: ParsedOverrides, _: CommandArgs) -> int:
    """Print a study's best config, as YAML and as one command."""
    from mnistexp.analysis import history
    from mnistexp.study import database as storage

    refuse_search(request, "best")
    refuse_hyperparameters(request, "best")
    config = configs.compose(request)
    with storage.reading(config.study.storage) as database:
        found, config_dir = history.best(database, run_context.study_name(config))
    config_dir = request.config_dir or config_dir  # the user's own comes first: the folder may have moved
    user_code.require_for(found.config)
    overrides = configs.rebuild(found.config, found.overrides, config_dir)
    plain = configs.identity(found.config)
    plain["data"].pop("files", None)
    console.say(f"# trial {found.number}: validation accuracy {found.val_accuracy:.4f}")
    console.say(yaml.safe_dump(plain, sort_keys=False).rstrip())
    console.say("# The same as one command line:")
    words = [*(["--config-dir", str(config_dir)] if config_dir else []), *user_code.cli_args(), *overrides]
    console.say(shlex.join(["python", "-m", "mnistexp", "train", *words]))
    return 0
