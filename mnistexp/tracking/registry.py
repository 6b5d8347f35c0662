"""MLflow's model registry: which network is the champion, and how another one becomes it."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnistexp.analysis.statistics import Bools, crossed, unpack_correct
from mnistexp.config.schema import RunConfig, TrackingConfig, recorded_config
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import reason
from mnistexp.storage.urls import redact, sqlite_path
from mnistexp.tracking import runs as tracking
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.store import open_client

ALIAS = "champion"
LEVEL = 0.95
HITS = "mnistexp.validation_correct"  # the tag of a run
WEIGHTS = ".weights.h5"  # how the name of a run's weights ends

VERDICT, SUCCEEDS, CROWNED = "verdict", "succeeds", "crowned"  # tags of a version


@dataclass(frozen=True)
class Version:
    """A registered model's version."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Champion:
    """The network that has the alias, with what it takes to build it again."""

    version: str
    run_id: str
    config: RunConfig
    weights: Path  # a .weights.h5 file, downloaded; to be trusted only if its hash is `weights_hash`
    weights_hash: str  # SHA-256, as trainer.weights_hash has it
    image_shape: tuple[int, ...]
    classes: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Candidate:
    """A confirmed network that may become the champion."""

    run: LoggedRun  # the one that was tested, whose weights are logged
    study: str
    study_id: str  # of the confirmation
    trial: int  # in the study
    hits: Bools  # [seeds, images]: of all runs of this config in the confirmation
    image_shape: tuple[int, ...]
    classes: int
    test_accuracy: float
    chosen_from: int = 1  # how many configs the confirmation ranked

    @property
    def tags(self) -> dict[str, str]:
        """What a version says of where it comes from."""
        return {
            "study": self.study,
            "study_id": self.study_id,
            "trial": str(self.trial),
            "data_fingerprint": self.run.data_fingerprint,
            "weights_hash": self.run.weights_hash,
            "val_accuracy": f"{self.hits.mean():.6f}",
            "test_accuracy": f"{self.test_accuracy:.6f}",
            "seeds": str(len(self.hits)),
            "image_shape": json.dumps(self.image_shape),
            "classes": str(self.classes),
        }


Export = Callable[[Path, Path, str], None]
"""Makes a model: from a weights file, into a folder, under this model id."""


class Registry:
    """The models of one MLflow store. Each method raises StoreError where that can't be used."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        path = sqlite_path(uri)
        if path is not None and not path.exists():
            raise StoreError(f"{path}: nothing is registered here; run `python -m mnistexp confirm` first")
        self._uri = uri
        self._errors: tuple[type[Exception], ...] = (MlflowException, SQLAlchemyError, OSError, ImportError)
        with self._faults_said():
            open_client(uri, create=True)
            self._client: Any = MlflowClient(uri, registry_uri=uri)

    @contextmanager
    def _faults_said(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            why = reason(error, self._uri)
            raise StoreError(
                f"tracking.uri={redact(self._uri)}: MLflow's model registry can't be used: {why}"
            ) from None

    def champion(self, name: str) -> Version | None:
        """Who has the alias; None where nobody has."""
        with self._faults_said():
            found = next(iter(self._client.search_registered_models(f"name = '{name}'")), None)
            number = found.aliases.get(ALIAS) if found else None
            return _version(self._client.get_model_version(name, number)) if number else None

    def of_run(self, name: str, run_id: str) -> Version | None:
        """The version that was made of a run."""
        with self._faults_said():
            found = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
            return next(map(_version, found), None)

    def add(self, name: str, candidate: Candidate, export: Export) -> Version:
        """Have the candidate's model made, and register it."""
        with self._faults_said(), tempfile.TemporaryDirectory(prefix="mnistexp-") as scratch:
            run_id, folder = candidate.run.run_id, Path(scratch)
            weights = self.weights(run_id, folder)
            model_id = self._logged_model(name, run_id, lambda made: export(weights, folder / "model", made), folder)
            if not list(self._client.search_registered_models(f"name = '{name}'")):
                self._make_registered_model(name)
            made = self._client.create_model_version(
                name, f"models:/{model_id}", run_id, candidate.tags, description=_about(candidate), model_id=model_id
            )
            return _version(made)

    def _logged_model(self, name: str, run_id: str, make: Callable[[str], None], folder: Path) -> str:
        """Log a model to a run, as `mlflow.keras.log_model` does, which would open the finished run again."""
        from mlflow.entities import LoggedModelOutput

        experiment = self._client.get_run(run_id).info.experiment_id
        model_id = str(self._client.create_logged_model(experiment, name, run_id, model_type="classifier").model_id)
        status = "FAILED"
        try:
            make(model_id)
            self._client.log_model_artifacts(model_id, str(folder / "model"))
            self._client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
            status = "READY"
        finally:
            self._client.finalize_logged_model(model_id, status)
        return model_id

    def _make_registered_model(self, name: str) -> None:
        about = (
            f"Networks for {name} that `mnistexp confirm` chose. Input: float32 [N, features], images flattened and in "
            f"[0, 1], or as they were if they were floats; output: probabilities [N, classes]. The alias `{ALIAS}` "
            f"moves only where a newcomer is better by more than the noise."
        )
        try:
            self._client.create_registered_model(name, description=about)
        except self._errors:  # somebody else made it just now
            self._client.get_registered_model(name)

    def weights(self, run_id: str, folder: Path) -> Path:
        """Download a run's weights."""
        with self._faults_said():
            paths = [item.path for item in self._client.list_artifacts(run_id)]
            path = next((path for path in paths if re.fullmatch(r"[\w-]+" + re.escape(WEIGHTS), path)), None)
            if path is None:
                raise StoreError(f"run {run_id} has no weights in MLflow; give a run with tracking.save_weights=true")
            return Path(self._client.download_artifacts(run_id, path, str(folder)))

    def tag(self, version: Version, tags: Mapping[str, str]) -> Version:
        """Write a version's tags, in this order. Returns: the version with them."""
        with self._faults_said():
            for key, value in tags.items():
                self._client.set_model_version_tag(version.name, version.number, key, value)
        return Version(version.name, version.number, version.run_id, {**version.tags, **tags})

    def crown(self, version: Version) -> None:
        """Give a version the alias."""
        with self._faults_said():
            self._client.set_registered_model_alias(version.name, ALIAS, version.number)
        self.tag(version, {CROWNED: "true"})

    def load(self, version: Version, folder: Path) -> Champion:
        """A version with its run's config and its weights, which go into `folder`."""
        with self._faults_said():
            run = self._client.get_run(version.run_id)
        try:
            shape = tuple(int(side) for side in json.loads(version.tags["image_shape"]))
            config_json = tracking.whole_tag(run.data.tags, "mnistexp.config")
            known = (recorded_config(config_json), run.data.tags["weights_hash"])
            classes = int(version.tags["classes"])
        except (KeyError, ValueError, TypeError):
            raise StoreError(
                f"version {version.number} of the model {version.name} was not registered by this version of mnistexp; "
                f"run `python -m mnistexp confirm`"
            ) from None
        weights = self.weights(version.run_id, folder)
        config, digest = known
        metrics = run.data.metrics
        return Champion(version.number, version.run_id, config, weights, digest, shape, classes, metrics)


def model_name(data: str, source: str | None = None) -> str:
    """The registered model of a data set, in which all studies of it compete; of the user's own file, by its name.

    >>> model_name("mnist"), model_name("npz", "my data/digits.v2.npz")
    ('mnist', 'npz-digits-v2')
    """
    own = f"-{Path(source).stem}" if data == "npz" and source else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", data + own)  # MLflow forbids dots, slashes and the like


def champion(uri: str, name: str, folder: Path) -> Champion:
    """The champion of a registered model (see `model_name`); its weights go into `folder`. Raises: StoreError."""
    registry = Registry(uri)
    version = registry.champion(name)
    if version is None:
        raise StoreError(
            f"there is no champion for {name} in {redact(uri)} yet; run `python -m mnistexp sweep` and then "
            f"`python -m mnistexp confirm` first"
        )
    return registry.load(version, folder)


def _version(found: Any) -> Version:
    return Version(str(found.name), str(found.version), str(found.run_id), dict(found.tags))


def _about(candidate: Candidate) -> str:
    return (
        f"Trial {candidate.trial} of study {candidate.study}: validation accuracy {candidate.hits.mean():.4f} over "
        f"{len(candidate.hits)} fresh seeds; this network's test accuracy {candidate.test_accuracy:.4f}."
    )


def hits_of(config: TrackingConfig, version: Version, images: int) -> Bools | None:
    """Which validation images the runs got right by which a version was confirmed; None if MLflow can't say."""
    tracker = tracking.open_tracker(config, "", create=False, run_id=version.run_id)
    whose = {"study_id": version.tags.get("study_id", ""), "rival": version.tags.get("trial", ""), "state": "COMPLETE"}
    runs = sorted(tracker.find(whose), key=lambda run: int(run.tags["repeat"]))
    packed = [base64.b64decode(run.tags.get(HITS, "")) for run in runs]
    try:
        return unpack_correct(packed, images) if packed else None
    except ValueError:  # of another number of images, or more than a tag holds
        return None


# ------------------------------------------------------------------------------------------ who is the champion


def enter(
    registry: Registry,
    name: str,
    candidate: Candidate,
    hits_of: Callable[[Version], Bools | None],
    export: Export,
) -> str:
    """Register a candidate, once, and give it the alias if it beats the present champion by more than the noise.

    What was decided is a tag of the version before the alias moves: killed in between, the next call goes on.

    Args:
        name: of the registered model.
        hits_of: which validation images a champion's runs got right, [seeds, images]; None if that isn't known.
        export: makes the model.

    Returns: the verdict, as a sentence.
    """
    version, present = registry.of_run(name, candidate.run.run_id), registry.champion(name)
    if version is None:
        if present and _same_network(present, candidate):
            return f"Version {present.number} of {name} is the champion already: these are its very weights."
        version = registry.add(name, candidate, export)
    if VERDICT not in version.tags:
        better, text = judge(version, present, candidate, hits_of)
        before = (present.number if present else "0") if better else ""
        version = registry.tag(version, {SUCCEEDS: before, VERDICT: text})
    if CROWNED not in version.tags and version.tags[SUCCEEDS] == (present.number if present else "0"):
        registry.crown(version)
        return version.tags[VERDICT]
    if version.tags[SUCCEEDS] and present and present.number != version.number:  # it was better then
        return f"{version.tags[VERDICT]} Since then version {present.number} has become it."
    return version.tags[VERDICT]


def _same_network(present: Version, candidate: Candidate) -> bool:
    return all(present.tags.get(key) == candidate.tags[key] for key in ("weights_hash", "data_fingerprint"))


def judge(
    version: Version, present: Version | None, candidate: Candidate, hits_of: Callable[[Version], Bools | None]
) -> tuple[bool, str]:
    """Whether a version is to be champion, and why."""
    new = f"version {version.number}"
    if present is None:
        return True, f"{new.capitalize()} of {version.name} is the champion now: there was none."
    old = f"version {present.number}"
    stays = f"{old.capitalize()} of {version.name} stays the champion"
    if present.tags.get("data_fingerprint") != candidate.run.data_fingerprint:
        return False, (
            f"{stays}: it was confirmed on other data, or another split of them, than {new}, so nothing says which is "
            f"better; if {new} is to follow, give it the alias {ALIAS} in `python -m mnistexp ui`."
        )
    theirs = hits_of(present)
    if theirs is None or len(theirs) < 2 or theirs.shape[1:] != candidate.hits.shape[1:]:
        return False, f"{stays}: which images its runs got right isn't in MLflow, so {new} can't be compared with it."
    seeds = min(len(theirs), len(candidate.hits))
    # The best of many is ahead by luck more often than one named beforehand: Bonferroni over those it was chosen from.
    level = 1 - (1 - LEVEL) / candidate.chosen_from
    lead = crossed(candidate.hits[:seeds].astype("int8") - theirs[:seeds].astype("int8"), level)
    interval = f"{lead.low:+.4f} to {lead.high:+.4f}, {seeds} seeds each on the same images"
    if lead.low > 0:
        ahead = f"it is ahead of {old} by {lead.mean:.4f} ({interval})"
        return True, f"{new.capitalize()} of {version.name} is the champion now: {ahead}."
    return False, f"{stays}: {new} is not ahead of it by more than the noise: {lead.mean:+.4f} ({interval})."
