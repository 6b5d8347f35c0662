"""The study of a confirmation: the best configs of another study, each trained again with several fresh seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage

from mnistexp.config.compose import signature
from mnistexp.config.schema import Config, RunConfig
from mnistexp.search.distributions import Scalar, Suggester
from mnistexp.search.space import Suggestion
from mnistexp.study.database import Database
from mnistexp.tracking.records import RunRecord, parse_record
from mnistexp.tracking.run_context import RunContext, run_name

MAX_SEEDS = 1000
"""Optuna needs a bound. A confirmation may get more seeds later, under the same name."""

TEST = "mnistexp.test"  # a study attribute for each tested run, TEST.CONFIG_INDEX.SEED_INDEX: its record
DECISION = "mnistexp.decision"  # a study attribute: whether the tested network became the champion, and why


@dataclass(frozen=True)
class Candidate:
    """A trial whose config is trained again."""

    number: int  # of the trial in the confirmed study
    val_accuracy: float  # there
    config: RunConfig
    overrides: tuple[str, ...]


class Repeat(NamedTuple):
    """One run of a confirmation."""

    config_index: int  # among the candidates, from 0
    seed_index: int  # from 0; all candidates have the same seed at the same index


def prefix(study: str) -> str:
    """Return how the names of a study's confirmations begin; a study name has at most 100 characters."""
    return f"{study[:60]}.confirm."


def fresh_seeds(study_seed: object, candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Return MAX_SEEDS seeds that no candidate was trained with in the confirmed study."""
    used, seeds, attempt = {each.config.seed for each in candidates}, dict[int, None](), 0
    while len(seeds) < MAX_SEEDS:
        seed = int.from_bytes(hashlib.sha256(f"{study_seed} confirm {attempt}".encode()).digest()[:4], "big")
        attempt += 1
        if seed not in used:
            seeds[seed] = None
    return tuple(seeds)


@dataclass(frozen=True)
class RepeatSpace:
    """Candidates times seeds, as the space that a study draws its trials from; see search.space.Space.

    Optuna's parameters are `config_index` and `seed_index`. All candidates are trained with the first seed before any
    is trained with the second, so an interrupted confirmation still compares configs with equal seeds.
    """

    study: str  # the confirmed study
    study_id: str
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]  # of fresh_seeds
    count: int  # how many of the seeds are run
    base: Config  # the stores, the executor and the place of the data for this command

    @property
    def study_name(self) -> str:
        """The name of the confirmation's study; the same candidates give the same name, so it is resumed."""
        return prefix(self.study) + hashlib.sha256(self.fingerprint()["candidates"].encode()).hexdigest()[:8]

    def fingerprint(self) -> dict[str, str]:
        """Return the fingerprint: the study and its trials, but not the number of seeds, which may grow."""
        numbers = [candidate.number for candidate in self.candidates]
        return {"candidates": json.dumps({"study": self.study_id, "trials": numbers})}

    def descriptions(self) -> dict[str, str]:
        numbers = ", ".join(f"#{candidate.number}" for candidate in self.candidates)
        return {"config_index": f"trials {numbers} of {self.study}", "seed_index": f"{self.count} fresh seeds"}

    def baseline(self) -> tuple[Suggestion, dict[str, Scalar]]:
        return self._suggestion(Repeat(0, 0)), Repeat(0, 0)._asdict()

    def points(self) -> Iterator[dict[str, Scalar]]:
        for seed_index in range(self.count):
            for config_index in range(len(self.candidates)):
                yield Repeat(config_index, seed_index)._asdict()

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        config_index = trial.suggest_int("config_index", 0, len(self.candidates) - 1, step=1, log=False)
        seed_index = trial.suggest_int("seed_index", 0, MAX_SEEDS - 1, step=1, log=False)
        return self._suggestion(Repeat(config_index, seed_index))

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        return self.suggest(trial)

    def config(self, repeat: Repeat) -> RunConfig:
        """Return a run's config: the candidate's, with a fresh seed and this command's data and device."""
        config, base = self.candidates[repeat.config_index].config, self.base
        here = {"device": base.trainer.device, "timeout": base.trainer.timeout}
        trainer = config.trainer.model_copy(update=here)
        fresh = {"seed": self.seeds[repeat.seed_index], "data": base.data, "trainer": trainer}
        return config.model_copy(update=fresh)

    def overrides(self, repeat: Repeat) -> tuple[str, ...]:
        """Return the candidate's overrides with the fresh seed."""
        kept = [text for text in self.candidates[repeat.config_index].overrides if not text.startswith("seed=")]
        return (*kept, f"seed={self.seeds[repeat.seed_index]}")

    def _suggestion(self, repeat: Repeat) -> Suggestion:
        config = self.config(repeat)
        nodes = {node: getattr(config, node) for node in RunConfig.model_fields}
        return Suggestion(self.overrides(repeat), self.base.model_copy(update=nodes))


@dataclass(frozen=True, kw_only=True)
class RepeatContext(RunContext):
    """A RunContext that names and tags each run by the trial that it repeats. Make one with `of`."""

    space: RepeatSpace

    @classmethod
    def of(cls, context: RunContext, space: RepeatSpace) -> RepeatContext:
        """Return a command's context for the runs of this confirmation."""
        return cls(**vars(context), space=space)

    def tags(self) -> dict[str, str]:
        return {**super().tags(), "confirms": self.space.study}

    def trial_name(self, number: int, config: RunConfig) -> str:
        return self.title(config)

    def trial_tags(self, config: RunConfig) -> dict[str, str]:
        candidate, seed_index = self._repeated(config)
        return {"confirms_trial": str(candidate.number), "seed_index": str(seed_index)}

    def title(self, config: RunConfig) -> str:
        """Return a run name such as '#17 seed 2: adam lr=0.0031 relu 300 b=128'."""
        candidate, seed_index = self._repeated(config)
        return f"#{candidate.number} seed {seed_index + 1}: {run_name(config)}"

    def _repeated(self, config: RunConfig) -> tuple[Candidate, int]:
        return self._by_signature[signature(config, seed=False)], self.space.seeds.index(config.seed)

    @cached_property
    def _by_signature(self) -> dict[str, Candidate]:
        firsts = [self.space.config(Repeat(index, 0)) for index in range(len(self.space.candidates))]
        return {signature(config, seed=False): each for config, each in zip(firsts, self.space.candidates, strict=True)}


# ----------------------------------------------------------------------- the tested run and the decision


def tested_runs(storage: BaseStorage, name: str) -> dict[Repeat, RunRecord]:
    """Return the records of a confirmation's runs that evaluated the test split. Raises: StoreError."""
    found = {}
    for key, plain in _attributes(storage, name).items():
        if key.startswith(f"{TEST}."):
            config_index, seed_index = key.removeprefix(f"{TEST}.").split(".")
            found[Repeat(int(config_index), int(seed_index))] = parse_record(plain)
    return found


def keep_tested_run(database: Database, name: str, repeat: Repeat, record: RunRecord) -> None:
    """Store the record of a tested run."""
    key = f"{TEST}.{repeat.config_index}.{repeat.seed_index}"
    _set(database, name, key, record.model_dump(mode="json"))


def decision(storage: BaseStorage, name: str) -> str:
    """Return whether a confirmation's network became the champion, and why; empty before that was decided."""
    return str(_attributes(storage, name).get(DECISION, ""))


def keep_decision(database: Database, name: str, text: str) -> None:
    """Store whether the tested network became the champion, and why."""
    _set(database, name, DECISION, text)


def _attributes(storage: BaseStorage, name: str) -> Mapping[str, Any]:
    return optuna.load_study(study_name=name, storage=storage).user_attrs


def _set(database: Database, name: str, key: str, value: object) -> None:
    study = database.retry(lambda: optuna.load_study(study_name=name, storage=database.storage))
    database.retry(lambda: study.set_user_attr(key, value))
