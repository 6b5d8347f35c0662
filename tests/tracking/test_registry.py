from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confirms import Killed, with_hits
from fakes import run_result
from runs import run_config

from mnistexp.analysis.statistics import Bools
from mnistexp.commands import predict
from mnistexp.config import compose as configs
from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.tracking import registry
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.registry import ALIAS, Candidate, Registry, Version, judge
from mnistexp.tracking.runs import MlflowTracker

IMAGES = 300
DATA = "d" * 32
HARD = np.random.default_rng(0).random(IMAGES)  # how hard each image is, for everybody


@dataclass(frozen=True)
class Store:
    """An MLflow store, and what is logged to it."""

    tracker: MlflowTracker
    config: TrackingConfig
    registry: Registry
    folder: Path
    logged: dict[object, Candidate] = field(default_factory=dict)

    def candidate(
        self, study: str, accuracy: float, *, data: str = DATA, weights: str = "", hits: bool = True
    ) -> Candidate:
        """`_candidate`, logged once for all tests that need the same."""
        key = (study, accuracy, data, weights, hits)
        if key not in self.logged:
            self.logged[key] = self._candidate(study, accuracy, data, weights, hits)
        return self.logged[key]

    def _candidate(self, study: str, accuracy: float, data: str, weights: str, hits: bool) -> Candidate:
        """Log a confirmation of a config that gets this share of images right, with three seeds, and its tested run."""
        whose = f"{study} {len(self.logged)}"  # the confirmation's id
        right = np.stack([accuracy + shift / IMAGES > HARD for shift in (-1, 0, 1)])
        for repeat, row in enumerate(right if hits else ()):
            self.tracker.log(
                record(study, row, data, {"study_id": whose, "rival": "7", "repeat": str(repeat), "trial": str(repeat)})
            )
        path = self.folder / f"{len(list(self.folder.glob('*.h5')))}.weights.h5"
        path.write_bytes(study.encode())
        tags = {"study_id": f"final of {whose}", "trial": "0", "rival": "7", "repeat": "2"}
        tested = record(study, right[2], data, tags, weights or f"weights of {study}").model_copy(
            update={"weights_path": path}
        )
        run_id = self.tracker.log(tested)
        logged: LoggedRun = next(self.tracker.find({}, run_id))
        return Candidate(logged, study, whose, 7, right, (8, 8), 10, 0.9)

    def enter(self, name: str, candidate: Candidate, through: Registry | None = None) -> str:
        """Register a candidate."""

        def hits_of(version: Version) -> Bools | None:
            return registry.hits_of(self.config, version, IMAGES)

        return registry.enter(through or self.registry, name, candidate, hits_of, export)

    def champion(self, name: str) -> str:
        """The study that the champion comes from."""
        version = self.registry.champion(name)
        return version.tags["study"] if version else ""

    def versions(self, name: str) -> list[Any]:
        """All versions of a model."""
        return list(self.registry._client.search_model_versions(f"name = '{name}'"))


def export(weights: Path, folder: Path, model_id: str) -> None:
    """A model that is enough for the registry."""
    folder.mkdir()
    (folder / "MLmodel").write_text(f"model_id: {model_id}\nweights: {weights.read_text()}\n")


def record(study: str, right: Bools, data: str, tags: dict[str, str], weights: str = "some") -> RunRecord:
    """A run that got these images right."""
    result = run_result([float(right.mean())])
    result = result.model_copy(update={"fit": with_hits(result.fit, right), "weights_hash": weights})
    whose = {"study": study, "study_id": f"id of {study}", "kind": "trial", **tags}
    return RunRecord(
        name=study,
        kind="trial",
        config=run_config(),
        overrides=(),
        data_name="digits",
        data_fingerprint=data,
        data_source="",
        provenance={},
        started=1.0,
        ended=2.0,
        state="COMPLETE",
        result=result,
        tags=whose,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real store; each test has model and study names of its own in it."""
    folder = tmp_path_factory.mktemp("registry")
    config = TrackingConfig(name="mlflow", uri=f"sqlite:///{folder / 'mlflow.db'}", experiment=None, save_weights=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow keeps artifacts there
        tracker = MlflowTracker(str(config.uri), "confirmations")
        yield Store(tracker, config, Registry(str(config.uri)), folder)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of this test's own."""
    return registry.model_name(str(request.node.name))


# -------------------------------------------------------------------------------------------- who is the champion


def test_the_first_is_the_champion(store: Store, name: str) -> None:
    """Where there was none, the first network that is confirmed has the alias, with where it comes from."""
    said = store.enter(name, store.candidate("a", 0.9))

    version = store.registry.champion(name)
    assert said == f"Version 1 of {name} is the champion now: there was none."
    assert version is not None
    assert version.tags["study"] == "a"
    assert version.tags["trial"] == "7"
    assert version.tags["data_fingerprint"] == DATA
    assert version.tags["weights_hash"] == "weights of a"


def test_a_better_one_takes_the_alias(store: Store, name: str) -> None:
    """0.95 against 0.85 on the same 300 images is more than the noise."""
    store.enter(name, store.candidate("a", 0.85))

    said = store.enter(name, store.candidate("b", 0.95))

    assert store.champion(name) == "b"
    assert said.startswith(f"Version 2 of {name} is the champion now: it is ahead of version 1 by 0.1")
    assert "3 seeds each on the same images" in said


@pytest.mark.parametrize("accuracy", [0.80, 0.895, 0.9, 0.902])
def test_one_that_is_worse_or_within_the_noise_does_not(store: Store, name: str, accuracy: float) -> None:
    """Behind, alike, or ahead by less than an image: the champion stays, and by how much it missed is said."""
    store.enter(name, store.candidate("a", 0.9))

    said = store.enter(name, store.candidate("b", accuracy))

    assert store.champion(name) == "a"
    assert said.startswith(f"Version 1 of {name} stays the champion: version 2 is ")
    assert len(store.versions(name)) == 2


def test_scores_on_other_data_are_not_compared(store: Store, name: str) -> None:
    """Another split is another yardstick, however good the score."""
    store.enter(name, store.candidate("a", 0.5))

    said = store.enter(name, store.candidate("b", 0.99, data="e" * 32))

    assert store.champion(name) == "a"
    assert "it was confirmed on other data, or another split of them" in said
    assert "if version 2 is to follow, give it the alias champion in `python -m mnistexp ui`" in said


def test_a_champion_whose_hits_are_gone_stays(store: Store, name: str) -> None:
    """Without the images that its runs got right there is no comparison, and it is said."""
    store.enter(name, store.candidate("a", 0.5, hits=False))

    said = store.enter(name, store.candidate("b", 0.99))

    assert store.champion(name) == "a"
    assert "isn't in MLflow, so version 2 can't be compared with it" in said


def test_a_champion_of_whose_runs_one_is_left_stays(store: Store, name: str) -> None:
    """One run says nothing of the noise between seeds: a sentence, no traceback."""
    old = store.candidate("alone", 0.5)
    store.enter(name, old)
    first, *others = store.tracker.find({"study_id": old.study_id, "rival": "7"})
    for run in others:
        store.registry._client.delete_run(run.run_id)

    said = store.enter(name, store.candidate("b", 0.99))

    assert first.state == "COMPLETE"
    assert store.champion(name) == "alone"
    assert "can't be compared with it" in said


def test_the_same_weights_are_not_registered_again(store: Store, name: str) -> None:
    """Another study that chooses the very same network says that it is the champion already."""
    store.enter(name, store.candidate("a", 0.9, weights="same"))

    said = store.enter(name, store.candidate("b", 0.9, weights="same"))

    assert said == f"Version 1 of {name} is the champion already: these are its very weights."
    assert len(store.versions(name)) == 1


def test_registering_again_changes_nothing(store: Store, name: str) -> None:
    """The same command once more: the same version, the same verdict, and whether that still holds."""
    weak, strong = store.candidate("a", 0.85), store.candidate("b", 0.95)
    before = [store.enter(name, weak), store.enter(name, strong)]

    again = [store.enter(name, weak), store.enter(name, strong)]

    assert again == [f"{before[0]} Since then version 2 has become it.", before[1]]
    assert len(store.versions(name)) == 2
    assert store.champion(name) == "b"


def test_an_alias_that_somebody_moved_by_hand_stays_there(store: Store, name: str) -> None:
    """The user's word counts: typing confirm again doesn't take it back."""
    weak, strong = store.candidate("a", 0.85), store.candidate("b", 0.95)
    store.enter(name, weak)
    store.enter(name, strong)
    store.registry._client.set_registered_model_alias(name, ALIAS, "1")

    store.enter(name, strong)

    assert store.champion(name) == "a"


# ------------------------------------------------------------------------------------------------- cut off


class Dying:
    """An MLflow client whose process is killed right after its n-th write."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client, self._left = client, itertools.count(writes, -1)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        writes = name.startswith(("create", "log", "finalize", "set"))

        def call(*parts: Any, **more: Any) -> Any:
            answer = method(*parts, **more)
            if writes and next(self._left) == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("writes", range(8))
def test_killed_after_any_write_it_goes_on(store: Store, name: str, writes: int) -> None:
    """However far it came: called again there is one version of this run, with the alias that it deserves."""
    store.enter(name, store.candidate("a", 0.85))
    candidate, dying = store.candidate("b", 0.95), Registry(str(store.config.uri))
    dying._client = Dying(dying._client, writes)

    with pytest.raises(Killed):
        store.enter(name, candidate, dying)
    said = store.enter(name, candidate)

    assert said.startswith(f"Version 2 of {name} is the champion now: it is ahead of version 1 by 0.1")
    assert store.champion(name) == "b"
    assert len(store.versions(name)) == 2


# ------------------------------------------------------------------------------------------------- using it


def test_the_champion_is_found_with_all_it_takes_to_build_it(store: Store, name: str, tmp_path: Path) -> None:
    """Its config, its weights and their hash, its images' shape, its classes: what `predict` needs."""
    candidate = store.candidate("a", 0.9)
    store.enter(name, candidate)

    found = registry.champion(str(store.config.uri), name, tmp_path)

    assert found.config == candidate.run.config
    assert found.weights.read_text() == "a"
    assert found.weights_hash == "weights of a"
    assert (found.image_shape, found.classes, found.version) == ((8, 8), 10, "1")
    assert found.run_id == candidate.run.run_id
    assert found.metrics["val_accuracy"] == candidate.run.metrics["val_accuracy"]


def test_the_champion_for_a_file_of_ones_own_is_found_by_its_name(store: Store, tmp_path: Path) -> None:
    """Where `confirm` registers it, `predict data=npz data.root=…` looks."""
    candidate = store.candidate("a", 0.9)
    store.enter(registry.model_name("npz", "some/where/own.digits.npz"), candidate)
    config = configs.compose(configs.parse_request(["data=npz", "data.root=own.digits.npz"]))

    found = predict._champion(config.model_copy(update={"tracking": store.config}), tmp_path)

    assert found.title.startswith("the champion for npz-own-digits, version 1 ")
    assert found.weights_hash == "weights of a"


def test_no_champion_yet_is_told_with_what_to_type(store: Store, tmp_path: Path) -> None:
    """A store without one, and no store at all."""
    with pytest.raises(StoreError, match=r"there is no champion for mnist in .* yet; run .* confirm` first"):
        registry.champion(str(store.config.uri), "mnist", tmp_path)
    with pytest.raises(StoreError, match=r"nothing is registered here; run `python -m mnistexp confirm` first"):
        registry.champion(f"sqlite:///{tmp_path / 'none.db'}", "mnist", tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_champion_that_somebody_else_registered_is_told(store: Store, name: str, tmp_path: Path) -> None:
    """A version by hand has none of our tags: one sentence, no traceback."""
    client, run_id = store.registry._client, store.candidate("a", 0.9).run.run_id
    client.create_registered_model(name)
    client.create_model_version(name, f"file:///{tmp_path}", run_id)
    client.set_registered_model_alias(name, ALIAS, "1")

    with pytest.raises(StoreError, match="was not registered by this version of mnistexp; run `python -m mnistexp con"):
        registry.champion(str(store.config.uri), name, tmp_path)


def test_a_run_without_weights_is_told(store: Store, name: str, tmp_path: Path) -> None:
    """It can't be a model."""
    run_id = store.tracker.log(record(name, HARD < 0.5, DATA, {"trial": "1"}))

    with pytest.raises(StoreError, match="has no weights in MLflow"):
        store.registry.weights(run_id, tmp_path)


def test_the_best_of_many_needs_a_larger_lead_than_one_named_beforehand() -> None:
    """A lead that is enough for a config that stood fixed isn't for one that was the best of twenty."""
    draw = np.random.default_rng(3)
    theirs = np.stack([0.90 + shift / IMAGES > HARD for shift in (-2, 0, 2, 1, -1)])
    extra = draw.random((5, IMAGES)) < 0.16
    hits = theirs | (extra & (HARD < 0.97))
    run = LoggedRun.model_construct(run_id="", data_fingerprint=DATA)
    old, new = (Version("digits", number, "", {"data_fingerprint": DATA}) for number in "12")

    verdicts = [
        judge(new, old, Candidate(run, "s", "i", 1, hits, (8, 8), 10, 0.9, chosen_from=count), lambda _: theirs)[0]
        for count in (1, 10**6)
    ]

    assert verdicts == [True, False]
