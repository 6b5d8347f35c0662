"""The study of a confirmation: the best configs of another study, each trained again with several fresh seeds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import optuna

from mnistexp.config.compose import run_config, signature
from mnistexp.config.schema import Config, RunConfig
from mnistexp.search.distributions import Scalar, Suggester
from mnistexp.search.space import Suggestion
from mnistexp.study.database import Database
from mnistexp.study.trial_attrs import DECISION
from mnistexp.tracking.run_context import RunContext, run_name
from mnistexp.training.results import RunResult

MAX_SEEDS = 1000
"""Optuna needs a bound. A confirmation may get more seeds later, under the same name."""


@dataclass(frozen=True)
class Candidate:
    """A trial whose config is trained again."""

    number: int  # of the trial in the confirmed study
    val_accuracy: float  # there
    config: RunConfig
    overrides: tuple[str, ...]


class Repeat(NamedTuple):
    """One run of a confirmation. The fields are Optuna's parameters."""

    config_index: int  # among the candidates, from 0
    seed_index: int  # from 0; all candidates have the same seed at the same index
    test: int = 0  # n: the n-th try to train this network again and to evaluate it on the test split


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
    """Candidates times seeds, as the space that a study draws its trials from; see search.space.Space."""

    study: str  # the confirmed study
    study_id: str
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]  # of fresh_seeds
    base: Config  # the stores, the executor and the place of the data for this command
    repeats: tuple[Repeat, ...] = ()  # what this command runs, in order

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
        return {"config_index": f"trials {numbers} of {self.study}", "seed_index": "fresh seeds"}

    def baseline(self) -> tuple[Suggestion, dict[str, Scalar]]:
        return self.suggestion(Repeat(0, 0)), Repeat(0, 0)._asdict()

    def points(self) -> Iterator[dict[str, Scalar]]:
        return (repeat._asdict() for repeat in self.repeats)

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        highest = Repeat(len(self.candidates) - 1, MAX_SEEDS - 1, test=MAX_SEEDS)._asdict()
        return self.suggestion(Repeat(*(trial.suggest_int(key, 0, highest[key], step=1, log=False) for key in highest)))

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        return self.suggest(trial)

    def suggestion(self, repeat: Repeat) -> Suggestion:
        """Return a run: the candidate's config with a fresh seed and this command's data and device."""
        candidate, seed, base = self.candidates[repeat.config_index], self.seeds[repeat.seed_index], self.base
        here = {"device": base.trainer.device, "timeout": base.trainer.timeout}
        nodes = {node: getattr(candidate.config, node) for node in RunConfig.model_fields}
        nodes |= {"seed": seed, "data": base.data, "trainer": candidate.config.trainer.model_copy(update=here)}
        keep = repeat.test > 0 and base.tracking.name != "none"  # the network may become a registered model
        nodes["tracking"] = base.tracking.model_copy(update={"save_weights": keep})
        overrides = [text for text in candidate.overrides if not text.startswith("seed=")]
        return Suggestion((*overrides, f"seed={seed}"), base.model_copy(update=nodes), evaluate_test=repeat.test > 0)


@dataclass(frozen=True, kw_only=True)
class RepeatContext(RunContext):
    """A RunContext that names and tags each run by the trial that it repeats."""

    space: RepeatSpace

    def tags(self) -> dict[str, str]:
        images = len(self.prepared.dataset.test.labels)
        return {**super().tags(), "confirms": self.space.study, "test_images": str(images)}

    def label(self, number: int, config: RunConfig, result: RunResult | None) -> tuple[str, Mapping[str, str]]:
        candidate, seed_index = self._repeated(config)
        tags = {"confirms_trial": str(candidate.number), "seed_index": str(seed_index)}
        if result is None or result.test_accuracy is None:
            return self.title(config), tags
        return f"tested: {self.title(config)}", {**tags, "final": "true"}

    def title(self, config: RunConfig) -> str:
        """Return a run name such as '#17 seed 2: adam lr=0.0031 relu 300 b=128'."""
        candidate, seed_index = self._repeated(config)
        return f"#{candidate.number} seed {seed_index + 1}: {run_name(config)}"

    def _repeated(self, config: RunConfig) -> tuple[Candidate, int]:
        return self._by_signature[signature(config, seed=False)], self.space.seeds.index(config.seed)

    @cached_property
    def _by_signature(self) -> dict[str, Candidate]:
        configs = [run_config(self.space.suggestion(Repeat(i, 0)).config) for i in range(len(self.space.candidates))]
        return dict(zip((signature(each, seed=False) for each in configs), self.space.candidates, strict=True))


def keep_decision(database: Database, name: str, text: str) -> None:
    """Store whether a confirmation's tested network became the champion, and why; see analysis.history.History."""
    study = database.retry(lambda: optuna.load_study(study_name=name, storage=database.storage))
    database.retry(lambda: study.set_user_attr(DECISION, text))
