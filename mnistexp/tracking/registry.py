"""MLflow's model registry: register tested networks, and move the alias of the champion."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnistexp.config import user_code
from mnistexp.config.schema import TrackingConfig, UserModel
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.runs import open_tracker
from mnistexp.tracking.store import open_client, resolved_uri

ALIAS = "champion"
DECISION = "decision"  # the tag of a version
CORRECT = "mnistexp.validation_correct"  # the tag of a run
WEIGHTS = re.compile(r"[\w-]+\.weights\.h5")  # the artifact of a run

Network = Mapping[str, Any]
"""What the child process training.inference needs to load a run's network, as JSON types."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


class Registry:
    """The registered models of one MLflow store. Each method raises StoreError if the store cannot be used."""

    def __init__(self, config: TrackingConfig) -> None:
        self.uri = resolved_uri(config)
        with self._store_errors():
            open_client(self.uri, create=False)
            from mlflow import MlflowClient

            self._client: Any = MlflowClient(self.uri, registry_uri=self.uri)  # else MLFLOW_REGISTRY_URI is used

    def _store_errors(self) -> AbstractContextManager[None]:
        return store_errors(f"tracking.uri={redact(self.uri)}: MLflow's model registry cannot be used", self.uri)

    def champion(self, name: str) -> Version | None:
        """Return the version that has the alias."""
        with self._store_errors():
            model = next(iter(self._client.search_registered_models(f"name = '{name}'")), None)
            number = model.aliases.get(ALIAS) if model else None
            return _version(self._client.get_model_version(name, number)) if number else None

    def register(
        self,
        name: str,
        run: LoggedRun,
        tags: Mapping[str, str],
        description: str,
        decide: Callable[[Version, Version | None], tuple[bool, str]],
        log_model: Callable[[Network], str],
    ) -> str:
        """Register a run's network once, and give it the alias if it is better than the champion.

        The decision is stored last, so after a kill it is taken again; once stored, the alias is not moved again.

        Args:
            name: of the registered model.
            tags, description: of its new version.
            decide: whether a new version replaces the champion, and why.
            log_model: logs the network as a model. Returns: its id.

        Returns: the decision, one sentence.
        """
        with self._store_errors():
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
            version = next(map(_version, found), None)
            if version is None:
                with TemporaryDirectory(prefix="mnistexp-") as folder:
                    model_id = log_model(self.network(run, Path(folder)))
                self._ensure_registered_model(name)
                source = f"models:/{model_id}"
                made = self._client.create_model_version(
                    name, source, run.run_id, tags, description=description, model_id=model_id
                )
                version = _version(made)
            if DECISION in version.tags:
                return version.tags[DECISION]
            better, decision = decide(version, self.champion(name))
            if better:
                self._client.set_registered_model_alias(name, ALIAS, version.number)
            self._client.set_model_version_tag(name, version.number, DECISION, decision)
            return decision

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

    def network(self, run: LoggedRun, folder: Path) -> Network:
        """Return a run's network. Its weights are downloaded into a folder, and no data set is loaded."""
        if isinstance(run.config.model, UserModel):
            user_code.require(run.config.model)
        try:
            features, classes = math.prod(image_shape(run)), int(run.tags["classes"])
        except (KeyError, ValueError, TypeError):
            raise StoreError(f"run={run.run_id}: was not logged by this version of mnistexp; give another") from None
        with self._store_errors():
            paths = [item.path for item in self._client.list_artifacts(run.run_id)]
            path = next(filter(WEIGHTS.fullmatch, paths), None)
            if path is None:
                raise StoreError(
                    f"run={run.run_id}: has no weights in MLflow; give one with tracking.save_weights=true"
                )
            return {
                "code": user_code.plain(),
                "config": run.config.model_dump(mode="json"),
                "weights": str(self._client.download_artifacts(run.run_id, path, str(folder))),
                "weights_hash": run.weights_hash,
                "features": features,
                "classes": classes,
            }


def _version(found: Any) -> Version:
    return Version(str(found.name), str(found.version), str(found.run_id), dict(found.tags))


def image_shape(run: LoggedRun) -> tuple[int, ...]:
    """Return the shape of the images that a run was trained on."""
    return tuple(json.loads(run.tags["image_shape"]))


def model_name(data: str, source: str | None = None) -> str:
    """Return the name of the registered model of a data set; a file of the user's own adds its name.

    >>> model_name("mnist"), model_name("npz", "my data/digits.v2.npz")
    ('mnist', 'npz-digits-v2')
    """
    own = f"-{Path(source).stem}" if data == "npz" and source else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", data + own)  # MLflow forbids dots, slashes and more


def correct_predictions(config: TrackingConfig, version: Version) -> list[bytes]:
    """Return np.packbits of the images that each run of a version's confirmation got right; empty if MLflow lacks them.

    The runs are in the order of their seeds, without the tested one, which repeats one of them.
    """
    tracker = open_tracker(config, "", create=False, run_id=version.run_id)
    confirmed = {"study_id": version.tags.get("study_id", ""), "confirms_trial": version.tags.get("trial", "")}
    runs = [run for run in tracker.find({**confirmed, "state": "COMPLETE"}) if "test_accuracy" not in run.metrics]
    return [
        base64.b64decode(run.tags.get(CORRECT, "")) for run in sorted(runs, key=lambda r: int(r.tags["seed_index"]))
    ]
