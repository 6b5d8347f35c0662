"""A study's best configs, to be trained again with fresh seeds: what a confirmation draws its runs from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import signature
from mnistexp.config.schema import Config, RunConfig
from mnistexp.search.distributions import Scalar, Suggester
from mnistexp.search.space import Suggestion
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import RunContext

MOST_SEEDS = 10_000
"""Optuna wants a bound; a confirmation may be given more seeds later, under the same name."""


@dataclass(frozen=True)
class Contender:
    """A trial that is to show whether it was good or lucky."""

    number: int
    val_accuracy: float  # its score in the sweep
    config: RunConfig
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """One run of a confirmation."""

    rival: int  # place among the contenders, from 0
    repeat: int  # from 0; the same repeat has the same seed for every contender


def of_study(history: History, top: int) -> tuple[Contender, ...]:
    """A study's best configs, best first, `top` at most; one that differs by its seed alone counts once."""
    found: dict[str, Contender] = {}
    for each in map(contender, history.ranked):
        found.setdefault(signature(each.config, seed=False), each)
    return tuple(found.values())[:top]


def contender(trial: Trial) -> Contender:
    """A complete trial as one that is to be trained again."""
    assert trial.record is not None
    assert trial.val_accuracy is not None
    return Contender(trial.number, trial.val_accuracy, trial.record.config, trial.record.overrides)


def prefix(study: str) -> str:
    """How the names of a study's confirmations begin; a name has a hundred characters at most."""
    return f"{study[:60]}.confirm."


def study_name(history: History, contenders: Sequence[Contender]) -> str:
    """The confirmation's own study: the same question has the same name, so it is gone on with."""
    return prefix(history.name) + hashlib.sha256(_whose(history.id, contenders).encode()).hexdigest()[:8]


def final_name(name: str, point: Point) -> str:
    """The study of a confirmation's last run, the one that is tested."""
    return f"{name}.final.{point.rival}.{point.repeat}"


def fresh_seeds(study_seed: object, count: int, taken: Sequence[int]) -> tuple[int, ...]:
    """Seeds that no contender was trained with in the sweep; more of them begin with the fewer."""
    seeds: list[int] = []
    for attempt in range(count + len(taken) + MOST_SEEDS):
        seed = int.from_bytes(hashlib.sha256(f"{study_seed} confirm {attempt}".encode()).digest()[:4], "big")
        if len(seeds) < count and seed not in taken and seed not in seeds:
            seeds.append(seed)
        if len(seeds) == count:
            break
    return tuple(seeds)


def seeds_of(study: History, contenders: Sequence[Contender], count: int) -> tuple[int, ...]:
    """The first so many fresh seeds of a study's confirmation."""
    return fresh_seeds(study.fingerprint.get("seed"), count, [contender.config.seed for contender in contenders])


def _whose(study_id: str, contenders: Sequence[Contender]) -> str:
    return json.dumps({"study": study_id, "trials": [contender.number for contender in contenders]})


# ------------------------------------------------------------------------------------------------ the space


@dataclass(frozen=True)
class RepeatSpace:
    """Contenders times seeds, as the space that a study draws from: see search_space.Space.

    Optuna's parameters are `rival` and `repeat`. All contenders have their first seed before any has its second, so
    that a confirmation that is cut short still compares like with like.
    """

    study: History
    contenders: tuple[Contender, ...]
    base: Config  # today's stores and executor, and where the data are here
    seeds: tuple[int, ...]
    final: Point | None = None  # only this one, to be tested

    @property
    def todo(self) -> tuple[Point, ...]:
        """The runs, in their order."""
        if self.final is not None:
            return (self.final,)
        return tuple(Point(rival, repeat) for repeat in range(len(self.seeds)) for rival in range(len(self.contenders)))

    def tested(self, point: Point) -> RepeatSpace:
        """The space of the one run that is tested, whose seed may be of an earlier confirm that had more of them."""
        count = max(len(self.seeds), point.repeat + 1)
        return replace(self, seeds=seeds_of(self.study, self.contenders, count), final=point)

    def fingerprint(self) -> dict[str, str]:
        """The study and its trials that are compared; not how many seeds: there may be more of them later."""
        final = {"final": json.dumps([self.final.rival, self.final.repeat])} if self.final else {}
        return {"contenders": _whose(self.study.id, self.contenders), **final}

    def descriptions(self) -> dict[str, str]:
        numbers = ", ".join(f"#{contender.number}" for contender in self.contenders)
        return {"rival": f"trials {numbers} of {self.study.name}", "repeat": f"{len(self.seeds)} fresh seeds"}

    def baseline(self) -> tuple[Suggestion, dict[str, Scalar]]:
        return self._draw(self.todo[0]), _params(self.todo[0])

    def points(self) -> Iterator[dict[str, Scalar]]:
        return map(_params, self.todo)

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        only = self.final  # which may be drawn a second time, if its first run failed
        rivals = (only.rival, only.rival) if only else (0, len(self.contenders) - 1)
        repeats = (only.repeat, only.repeat) if only else (0, MOST_SEEDS - 1)
        rival = trial.suggest_int("rival", *rivals, step=1, log=False)
        return self._draw(Point(rival, trial.suggest_int("repeat", *repeats, step=1, log=False)))

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        return self.suggest(trial)

    def config(self, point: Point) -> RunConfig:
        """What a run trains: a contender's config, its seed and where the data are apart."""
        fresh = {"seed": self.seeds[point.repeat], "data": self.base.data}
        trainer = self.contenders[point.rival].config.trainer.model_copy(
            update={"device": self.base.trainer.device, "timeout": self.base.trainer.timeout}
        )
        return self.contenders[point.rival].config.model_copy(update={**fresh, "trainer": trainer})

    def _draw(self, point: Point) -> Suggestion:
        config = self.config(point)
        kept = [text for text in self.contenders[point.rival].overrides if not text.startswith("seed=")]
        nodes = {node: getattr(config, node) for node in RunConfig.model_fields}
        return Suggestion((*kept, f"seed={config.seed}"), self.base.model_copy(update=nodes))


def _params(point: Point) -> dict[str, Scalar]:
    return {"rival": point.rival, "repeat": point.repeat}


# ---------------------------------------------------------------------------------------------- the records


@dataclass(frozen=True)
class ConfirmSession(RunContext):
    """A session whose runs say in their names and tags what they repeat."""

    study: str = ""
    labels: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # config's signature → trial, repeat
    final: Mapping[str, str] = field(default_factory=dict)  # further tags, of the run that is tested

    def tags(self) -> dict[str, str]:
        return {**super().tags(), "confirms": self.study, **self.final}

    def trial_name(self, number: int, config: RunConfig) -> str:
        return self.title(config)

    def trial_tags(self, config: RunConfig) -> Mapping[str, str]:
        rival, repeat = self.labels[signature(config)]
        return {"rival": str(rival), "repeat": str(repeat)}

    def title(self, config: RunConfig) -> str:
        """A name that reads well in a table: '#17 again 2: adam lr=0.0031 relu 300 b=128'."""
        rival, repeat = self.labels[signature(config)]
        which = "tested" if self.final else f"again {repeat + 1}"
        return f"#{rival} {which}: {run_context.run_name(config)}"


def session(found: RunContext, space: RepeatSpace, final: Mapping[str, str] | None = None) -> ConfirmSession:
    """A command's session as one of this confirmation's."""
    labels = {signature(space.config(each)): (space.contenders[each.rival].number, each.repeat) for each in space.todo}
    return ConfirmSession(**vars(found), study=space.study.name, labels=labels, final=final or {})
