"""The command `confirm`: train a study's best configs again with fresh seeds, test the best, update the champion.

All runs are trials of one further study, run by the same Sweep as a search: first each config with each seed, without
the test split, then the best network once more, with it. So kill -9, Ctrl-C, several processes and an unreachable
MLflow are handled as in a sweep: the same command continues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mnistexp.analysis import confirmation, history
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History, Trial
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import Config
from mnistexp.errors import INTERRUPTED, ConfigError, DataError, MnistexpError, StoreError
from mnistexp.report import confirmation_text
from mnistexp.study import database as databases
from mnistexp.study import repeats
from mnistexp.study.database import Database
from mnistexp.study.progress import CONFIRMATION, Progress
from mnistexp.study.repeats import MAX_SEEDS, Repeat, RepeatContext, RepeatSpace
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.terminal import console, display
from mnistexp.tracking import registry, run_context
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.registry import Registry, Version
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.runs import Tracker, open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.workers import process, start
from mnistexp.workers.pool import WorkerPool


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
    wanted = tuple(Repeat(index, seed) for seed in range(seeds) for index in range(len(candidates)))
    fresh = repeats.fresh_seeds(study.fingerprint.get("seed"), candidates)
    space = RepeatSpace(study.name, study.id, candidates, fresh, prepared.config, wanted)
    changes = {  # a list of points, no pruning, no weights
        "name": space.study_name,
        "target": None,
        "sampler": config.study.sampler.model_copy(update={"name": "grid"}),
        "pruner": config.study.pruner.model_copy(update={"name": "none"}),
    }
    tracking = {"experiment": config.tracking.experiment or study.name, "save_weights": False}
    nodes = {"study": config.study.model_copy(update=changes), "tracking": config.tracking.model_copy(update=tracking)}
    base = prepared.config.model_copy(update=nodes)
    overrides = ParsedOverrides(config_dir=request.config_dir or study.config_dir)
    return replace(space, base=base), replace(prepared, request=overrides, config=base)


def _start_workers(prepared: PreparedRun, at_most: int) -> WorkerPool:
    dataset = prepared.dataset
    return start.start_workers(prepared.config, at_most=at_most, dataset=dataset, fingerprint=dataset.fingerprint)


@dataclass
class Confirm:
    """One process of a confirmation."""

    study: History
    space: RepeatSpace
    context: RunContext
    database: Database
    tracker: Tracker
    args: CommandArgs
    start_workers: Callable[[PreparedRun, int], WorkerPool] = _start_workers
    sweep: Sweep | None = None  # the latest one

    def run(self) -> int:
        """Run the missing repeats, print the ranking, test the chosen network and register it.

        Returns: the exit code.
        """
        code = self._run_repeats(self.space)
        found = self._read()
        if found is not None and found.test is None and not code:
            console.note(f"training #{found.chosen.number} with its best seed again, to test it")
            tests = [trial for trial in self._finished() if confirmation.repeat_of(trial).test]
            code = self._run_repeats(replace(self.space, repeats=(found.best._replace(test=len(tests) + 1),)))
            found = self._read()
        if found is not None:
            console.say_lines(confirmation_text.lines(found))
        if code:
            return code
        if found is None:
            console.say("\nevery config has a failed run, so none is chosen; give a larger top=")
            return 1
        if found.test is None:
            reason = self._finished()[-1].reason
            console.say(f"\n#{found.chosen.number} was not tested: {reason}; the same command tries again")
            return 1
        return self._register_once(found)

    def _run_repeats(self, space: RepeatSpace) -> int:
        """Run the repeats of a space until all have ended. Returns: the exit code, 0 if they have."""
        while True:
            ended = self._finished()
            known = {confirmation.repeat_of(trial) for trial in ended}
            missing = sum(repeat not in known for repeat in space.repeats)
            summary = self._run_sweep(space, len(ended) + missing, missing)
            if summary.interrupted:
                console.say(f"\n{summary.stopped}; the same command continues")
                return INTERRUPTED
            if set(space.repeats) <= {confirmation.repeat_of(trial) for trial in self._finished()}:
                return 0
            if summary.progress.done < summary.progress.total:
                console.say(f"\n{summary.stopped}: {summary.progress.done} of {summary.progress.total} runs are done")
                return 1

    def _run_sweep(self, space: RepeatSpace, trials: int, missing: int) -> Summary:
        config = space.base.model_copy(update={"study": space.base.study.model_copy(update={"trials": trials})})
        prepared = replace(self.context.prepared, config=config)
        context = RepeatContext(**{**vars(self.context), "prepared": prepared}, space=space)
        view = display.make_display(self.args.flags, context.title)
        title = f"confirm {self.study.name}"
        self.sweep = Sweep(
            self.database, context, space, self.tracker, _callbacks(view), title=title, page=lambda _: self._page()
        )
        pool = self.start_workers(prepared, missing) if missing else None
        try:
            return display.run(self.sweep, pool, view)
        finally:
            if pool is not None:
                pool.close()

    def _finished(self) -> Sequence[Trial]:
        """Return the finished trials of this confirmation."""
        known = self.database.retry(lambda: history.study_names(self.database.storage, self.space.study_name))
        return self._history().trials if known else ()

    def _history(self) -> History:
        return self.database.retry(lambda: history.load(self.database.storage, self.space.study_name))

    def _read(self) -> Confirmation | None:
        storage, name = self.database.storage, self.space.study_name
        return self.database.retry(lambda: confirmation.load(storage, self.study, name))

    def _page(self) -> str:
        """Return the description of the parent run in MLflow."""
        found = self._read()
        return confirmation_text.page(found) if found else confirmation_text.unranked_page(self.space)

    # ------------------------------------------------------------------------------------------ champion

    def _register_once(self, tested: Confirmation) -> int:
        """Register the tested network, unless another process does so now. Returns: the exit code."""
        codes: list[int] = []
        if not self.database.try_upload_lock(lambda: codes.append(self._register(tested))):
            console.note("another process registers or uploads at this moment; type the same command again")
            return 2
        return codes[0]

    def _register(self, tested: Confirmation) -> int:
        tracking = self.space.base.tracking
        assert self.sweep is not None
        assert tested.test is not None
        try:
            decision = "Not registered: tracking=none keeps no models."
            if tracking.name != "none":
                decision = self._decision(Registry(tracking), tested)
            metrics = {
                "best_val_accuracy": tested.chosen.interval.mean,
                "confirm/low": tested.chosen.interval.low,
                "confirm/high": tested.chosen.interval.high,
                "test_accuracy": tested.test.accuracy,
                "confirm/test_low": tested.test.low,
                "confirm/test_high": tested.test.high,
            }
            console.say_lines(console.wrap(decision, "  ", "    "))
            repeats.keep_decision(self.database, tested.name, decision)
            self.tracker.finish_parent(self.sweep.open_parent(), metrics, self._page(), "FINISHED")
        except MnistexpError as error:
            console.note(f"mnistexp: {error}. The confirmation is stored; the same command tries to register again")
            return error.exit_code
        return 0

    def _decision(self, known: Registry, tested: Confirmation) -> str:
        """Register the tested network. Returns: whether it became the champion, and why."""
        tracking, test, mean = self.space.base.tracking, tested.test, tested.chosen.interval.mean
        assert test is not None
        study_id, dataset = self._history().id, self.context.prepared.dataset
        run = next(self.tracker.find({"study_id": study_id, "trial": str(test.trial)}), None)
        if run is None:
            raise StoreError(f"study.name={tested.name}: MLflow lacks the run of the tested network")
        name = registry.model_name(dataset.name, dataset.source)
        tags = {
            "study": self.study.name,
            "study_id": study_id,
            "trial": str(tested.chosen.number),
            "data_fingerprint": run.data_fingerprint,
            "weights_hash": run.weights_hash,
            "val_accuracy": f"{mean:.6f}",
            "test_accuracy": f"{test.accuracy:.6f}",
            "seeds": str(tested.seeds),
        }
        about = (
            f"Trial {tested.chosen.number} of study {self.study.name}: validation accuracy {mean:.4f}, mean of "
            f"{tested.seeds} fresh seeds. Test accuracy of this network: {test.accuracy:.4f}."
        )

        def log_model(network: registry.Network) -> str:
            request = {**network, "tracking_uri": known.uri, "run_id": run.run_id, "name": name}
            return str(process.ask("mnistexp.training.inference", request)["model_id"])

        def decide(new: Version, champion: Version | None) -> tuple[bool, str]:
            return compare_with_champion(tested, new, champion, lambda old: registry.correct_predictions(tracking, old))

        return known.register(name, run, tags, about, decide, log_model)


def _callbacks(view: display.Quiet) -> SweepCallbacks:
    """Return the view's callbacks. Single runs are not compared, so plain lines show no best run."""

    def print_run(run: RunRecord, progress: Progress) -> None:
        score = f"val {run.result.fit.best.val_accuracy:.4f}" if run.result else f"failed: {run.reason}"
        console.say(f"{progress.done:>3}/{progress.total}  {score}  {run.name}")

    return replace(view.callbacks, on_trial=print_run) if isinstance(view, display.Plain) else view.callbacks


def compare_with_champion(
    tested: Confirmation,
    new: Version,
    champion: Version | None,
    correct_predictions: Callable[[Version], Sequence[bytes]],
) -> tuple[bool, str]:
    """Decide whether a new version becomes the champion.

    Args:
        correct_predictions: np.packbits of the validation images that each of the champion's runs got right.

    Returns: the decision, and a sentence that explains it.
    """
    promoted = f"Version {new.number} of {new.name} is the champion now"
    if champion is None or champion.number == new.number:  # the latter after a kill
        return True, f"{promoted}; there was no other."
    kept = f"Version {champion.number} of {new.name} stays the champion: version {new.number}"
    if champion.tags.get("data_fingerprint") != new.tags["data_fingerprint"]:
        return False, (
            f"{kept} was confirmed on other data or another split, so the two cannot be compared. To promote it, give "
            f"version {new.number} the alias {registry.ALIAS} in `python -m mnistexp ui`."
        )
    difference = confirmation.difference_to_champion(tested.chosen, correct_predictions(champion), len(tested.configs))
    if difference is None:
        return False, f"{kept} cannot be compared with it, because MLflow lacks the predictions of the champion's runs."
    interval = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}, paired by seed and image)"
    if difference.low > 0:
        return True, f"{promoted}; it is better than version {champion.number} by {interval}."
    return False, f"{kept} is not significantly better: {interval}."
