from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confirms import Killed, with_hits
from fakes import run_result
from runs import run_config

from mnistexp.commands import predict
from mnistexp.config.compose import compose, parse_request
from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.tracking import registry
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.registry import ALIAS, Network, Registry, Version
from mnistexp.tracking.runs import MlflowTracker

CORRECT = np.arange(300) % 7 > 0


@dataclass(frozen=True)
class Store:
    """An MLflow store, and a network that is logged to it by each run of `network`."""

    tracker: MlflowTracker
    config: TrackingConfig
    registry: Registry
    folder: Path

    def network(self, study: str) -> LoggedRun:
        """A confirmation with three seeds and its tested run, logged."""
        for seed in range(3):
            self.tracker.log(record(study, str(seed)))
        path = self.folder / "1.weights.h5"
        path.write_bytes(study.encode())
        run_id = self.tracker.log(record(study, "3", 0.9).model_copy(update={"weights_path": path}))
        return next(self.tracker.find({}, run_id))

    def register(self, name: str, run: LoggedRun, through: Registry | None = None) -> str:
        """Register a network; the study that is later in the alphabet wins."""

        def decide(version: Version, champion: Version | None) -> tuple[bool, str]:
            better = champion is None or version.tags["study"] >= champion.tags["study"]
            return better, f"Version {version.number}: {'better' if better else 'not better'}."

        study = run.tags["study"]
        tags = {"study": study, "study_id": study, "trial": "7"}
        return (through or self.registry).register(name, run, tags, "", decide, self.log_model)

    def log_model(self, network: Network) -> str:
        """A logged model that is enough for the registry."""
        client, text = self.registry._client, Path(network["weights"]).read_text()
        return str(client.create_logged_model(self.tracker._experiment_id, text).model_id)

    def champion(self, name: str) -> str:
        """The study of the champion."""
        version = self.registry.champion(name)
        return version.tags["study"] if version else ""

    def versions(self, name: str) -> list[Any]:
        """All versions of a model."""
        return list(self.registry._client.search_model_versions(f"name = '{name}'"))


def record(study: str, trial: str, test_accuracy: float | None = None) -> RunRecord:
    """A run of a confirmation that classifies CORRECT correctly."""
    result = run_result([float(CORRECT.mean())], test_accuracy, hash_of=study)
    result = result.model_copy(update={"fit": with_hits(result.fit, CORRECT)})
    tags = {"study": study, "study_id": study, "trial": trial, "seed_index": trial, "confirms_trial": "7"}
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
        tags={**tags, "image_shape": "[8, 8]", "classes": "10"},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real store; each test has its own model in it."""
    folder = tmp_path_factory.mktemp("registry")
    config = TrackingConfig(name="mlflow", uri=f"sqlite:///{folder / 'mlflow.db'}", experiment=None, save_weights=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow keeps artifacts there
        tracker = MlflowTracker(str(config.uri), "confirmations")
        yield Store(tracker, config, Registry(config), folder)


@pytest.fixture(scope="module")
def networks(store: Store) -> list[LoggedRun]:
    """The tested runs of studies a and b."""
    return [store.network("a"), store.network("b")]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of this test's own."""
    return registry.model_name(str(request.node.name))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_only_a_better_network_takes_the_alias(
    store: Store, networks: list[LoggedRun], name: str, order: tuple[int, int]
) -> None:
    """The first network is the champion, b replaces a, and the same commands again change nothing."""
    runs = [networks[index] for index in order]
    before = [store.register(name, run) for run in runs]

    again = [store.register(name, run) for run in runs]

    assert before[0] == "Version 1: better."
    assert store.champion(name) == "b"
    assert len(store.versions(name)) == 2
    assert again == before


def test_an_alias_that_a_user_moved_stays(store: Store, networks: list[LoggedRun], name: str) -> None:
    """Another confirm does not move it back."""
    for run in networks:
        store.register(name, run)
    store.registry._client.set_registered_model_alias(name, ALIAS, "1")

    store.register(name, networks[1])

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


@pytest.mark.parametrize("writes", range(3))
def test_killed_after_any_write_it_continues(store: Store, networks: list[LoggedRun], name: str, writes: int) -> None:
    """After create_model_version, the alias, the decision: called again, there is one version, with the alias."""
    store.register(name, networks[0])
    dying = Registry(store.config)
    dying._client = Dying(dying._client, writes)

    with pytest.raises(Killed):
        store.register(name, networks[1], dying)
    decision = store.register(name, networks[1])

    assert decision == "Version 2: better."
    assert store.champion(name) == "b"
    assert len(store.versions(name)) == 2


def test_the_predictions_of_a_versions_runs_are_found(store: Store, name: str) -> None:
    """One entry per seed, without the tested run; deleted runs are missing."""
    store.register(name, store.network("deleted"))
    version = store.registry.champion(name)
    assert version is not None
    before = registry.correct_predictions(store.config, version)
    first = next(store.tracker.find({"study_id": "deleted", "trial": "0"}))
    store.registry._client.delete_run(first.run_id)

    after = registry.correct_predictions(store.config, version)

    assert before == [np.packbits(CORRECT).tobytes()] * 3
    assert after == before[:2]


# ------------------------------------------------------------------------------------------------- predict


def find(store: Store, folder: Path, *overrides: str, run_id: str = "") -> tuple[LoggedRun, Network]:
    """What `predict` finds in the store."""
    config = compose(parse_request(overrides)).model_copy(update={"tracking": store.config})
    return predict.find_network(config, run_id, folder)


def test_predict_finds_the_champion_of_a_file_by_its_name(
    store: Store, networks: list[LoggedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`predict data=npz data.root=…` uses the model that `confirm` registers, and reads no data set."""
    monkeypatch.setattr("mnistexp.data.dataset.load", lambda *_: pytest.fail("loads the data set"))
    store.register(registry.model_name("npz", "some/where/own.digits.npz"), networks[0])

    run, network = find(store, tmp_path, "data=npz", "data.root=own.digits.npz")

    assert run == networks[0]
    assert Path(network["weights"]).read_text() == "a"
    assert (network["weights_hash"], network["features"], network["classes"]) == ("hash of a", 64, 10)


def test_what_predict_cannot_use_is_refused(store: Store, tmp_path: Path) -> None:
    """A store without a champion, no store at all, a run without weights or shape or digits; no file is made."""
    bare = record("bare", "0")
    without_weights = store.tracker.log(bare)
    tags = {key: value for key, value in bare.tags.items() if key != "image_shape"}
    without_shape = store.tracker.log(bare.model_copy(update={"tags": tags}))
    clothes = bare.config.model_copy(update={"data": compose(parse_request(["data=fashion_mnist"])).data})
    without_digits = store.tracker.log(bare.model_copy(update={"config": clothes}))
    nowhere = store.config.model_copy(update={"uri": f"sqlite:///{tmp_path / 'none.db'}"})

    with pytest.raises(StoreError, match="no champion for mnist"):
        find(store, tmp_path, "data=mnist")
    with pytest.raises(StoreError, match="no runs are logged here"):
        Registry(nowhere)
    with pytest.raises(StoreError, match="no weights in MLflow"):
        find(store, tmp_path, run_id=without_weights)
    with pytest.raises(StoreError, match=without_shape):
        find(store, tmp_path, run_id=without_shape)
    with pytest.raises(ConfigError, match="fashion_mnist"):
        find(store, tmp_path, run_id=without_digits)
    assert list(tmp_path.iterdir()) == []
