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

from mnistexp.commands import predict
from mnistexp.config import compose as configs
from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.tracking import registry
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.registry import ALIAS, ConfirmedNetwork, Registry, Version
from mnistexp.tracking.runs import MlflowTracker

CORRECT = np.arange(300) % 7 > 0


@dataclass(frozen=True)
class Store:
    """An MLflow store, and the networks that are logged to it."""

    tracker: MlflowTracker
    config: TrackingConfig
    registry: Registry
    folder: Path
    logged: dict[tuple[str, float, str], ConfirmedNetwork] = field(default_factory=dict)

    def network(self, study: str, accuracy: float, weights: str = "") -> ConfirmedNetwork:
        """A confirmation with three seeds and its tested run, logged once for all tests that need the same."""
        key = (study, accuracy, weights)
        if key not in self.logged:
            study_id = f"{study} {len(self.logged)}"
            for seed in range(3):
                self.tracker.log(record(study, {"study_id": study_id, "trial": str(seed), "seed_index": str(seed)}))
            path = self.folder / f"{len(self.logged)}.weights.h5"
            path.write_bytes(study.encode())
            tested = record(study, {"study_id": f"{study_id}.test", "trial": "0", "seed_index": "2"}, weights)
            run_id = self.tracker.log(tested.model_copy(update={"weights_path": path}))
            run = next(self.tracker.find({}, run_id))
            self.logged[key] = ConfirmedNetwork(run, study, study_id, 7, 3, accuracy, 0.9)
        return self.logged[key]

    def register(self, name: str, network: ConfirmedNetwork, through: Registry | None = None) -> str:
        """Register a network; the higher validation accuracy wins."""

        def decide(version: Version, champion: Version | None) -> tuple[bool, str]:
            better = champion is None or version.tags["val_accuracy"] > champion.tags["val_accuracy"]
            return better, f"Version {version.number}: {'better' if better else 'not better'}."

        return registry.register(through or self.registry, name, network, decide, self.log_model)

    def log_model(self, weights: Path) -> str:
        """A logged model that is enough for the registry."""
        client, run_id = self.registry._client, next(iter(self.logged.values())).run.run_id
        experiment = client.get_run(run_id).info.experiment_id
        return str(client.create_logged_model(experiment, weights.read_text(), run_id).model_id)

    def champion(self, name: str) -> str:
        """The study of the champion."""
        version = self.registry.champion(name)
        return version.tags["study"] if version else ""

    def versions(self, name: str) -> list[Any]:
        """All versions of a model."""
        return list(self.registry._client.search_model_versions(f"name = '{name}'"))


def record(study: str, tags: dict[str, str], weights: str = "") -> RunRecord:
    """A run that classifies CORRECT correctly."""
    result = run_result([float(CORRECT.mean())])
    result = result.model_copy(
        update={"fit": with_hits(result.fit, CORRECT), "weights_hash": weights or f"weights of {study}"}
    )
    tags = {"study": study, "kind": "trial", "confirms_trial": "7", "image_shape": "[8, 8]", "classes": "10", **tags}
    return RunRecord(
        name=study,
        kind="trial",
        config=run_config(),
        overrides=(),
        data_name="digits",
        data_fingerprint="d",
        data_source="",
        provenance={},
        started=1.0,
        ended=2.0,
        state="COMPLETE",
        result=result,
        tags=tags,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real store; each test has its own model in it."""
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


def test_the_first_network_is_the_champion(store: Store, name: str) -> None:
    """It gets the alias, and its tags say where it comes from."""
    decision = store.register(name, store.network("a", 0.9))

    version = store.registry.champion(name)
    assert version is not None
    assert decision == version.tags["decision"] == "Version 1: better."
    expected = {"study": "a", "trial": "7", "data_fingerprint": "d", "weights_hash": "weights of a", "seeds": "3"}
    assert expected.items() <= version.tags.items()


@pytest.mark.parametrize(("accuracy", "champion"), [(0.95, "b"), (0.8, "a")])
def test_only_a_better_network_takes_the_alias(store: Store, name: str, accuracy: float, champion: str) -> None:
    """Both are registered; the same commands again change nothing and name the present champion."""
    first, second = store.network("a", 0.9), store.network("b", accuracy)
    before = [store.register(name, first), store.register(name, second)]

    again = [store.register(name, first), store.register(name, second)]

    assert store.champion(name) == champion
    assert len(store.versions(name)) == 2
    assert again[1] == before[1]
    assert ("version 2 has become the champion" in again[0]) is (champion == "b")


def test_the_same_weights_are_registered_once(store: Store, name: str) -> None:
    """Another study that chooses the same network gets no version of its own."""
    store.register(name, store.network("a", 0.9, weights="same"))

    decision = store.register(name, store.network("b", 0.9, weights="same"))

    assert decision.startswith(f"Version 1 of {name} is the champion already")
    assert len(store.versions(name)) == 1


def test_an_alias_that_a_user_moved_stays(store: Store, name: str) -> None:
    """Another confirm does not move it back."""
    weak, strong = store.network("a", 0.85), store.network("b", 0.95)
    store.register(name, weak)
    store.register(name, strong)
    store.registry._client.set_registered_model_alias(name, ALIAS, "1")

    store.register(name, strong)

    assert store.champion(name) == "a"


class Dying:
    """An MLflow client that is killed right after its n-th write."""

    def __init__(self, client: Any, writes: int) -> None:
        self._client, self._left = client, itertools.count(writes, -1)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        writes = name.startswith(("create", "set"))

        def call(*args: Any, **keywords: Any) -> Any:
            answer = method(*args, **keywords)
            if writes and next(self._left) == 0:
                raise Killed
            return answer

        return call


@pytest.mark.parametrize("writes", range(4))
def test_killed_after_any_write_it_continues(store: Store, name: str, writes: int) -> None:
    """After create_model_version, two tags, the alias: called again, there is one version, with the alias."""
    store.register(name, store.network("a", 0.85))
    network, dying = store.network("b", 0.95), Registry(str(store.config.uri))
    dying._client = Dying(dying._client, writes)

    with pytest.raises(Killed):
        store.register(name, network, dying)
    decision = store.register(name, network)

    assert decision == "Version 2: better."
    assert store.champion(name) == "b"
    assert len(store.versions(name)) == 2


def test_the_predictions_of_a_versions_runs_are_found(store: Store, name: str) -> None:
    """One entry per seed, without the tested run; deleted runs are missing."""
    network = store.network("deleted", 0.5)
    store.register(name, network)
    version = store.registry.champion(name)
    assert version is not None
    before = registry.correct_predictions(store.config, version)
    first = next(store.tracker.find({"study_id": network.study_id}))
    store.registry._client.delete_run(first.run_id)

    after = registry.correct_predictions(store.config, version)

    assert before == [np.packbits(CORRECT).tobytes()] * 3
    assert after == before[:2]


# ------------------------------------------------------------------------------------------------- predict


def test_predict_finds_the_champion_of_a_file_by_its_name(store: Store, tmp_path: Path) -> None:
    """`predict data=npz data.root=…` uses the model that `confirm` registers, and reads no data set."""
    network = store.network("a", 0.9)
    store.register(registry.model_name("npz", "some/where/own.digits.npz"), network)
    config = configs.compose(configs.parse_request(["data=npz", "data.root=own.digits.npz"]))

    found = predict._network(config.model_copy(update={"tracking": store.config}), "", tmp_path)

    assert "npz-own-digits, version 1" in found.title
    assert found.weights.read_text() == "a"
    assert (found.weights_hash, found.image_shape, found.classes) == ("weights of a", (8, 8), 10)
    assert found.config == network.run.config


def test_predict_reads_no_data_for_a_run(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's tags have the shape of its images, wherever its data are now."""
    run_id = store.network("a", 0.9).run.run_id
    monkeypatch.setattr("mnistexp.data.dataset.load", lambda *_: pytest.fail("loads the data set"))
    config = configs.compose(configs.parse_request(["data=npz", "data.root=gone.npz"]))

    found = predict._network(config.model_copy(update={"tracking": store.config}), run_id, tmp_path)

    assert (found.image_shape, found.classes) == ((8, 8), 10)


def test_a_run_without_shape_is_refused(store: Store, tmp_path: Path) -> None:
    """A run of an earlier version: one sentence."""
    whole = record("old", {"study_id": "old", "trial": "0"})
    tags = {key: value for key, value in whole.tags.items() if key not in ("image_shape", "classes")}
    run_id = store.tracker.log(whole.model_copy(update={"tags": tags}))
    config = configs.compose(configs.parse_request(["data=digits"]))

    with pytest.raises(StoreError, match="not logged by this version"):
        predict._network(config.model_copy(update={"tracking": store.config}), run_id, tmp_path)


def test_a_missing_champion_is_one_sentence(store: Store, tmp_path: Path) -> None:
    """A store without one, and no store at all; no file is made."""
    with pytest.raises(StoreError, match=r"there is no champion for mnist in .* yet"):
        registry.champion(str(store.config.uri), "mnist")
    with pytest.raises(StoreError, match="no runs are logged here"):
        registry.champion(f"sqlite:///{tmp_path / 'none.db'}", "mnist")

    assert list(tmp_path.iterdir()) == []


def test_a_run_without_weights_is_refused(store: Store, tmp_path: Path) -> None:
    """It cannot become a model."""
    run_id = store.tracker.log(record("bare", {"study_id": "bare", "trial": "1"}))

    with pytest.raises(StoreError, match="has no weights in MLflow"):
        store.registry.download_weights(run_id, tmp_path)
