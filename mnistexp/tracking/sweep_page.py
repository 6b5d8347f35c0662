"""A sweep's own page in MLflow, as Markdown: its best trial, its question, its space, what to type next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mnistexp.config import user_code
from mnistexp.config.overrides import value_text
from mnistexp.config.schema import StudyConfig
from mnistexp.study.progress import Best, Progress
from mnistexp.tracking.records import LoggedRun

WIDTH = 60  # letters of a command's line
TABLE = 5000  # characters: MLflow takes 8,000 for all of a description


def sweep_page(
    name: str,
    dataset: str,
    study: StudyConfig,
    space: Mapping[str, str],
    progress: Progress,
    run: LoggedRun | None,
    stores: Sequence[str] = (),
    config_dir: Path | None = None,
) -> str:
    """Describe a sweep, the best first: until one asks for more, MLflow shows the first lines alone.

    Args:
        space: what is searched, as for a reader.
        run: the best trial's, if it is logged.
        stores: the overrides that say where the study and its runs are.
        config_dir: where the user's own options are.
    """
    question = f"Which hyperparameters are best on **{dataset}**, by validation accuracy?"
    parts = (_best(progress, run), [question], _budget(study, progress), _space(space, progress))
    return "\n".join(line for part in (*parts, _next(name, progress, stores, config_dir)) for line in part)


def _best(progress: Progress, run: LoggedRun | None) -> Iterable[str]:
    best = progress.best
    if best is None:
        return
    test = run.metrics.get("test_accuracy") if run else None
    looked = f"; test accuracy {test:.4f}, by which nothing was chosen" if test is not None else ""
    yield f"**Best: trial {best.number}, validation accuracy {best.val_accuracy:.4f}**{looked}\n"


def _budget(study: StudyConfig, progress: Progress) -> Iterable[str]:
    limits = [f"{study.trials} trials"]
    limits += [f"{study.timeout:g} s a session"] if study.timeout is not None else []
    limits += [f"or until {study.target:g} is reached"] if study.target is not None else []
    yield f"\n**Budget:** {', '.join(limits)}; sampler {study.sampler.name}, pruner {study.pruner.name}."
    yield (
        f"**Done:** {progress.done} of {study.trials} trials: {progress.complete} complete, "
        f"{progress.pruned} pruned, {progress.failed} failed.\n"
    )


def _space(space: Mapping[str, str], progress: Progress) -> Iterable[str]:
    """The table of what is searched, with the best trial's values where there is one."""
    values = _values(progress.best) if progress.best else {}
    yield "| searched | distribution | best |"
    yield "| --- | --- | --- |"
    left = TABLE
    for name, text in space.items():
        key, _, options = name.partition("@")  # optimizer.learning_rate@adam|adamw: under these options alone
        drawn = set(values.values())
        # adam/affine|nadam/none: two groups were searched, and it is for two pairs of their options
        holds = not options or any(drawn.issuperset(each.split("/")) for each in options.split("|"))
        where = f" for {_plain(options.replace('|', ', '))}" if options else ""
        row = f"| `{key}`{where} | {_plain(text)} | {_plain(_short(values.get(key, ''))) if holds else ''} |"
        left -= len(row)
        if left < 0:
            yield f"| … | {len(space)} in all | |"
            return
        yield row


def _values(best: Best) -> dict[str, str]:
    """What the best trial has, by override key: its config's values, and what was drawn or typed, options too."""
    found: dict[str, str] = {"model": best.config.model.name, "optimizer": best.config.optimizer.name}
    for node, settings in best.config.model_dump(mode="json").items():
        of_node = settings.items() if isinstance(settings, dict) else ()
        found |= {f"{node}.{key}": value_text(value) for key, value in of_node if key != "name"}
    return found | {"seed": str(best.config.seed)} | dict(text.split("=", 1) for text in best.overrides)


def _plain(text: str) -> str:
    """A text that Markdown takes as it is; as code, it would have one width for all screens."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


def _short(value: str) -> str:
    """A number in four digits: the command below has all of them."""
    return f"{float(value):.4g}" if re.fullmatch(r"\d*\.\d{5,}(e-?\d+)?", value) else value


def _next(name: str, progress: Progress, stores: Sequence[str], config_dir: Path | None) -> Iterable[str]:
    study, where = f"study.name={name}", [*stores, *user_code.cli_args()]
    commands = [("report", [name, *where]), ("confirm", [study, *where])]
    if progress.best:
        options = ["--config-dir", str(config_dir)] if config_dir else []
        logs = [word for word in where if not word.startswith("study.storage=")]  # a training alone has no study
        commands += [("rerun", [study, *where]), ("train", [*options, *logs, *progress.best.overrides])]
    yield "\n---\n\nWhat to type next:\n"
    for command, words in commands:
        yield from (f"    {line}" for line in _folded(f"python -m mnistexp {command}", words))


def _folded(command: str, words: Sequence[str]) -> list[str]:
    """A command on as many lines as it needs: one that is too long pushes all else off MLflow's page."""
    lines = [command]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) < WIDTH:
            lines[-1] += f" {word}"
        else:
            lines[-1] += " \\"
            lines.append(f"  {word}")
    return lines
