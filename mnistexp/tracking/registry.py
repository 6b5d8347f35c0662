"""MLflow's model registry: register tested networks, and move the alias of the champion."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking import runs
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.store import open_client

ALIAS = "champion"
CORRECT = "mnistexp.validation_correct"  # the tag of a run
WEIGHTS = re.compile(r"[\w-]+\.weights\.h5")  # the artifact of a run

DECISION, REPLACES, PROMOTED = "decision", "replaces", "promoted"  # tags of a version


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class ConfirmedNetwork:
    """A confirmed and tested network, which may become the champion."""

    run: LoggedRun  # with the test score and the weights
    study: str  # the confirmed study
    study_id: str  # of the confirmation
    trial: int  # in the confirmed study
    seeds: int
    val_accuracy: float  # mean over the seeds
    test_accuracy: float

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its version."""
        return {
            "study": self.study,
            "study_id": self.study_id,
            "trial": str(self.trial),
            "data_fingerprint": self.run.data_fingerprint,
            "weights_hash": self.run.weights_hash,
            "val_accuracy": f"{self.val_accuracy:.6f}",
            "test_accuracy": f"{self.test_accuracy:.6f}",
            "seeds": str(self.seeds),
        }

    @property
    def description(self) -> str:
        """The description of its version."""
        return (
            f"Trial {self.trial} of study {self.study}: validation accuracy {self.val_accuracy:.4f}, mean of "
            f"{self.seeds} fresh seeds. Test accuracy of this network: {self.test_accuracy:.4f}."
        )


class Registry:
    """The registered models of one MLflow store. Each method raises StoreError if the store cannot be used."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        with self._store_errors():
            open_client(uri, create=False)
            from mlflow import MlflowClient

            self._client: Any = MlflowClient(uri, registry_uri=uri)  # else MLFLOW_REGISTRY_URI is used

    def _store_errors(self) -> AbstractContextManager[None]:
        return store_errors(f"tracking.uri={redact(self._uri)}: MLflow's model registry cannot be used", self._uri)

    def champion(self, name: str) -> Version | None:
        """Return the version that has the alias."""
        with self._store_errors():
            model = next(iter(self._client.search_registered_models(f"name = '{name}'")), None)
            number = model.aliases.get(ALIAS) if model else None
            return _version(self._client.get_model_version(name, number)) if number else None

    def version_of(self, name: str, run_id: str) -> Version | None:
        """Return the version that was made from a run."""
        with self._store_errors():
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            return next(map(_version, found), None)

    def create_version(self, name: str, network: ConfirmedNetwork, log_model: Callable[[Path], str]) -> Version:
        """Log a network's model and register it.

        Args:
            log_model: logs a model with the weights of this file. Returns: its id.
        """
        run_id = network.run.run_id
        with self._store_errors(), tempfile.TemporaryDirectory(prefix="mnistexp-") as folder:
            model_id = log_model(self.download_weights(run_id, Path(folder)))
            self._ensure_registered_model(name)
            made = self._client.create_model_version(
                name, f"models:/{model_id}", run_id, network.tags, description=network.description, model_id=model_id
            )
            return _version(made)

    def _ensure_registered_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        about = (
            f"Networks for {name} that `mnistexp confirm` chose. Input: float32 [N, features], flattened images with "
            f"pixels in [0, 1], or unscaled if the data are floats. Output: probabilities [N, classes]. The alias "
            f"`{ALIAS}` moves only to a significantly better network."
        )
        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name, description=about)

    def download_weights(self, run_id: str, folder: Path) -> Path:
        """Download a run's weights into a folder."""
        with self._store_errors():
            paths = [item.path for item in self._client.list_artifacts(run_id)]
            path = next(filter(WEIGHTS.fullmatch, paths), None)
            if path is None:
                raise StoreError(f"run {run_id} has no weights in MLflow; give a run with tracking.save_weights=true")
            return Path(self._client.download_artifacts(run_id, path, str(folder)))

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> Version:
        """Write tags of a version, in this order. Returns: the version with them."""
        with self._store_errors():
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.number, key, value)
        return replace(version, tags={**version.tags, **tags})

    def promote(self, version: Version) -> None:
        """Give a version the alias."""
        with self._store_errors():
            self._client.set_registered_model_alias(version.name, ALIAS, version.number)
        self.set_tags(version, {PROMOTED: "true"})


def _version(found: Any) -> Version:
    return Version(str(found.name), str(found.version), str(found.run_id), dict(found.tags))


def model_name(data: str, source: str | None = None) -> str:
    """Return the name of the registered model of a data set; a file of the user's own adds its name.

    >>> model_name("mnist"), model_name("npz", "my data/digits.v2.npz")
    ('mnist', 'npz-digits-v2')
    """
    own = f"-{Path(source).stem}" if data == "npz" and source else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", data + own)  # MLflow forbids dots, slashes and more


def champion(uri: str, name: str) -> Version:
    """Return the champion of a registered model. Raises: StoreError if there is none."""
    version = Registry(uri).champion(name)
    if version is None:
        raise StoreError(
            f"there is no champion for {name} in {redact(uri)} yet; run `python -m mnistexp sweep` and then "
            f"`python -m mnistexp confirm` first"
        )
    return version


def correct_predictions(config: TrackingConfig, version: Version) -> list[bytes]:
    """Return np.packbits of the images that each run of a version's confirmation got right; empty if MLflow lacks them.

    The runs are in the order of their seeds.
    """
    tracker = runs.open_tracker(config, "", create=False, run_id=version.run_id)
    confirmed = {"study_id": version.tags.get("study_id", ""), "confirms_trial": version.tags.get("trial", "")}
    found = sorted(tracker.find({**confirmed, "state": "COMPLETE"}), key=lambda run: int(run.tags["seed_index"]))
    return [base64.b64decode(run.tags.get(CORRECT, "")) for run in found]


def register(
    registry: Registry,
    name: str,
    network: ConfirmedNetwork,
    decide: Callable[[Version, Version | None], tuple[bool, str]],
    log_model: Callable[[Path], str],
) -> str:
    """Register a network once, and give it the alias if it is better than the champion.

    The decision is stored in the version's tags before the alias moves, so a killed process can be continued.

    Args:
        name: of the registered model.
        decide: whether a new version replaces the champion, and why.
        log_model: see Registry.create_version.

    Returns: the decision, one sentence.
    """
    version, present = registry.version_of(name, network.run.run_id), registry.champion(name)
    if version is None:
        if present and all(present.tags.get(key) == network.tags[key] for key in ("weights_hash", "data_fingerprint")):
            return f"Version {present.number} of {name} is the champion already and has the same weights."
        version = registry.create_version(name, network, log_model)
    present_number = present.number if present else "0"
    if DECISION not in version.tags:
        better, text = decide(version, present)
        version = registry.set_tags(version, {REPLACES: present_number if better else "", DECISION: text})
    if PROMOTED not in version.tags and version.tags[REPLACES] == present_number:
        registry.promote(version)
    elif version.tags[REPLACES] and present and present.number != version.number:
        return f"{version.tags[DECISION]} Since then, version {present.number} has become the champion."
    return version.tags[DECISION]
