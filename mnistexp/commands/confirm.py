"""The command `confirm`: train a study's best configs again with fresh seeds, test the best, update the champion.

The repeats are trials of one further study, run by the same Sweep as a search. So kill -9, Ctrl-C, several processes
and an unreachable MLflow are handled as in a sweep: the same command continues. The one run that evaluates the test
split is stored in an attribute of that study before anything else uses it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mnistexp.analysis import confirmation, history
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import Config
from mnistexp.data.dataset import Dataset
from mnistexp.errors import INTERRUPTED, ConfigError, DataError, MnistexpError, StoreError, TrainingError
from mnistexp.report import confirmation_text
from mnistexp.study import database as databases
from mnistexp.study import repeats
from mnistexp.study.database import Database
from mnistexp.study.fingerprint import CONFIRMATION
from mnistexp.study.repeats import MAX_SEEDS, Repeat, RepeatContext, RepeatSpace
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.terminal import console, display
from mnistexp.tracking import registry, run_context
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.registry import Version
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.runs import Tracker, open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.training.results import RunResult
from mnistexp.workers import process, start
from mnistexp.workers.pool import WorkerPool

StartWorkers = Callable[[PreparedRun, int], WorkerPool]


def confirm(request: ParsedOverrides, args: CommandArgs) -> int:
    """Train a study's best configs again with fresh seeds, rank them, test the best one and register it."""
    top, seeds = args.int_arg("top", 5), args.int_arg("seeds", 5, least=2)
    if seeds > MAX_SEEDS:
        raise ConfigError(f"seeds={seeds}: at most {MAX_SEEDS}")
    refuse_search(request, "confirm")
    refuse_hyperparameters(request, "confirm")
    config = configs.compose(request)
    with databases.reading(config.study.storage) as readable:
        study = history.load(readable, run_context.study_name(config))
    space, prepared = prepare(request, config, study, top, seeds)
    if len(space.candidates) < top:
        console.note(f"top={top}: study {study.name} has only {len(space.candidates)} different complete configs")
    databases.check_apart(config.study.storage, resolved_uri(config.tracking))
    database = databases.open_for_sweep(config.study.storage)
    try:
        tracker = open_tracker(prepared.config.tracking, prepared.experiment)
        return Confirm(study, space, run_context.create_context(prepared), database, tracker, args).run()
    finally:
        database.close()


def prepare(
    request: ParsedOverrides, config: Config, study: History, top: int, seeds: int
) -> tuple[RepeatSpace, PreparedRun]:
    """Return the runs of a confirmation and their config. Raises: StoreError, DataError if they cannot be run."""
    if CONFIRMATION in study.fingerprint:
        raise StoreError(f"study.name={study.name}: is a confirmation itself; give the name of its study")
    candidates = confirmation.candidates(study, top)
    if not candidates:
        raise StoreError(f"study.name={study.name}: no trial of it completed; run `python -m mnistexp sweep` first")
    user_code.require_for(*(each.config for each in candidates))
    prepared = run_context.prepare_recorded(request, config, candidates[0].config)
    if study.ranked[0].record and study.ranked[0].record.data_fingerprint != prepared.dataset.fingerprint:
        raise DataError(
            f"study.name={study.name}: was run on other data than {prepared.dataset.source} has now (the fingerprints "
            f"differ); give the data.root=… of the study's data"
        )
    fresh = repeats.fresh_seeds(study.fingerprint.get("seed"), candidates)
    space = RepeatSpace(study.name, study.id, candidates, fresh, seeds, prepared.config)
    base = _study_config(prepared.config, study, space)
    overrides = ParsedOverrides(config_dir=request.config_dir or study.config_dir)
    return replace(space, base=base), replace(prepared, request=overrides, config=base)


def _study_config(config: Config, study: History, space: RepeatSpace) -> Config:
    """Return the config of the confirmation's study: a list of points, no pruning, no weights."""
    changes = {
        "name": space.study_name,
        "trials": len(space.candidates) * space.count,
        "target": None,
        "sampler": config.study.sampler.model_copy(update={"name": "grid"}),
        "pruner": config.study.pruner.model_copy(update={"name": "none"}),
    }
    tracking = {"experiment": config.tracking.experiment or study.name, "save_weights": False}
    return config.model_copy(
        update={
            "study": config.study.model_copy(update=changes),
            "tracking": config.tracking.model_copy(update=tracking),
        }
    )


def _start_workers(prepared: PreparedRun, at_most: int) -> WorkerPool:
    dataset = prepared.dataset
    return start.start_workers(prepared.config, at_most=at_most, dataset=dataset, fingerprint=dataset.fingerprint)


@dataclass(frozen=True)
class Confirm:
    """One process of a confirmation."""

    study: History
    space: RepeatSpace
    context: RunContext
    database: Database
    tracker: Tracker
    args: CommandArgs
    start_workers: StartWorkers = _start_workers

    def run(self) -> int:
        """Run the missing repeats, print the ranking, then test and register the chosen network.

        Returns: the exit code.
        """
        sweep, summary = self._run_repeats()
        found = self._read()
        if found is not None:
            console.say_lines(confirmation_text.lines(found))
        done, total = summary.progress.done, summary.progress.total
        if summary.interrupted:
            console.say(f"\n{summary.stopped}; the same command continues")
            return INTERRUPTED
        if done < total:
            console.say(f"\n{summary.stopped}: {done} of {total} runs are done")
            return 1
        if found is None:
            console.say(
                "\nevery config has a failed run or too few seeds, so none is chosen; give a larger top= or seeds="
            )
            return 1
        codes: list[int] = []
        if self.database.try_upload_lock(lambda: codes.append(self._finish(sweep, found))):
            return codes[0]
        console.note("another process tests or uploads at this moment; type the same command again")
        return 2

    def _read(self) -> Confirmation | None:
        storage = self.database.storage
        return self.database.retry(lambda: confirmation.read(storage, self.study, self._history()))

    def _history(self) -> History:
        return history.load(self.database.storage, self.space.study_name)

    def _run_repeats(self) -> tuple[Sweep, Summary]:
        """Train every candidate with every seed, without the test split."""
        context = RepeatContext.of(self.context, self.space)
        view = display.make_display(self.args.flags, self.space.base.study.timeout, context.title)
        sweep = Sweep(
            self.database,
            context,
            self.space,
            self.tracker,
            _callbacks(view),
            evaluate_test=False,
            title=f"confirm {self.study.name}",
            page=lambda progress: confirmation_text.progress_page(self.space, progress),
        )
        missing = self.space.base.study.trials - sweep.progress.done
        pool = self.start_workers(self.context.prepared, missing) if missing > 0 else None
        try:
            return sweep, display.run(sweep, pool, view)
        finally:
            if pool is not None:
                pool.close()

    # ------------------------------------------------------------------------------- test and champion

    def _finish(self, sweep: Sweep, found: Confirmation) -> int:
        """Test the chosen network once and register it. Returns: the exit code."""
        numbers = [candidate.number for candidate in self.space.candidates]
        repeat = Repeat(numbers.index(found.chosen.number), found.best_seed_index)
        with TemporaryDirectory(prefix="mnistexp-") as folder:
            weights = Path(folder) / "model.weights.h5"
            try:
                record = self._tested_run(repeat, weights)
            except TrainingError as error:
                console.say(f"\n#{found.chosen.number} was not tested: {error}; the same command tries again")
                return 1
            tested = self._read()
            assert tested is not None
            console.say_lines(confirmation_text.test_lines(tested))
            try:
                decision = self._register(tested, self._logged(sweep, repeat, record, weights))
            except MnistexpError as error:
                console.note(f"mnistexp: {error}. The confirmation is stored; the same command tries to register again")
                return error.exit_code
        console.say_lines(console.wrap(decision, "  ", "    "))
        repeats.keep_decision(self.database, tested.name, decision)
        self._close_parent(sweep, replace(tested, decision=decision))
        return 0

    def _tested_run(self, repeat: Repeat, weights: Path) -> RunRecord:
        """Return the record of the run that evaluated the test split. If there is none, train it.

        Raises: TrainingError.
        """
        name, storage = self.space.study_name, self.database.storage
        known = self.database.retry(lambda: repeats.tested_runs(storage, name)).get(repeat)
        if known is not None:
            return known
        number, started = self.space.candidates[repeat.config_index].number, time.time()
        if not self.args.flags.get("-q"):
            console.note(f"training #{number} with its best seed again, to test it")
        result = self._train(repeat, weights, evaluate_test=True)
        config, context = self.space.config(repeat), RepeatContext.of(self.context, self.space)
        tags = {
            "study": name,
            # Not the id of the study: the run is not one of its trials.
            "study_id": f"{self._history().id}.test.{repeat.config_index}.{repeat.seed_index}",
            "final": "true",
            "test_images": str(len(self.context.prepared.dataset.test.labels)),
        }
        record = context.trial(0, config, self.space.overrides(repeat), started, "COMPLETE", tags, result=result)
        record = record.model_copy(update={"name": f"tested: {record.name}"})
        repeats.keep_tested_run(self.database, name, repeat, record)
        return record

    def _train(self, repeat: Repeat, weights: Path, *, evaluate_test: bool) -> RunResult:
        pool = self.start_workers(self.context.prepared, 1)
        try:
            config = self.space.config(repeat)
            return start.run_training(pool, config, lambda _: None, weights, test=evaluate_test)
        finally:
            pool.close()

    def _logged(self, sweep: Sweep, repeat: Repeat, record: RunRecord, weights: Path) -> LoggedRun | None:
        """Return the tested run as MLflow has it; log it first if it is missing. None with tracking=none.

        Its weights are not stored elsewhere. If an earlier process lost them, the same training gives the same bits.
        """
        own = {key: record.tags[key] for key in ("study_id", "trial")} | {"state": "COMPLETE"}
        if not list(self.tracker.find(own)):
            if self.space.base.tracking.name != "none" and not weights.exists():
                self._restore_weights(repeat, record, weights)
            self.tracker.log(record.model_copy(update={"weights_path": weights}), sweep.open_parent(), may_exist=True)
        return next(self.tracker.find(own), None)

    def _restore_weights(self, repeat: Repeat, record: RunRecord, weights: Path) -> None:
        """Train the tested network again, without the test split. Raises: StoreError if it gets other weights."""
        again = self._train(repeat, weights, evaluate_test=False)
        if record.result is None or again.weights_hash != record.result.weights_hash:
            raise StoreError(
                "the weights of the tested network are lost, and the same training gives other ones on this machine; "
                "run confirm on the machine that tested it"
            )

    def _register(self, tested: Confirmation, run: LoggedRun | None) -> str:
        """Register the tested network and promote it if it is significantly better than the champion.

        Returns: the decision, one sentence.
        """
        tracking, dataset = self.space.base.tracking, self.context.prepared.dataset
        if run is None or tracking.name == "none":
            return "Not registered: tracking=none keeps no models."
        assert tested.test is not None
        network = registry.ConfirmedNetwork(
            run=run,
            study=self.study.name,
            study_id=self._history().id,
            trial=tested.chosen.number,
            seeds=len(tested.chosen.scores),
            val_accuracy=tested.chosen.interval.mean,
            test_accuracy=tested.test.accuracy,
        )
        name = registry.model_name(dataset.name, dataset.source)

        def decide(version: Version, champion: Version | None) -> tuple[bool, str]:
            return compare_with_champion(
                tested, run, version, champion, partial(registry.correct_predictions, tracking)
            )

        return registry.register(
            registry.Registry(resolved_uri(tracking)),
            name,
            network,
            decide,
            partial(_log_model, dataset, run, resolved_uri(tracking), name),
        )

    def _close_parent(self, sweep: Sweep, tested: Confirmation) -> None:
        """Write the result to the parent run."""
        interval, test = tested.chosen.interval, tested.test
        metrics = {"best_val_accuracy": interval.mean, "confirm/low": interval.low, "confirm/high": interval.high}
        if test is not None:
            metrics |= {"test_accuracy": test.accuracy, "confirm/test_low": test.low, "confirm/test_high": test.high}
        try:
            self.tracker.finish_parent(sweep.open_parent(), metrics, confirmation_text.page(tested), "FINISHED")
        except StoreError as error:
            console.note(f"{error}. The next confirm closes the parent run of this one")


def _callbacks(view: display.Quiet) -> SweepCallbacks:
    """Return the view's callbacks; plain lines show no best run so far, because single runs are not compared."""
    if not isinstance(view, display.Plain):
        return view.callbacks
    return replace(view.callbacks, on_trial=lambda run, progress: console.say(confirmation_text.line(run, progress)))


def compare_with_champion(
    tested: Confirmation,
    run: LoggedRun,
    new: Version,
    champion: Version | None,
    correct_predictions: Callable[[Version], Sequence[bytes]],
) -> tuple[bool, str]:
    """Decide whether a new version becomes the champion.

    Args:
        correct_predictions: np.packbits of the validation images that each of the champion's runs got right.

    Returns: the decision, and a sentence that explains it.
    """
    if champion is None:
        return True, f"Version {new.number} of {new.name} is the champion now; there was none."
    kept = f"Version {champion.number} of {new.name} stays the champion: version {new.number}"
    if champion.tags.get("data_fingerprint") != run.data_fingerprint:
        return False, (
            f"{kept} was confirmed on other data or another split, so the two cannot be compared. To promote it, give "
            f"version {new.number} the alias {registry.ALIAS} in `python -m mnistexp ui`."
        )
    difference = confirmation.compare_with_champion(tested.chosen, correct_predictions(champion), len(tested.configs))
    if difference is None:
        return False, f"{kept} cannot be compared with it, because MLflow lacks the predictions of the champion's runs."
    interval = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}, paired by seed and image)"
    if difference.low > 0:
        better = f"better than version {champion.number} by {interval}"
        return True, f"Version {new.number} of {new.name} is the champion now; it is {better}."
    return False, f"{kept} is not significantly better: {interval}."


def _log_model(dataset: Dataset, run: LoggedRun, uri: str, name: str, weights: Path) -> str:
    """Log a run's network as a model to MLflow, in a child process. Returns: the model's id."""
    features = dataset.validation.images.shape[1]
    scale = "in [0, 1]" if dataset.scale != 1 else "on the scale of the training images"
    answer = process.ask(
        "mnistexp.training.inference",
        {
            "config": run.config.model_dump(mode="json"),
            "code": user_code.plain(),
            "weights": str(weights),
            "weights_hash": run.weights_hash,
            "features": features,
            "classes": dataset.classes,
            "tracking_uri": uri,
            "run_id": run.run_id,
            "name": name,
            "metadata": {
                "data": dataset.name,
                "input": f"float32 [N, {features}]: images {list(dataset.image_shape)}, flattened row by row, {scale}",
                "output": f"float32 [N, {dataset.classes}]: the probability of each class",
            },
        },
    )
    return str(answer["model_id"])
