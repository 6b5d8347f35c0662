"""The command `best`: print a study's best config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.compose import ParsedOverrides
from mnistexp.terminal import console
from mnistexp.tracking import run_context

if TYPE_CHECKING:
    pass


def best(request: ParsedOverrides, _: CommandArgs) -> int:
    """Print a study's best config, as YAML and as one command."""
    from mnistexp.analysis import history
    from mnistexp.study import database as storage

    configs.refuse_search(request, "best")
    configs.refuse_hyperparameters(request, "best")
    config = configs.compose(request)
    with storage.reading(config.study.storage) as database:
        found, config_dir = history.best(database, run_context.study_name(config))
    config_dir = request.config_dir or config_dir  # the user's word: the folder may have moved
    user_code.require_for(found.config)
    overrides = configs.rebuild(found.config, found.overrides, config_dir)
    for line in console.best_lines(found, console.train_command(overrides, config_dir, user_code.words())):
        console.say(line)
    return 0
