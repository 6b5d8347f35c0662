"""The command `confirm`: a study's best configs again with fresh seeds, one look at the test split, the champion.

A confirmation is a small study of its own, run by the same Sweep over the same databases. So a kill at any moment,
Ctrl-C, several drivers at once and an MLflow that is away end as they do in a sweep: type the same command again.
Its last run, the only one that looks at the test split, is a study of one trial for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mnistexp.analysis import confirmation, history
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History
from mnistexp.analysis.statistics import unpack_correct
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import Config
from mnistexp.data.dataset import Dataset
from mnistexp.errors import INTERRUPTED, DataError, MnistexpError, StoreError
from mnistexp.report import confirmation_text
from mnistexp.study import database as storage
from mnistexp.study import repeats
from mnistexp.study.database import Database
from mnistexp.study.fingerprint import CONFIRMATION
from mnistexp.study.progress import Progress
from mnistexp.study.repeats import Point, RepeatSpace
from mnistexp.study.study import keep_verdict
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.terminal import console, display
from mnistexp.tracking import registry, run_context
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.runs import Ending, Tracker, open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.workers import process, start
from mnistexp.workers.pool import WorkerPool

Start = Callable[[PreparedRun, int], WorkerPool]


def start_workers(prepared: PreparedRun, at_most: int) -> WorkerPool:
    """Start workers on a study's data."""
    dataset = prepared.dataset
    return start.start_workers(prepared.config, at_most=at_most, dataset=dataset, fingerprint=dataset.fingerprint)


@dataclass(frozen=True)
class Question:
    """Which configs are to be confirmed, and where."""

    study: History
    space: RepeatSpace
    prepared: PreparedRun
    session: RunContext
    database: Database
    tracker: Tracker
    words: CommandArgs
    start: Start = start_workers

    @property
    def config(self) -> Config:
        """The config of the confirmation's own study."""
        return self.prepared.config


def confirm(request: ParsedOverrides, words: CommandArgs) -> int:
    """Run a study's best configs again with fresh seeds, rank them, test the best once, and register it."""
    top, seeds = words.int_arg("top", 5), words.int_arg("seeds", 5, least=2)
    refuse_search(request, "confirm")
    refuse_hyperparameters(request, "confirm")
    config = configs.compose(request)
    with storage.reading(config.study.storage) as readable:
        study = history.load(readable, run_context.study_name(config))
    space, prepared = prepare(request, config, study, top, seeds)
    if len(space.contenders) < top:
        console.note(
            f"top={top}: of study {study.name} only {len(space.contenders)} completed and differ; that many are run"
        )
    storage.check_apart(config.study.storage, resolved_uri(config.tracking))
    database = storage.open_for_sweep(config.study.storage)
    try:
        tracker = open_tracker(prepared.config.tracking, prepared.experiment)
        return answer(Question(study, space, prepared, run_context.create_context(prepared), database, tracker, words))
    finally:
        database.close()


# --------------------------------------------------------------------------------------------- what is asked


def prepare(
    request: ParsedOverrides, config: Config, study: History, top: int, seeds: int
) -> tuple[RepeatSpace, PreparedRun]:
    """The runs that are to be made, and where. Raises: StoreError, DataError if there is nothing to run, or on what."""
    if CONFIRMATION in study.fingerprint:
        raise StoreError(f"study.name={study.name}: is a confirmation itself; give the name of its study")
    found = repeats.of_study(study, top)
    if not found:
        raise StoreError(f"study.name={study.name}: no trial of it completed; run `python -m mnistexp sweep` first")
    user_code.require_for(*(each.config for each in found))
    prepared = run_context.prepare_recorded(request, config, found[0].config)
    _check_data(study, prepared)
    fresh = repeats.seeds_of(study, found, seeds)
    base = _own_study(prepared.config, study, repeats.study_name(study, found), len(found) * seeds)
    folder = request.config_dir or study.config_dir
    whose = replace(prepared, request=ParsedOverrides(config_dir=folder), config=base)
    return RepeatSpace(study, found, base, fresh), whose


def _check_data(study: History, prepared: PreparedRun) -> None:
    """Scores on other images would be compared with the sweep's. Raises: DataError."""
    records = (trial.record for trial in study.ranked)
    recorded = next(record.data_fingerprint for record in records if record)
    if recorded != prepared.dataset.fingerprint:
        raise DataError(
            f"study.name={study.name}: was run on other data than what is in {prepared.dataset.source} now (their "
            f"fingerprints differ); give data.root=… of those"
        )


def _own_study(config: Config, study: History, name: str, trials: int) -> Config:
    """The config of a study that runs a list of points, each to its end."""
    sampler = config.study.sampler.model_copy(update={"name": "grid"})
    pruner = config.study.pruner.model_copy(update={"name": "none"})
    changed = {"name": name, "trials": trials, "target": None, "sampler": sampler, "pruner": pruner}
    where = {"experiment": config.tracking.experiment or study.name, "save_weights": False}
    return config.model_copy(
        update={"study": config.study.model_copy(update=changed), "tracking": config.tracking.model_copy(update=where)}
    )


# ------------------------------------------------------------------------------------------------ the answer


def answer(asked: Question) -> int:
    """Run what is missing, say what came out, test and register what was chosen. Returns: the exit code."""
    sweep, summary = _run_all(asked)
    found = _found(asked)
    if found is not None:
        for line in confirmation_text.lines(found):
            console.say(line)
    if summary.interrupted:
        console.say(f"\n{summary.stopped}: the same command goes on from here")
        return INTERRUPTED
    if found is None and summary.progress.done >= summary.progress.total:
        console.say("\nevery config has a failed run or too few seeds: none is chosen; give a larger top=… or seeds=…")
        return 1
    if found is None or summary.progress.done < summary.progress.total:
        console.say(f"\n{summary.stopped}: {summary.progress.done} of {summary.progress.total} runs are done")
        return 1
    return _conclude(asked, sweep, found)


def _found(asked: Question) -> Confirmation | None:
    """What the runs say that are there."""
    storage_, name = asked.database.storage, asked.prepared.study_name
    return asked.database.retry(lambda: confirmation.read(storage_, asked.study, history.load(storage_, name)))


def _run_all(asked: Question) -> tuple[Sweep, Summary]:
    """Every contender with every seed; no run looks at the test split."""
    session = repeats.session(asked.session, asked.space)
    view = display.make_display(asked.words.flags, asked.config.study.timeout, session.title)
    executor = asked.start(asked.prepared, asked.config.study.trials)
    try:
        sweep = Sweep(
            asked.database,
            session,
            asked.space,
            asked.tracker,
            _listener(view),
            evaluate_test=False,
            title=f"confirm {asked.study.name}",
            page=lambda progress: _interim_page(asked, progress),
        )
        return sweep, display.run(sweep, executor, view)
    finally:
        executor.close()


def _listener(view: display.Quiet) -> SweepCallbacks:
    """Who is told: a view of trials, but in plain lines no best so far, since no single run is to be the best."""
    if isinstance(view, display.Plain):
        return replace(
            view.callbacks, on_trial=lambda record, progress: console.say(confirmation_text.line(record, progress))
        )
    return view.callbacks


def _interim_page(asked: Question, progress: Progress) -> str:
    numbers = ", ".join(f"#{contender.number}" for contender in asked.space.contenders)
    return (
        f"Were the best configs of study **{asked.study.name}** good, or lucky? Trials {numbers}, each with "
        f"{len(asked.space.seeds)} fresh seeds: {progress.done} of {progress.total} runs done. None looks at the test "
        f"split."
    )


def _conclude(asked: Question, sweep: Sweep, found: Confirmation) -> int:
    """Test the chosen config's best network, once for ever, and register it."""
    rival = next(i for i, each in enumerate(asked.space.contenders) if each.number == found.chosen.number)
    point = Point(rival, found.best_repeat)
    logged, interrupted = _test(asked, sweep, point)
    if interrupted:
        _close_parent(asked, sweep, "KILLED")
        console.say("\ninterrupted: the same command goes on from here")
        return INTERRUPTED
    tested = _found(asked)
    if tested is None or tested.test is None:
        final = _final(asked, repeats.final_name(asked.prepared.study_name, point))
        why = final.trials[-1].reason if final and final.trials else "it was not run"
        _close_parent(asked, sweep, "FAILED")
        console.say(f"\n#{found.chosen.number} was not tested: {why}; the same command tries again")
        return 1
    console.say(f"\n#{tested.chosen.number} is chosen, and was tested once:")
    _say(f"{confirmation_text.test_sentence(tested.test)}.")
    _say(_same_bits(asked, point))
    if tested.test_evaluations > 1:
        _say(f"The confirmations of {asked.study.name} used the test split {tested.test_evaluations} times.")
    code = _register(asked, tested, logged)
    _close_parent(asked, sweep, "FINISHED")
    return code


# ------------------------------------------------------------------------------------------ test and champion


def _test(asked: Question, sweep: Sweep, point: Point) -> tuple[LoggedRun | None, bool]:
    """Train the chosen network once more, keep its weights, and look at the test split; nothing if that is done.

    Returns: its run, if MLflow has it; whether Ctrl-C came in between.
    """
    name = repeats.final_name(asked.prepared.study_name, point)
    prepared = replace(asked.prepared, config=_last_study(asked, name))
    space = asked.space.tested(point)
    told = {"final": "true", "test_images": str(len(prepared.dataset.test.labels))}
    session = repeats.session(replace(asked.session, prepared=prepared), space, told)
    executor = asked.start(prepared, 1)
    try:
        listener = display.Quiet().callbacks
        last = Sweep(asked.database, session, space, asked.tracker, listener, parent=sweep.open_parent)
        if last.progress.done < last.progress.total and not asked.words.flags.get("-q"):
            number = asked.space.contenders[point.rival].number
            console.note(f"training #{number} with its best seed once more, to be tested")
        summary = last.run(executor)
        return last.logged_best(), summary.interrupted
    finally:
        executor.close()


def _last_study(asked: Question, name: str) -> Config:
    """The config of the study of the one tested run; one that failed may be tried again."""
    tried = _final(asked, name)
    failed = sum(trial.state != "COMPLETE" for trial in tried.trials) if tried else 0
    study = asked.config.study.model_copy(update={"name": name, "trials": failed + 1})
    kept = asked.config.tracking.model_copy(update={"save_weights": asked.config.tracking.name != "none"})
    return asked.config.model_copy(update={"study": study, "tracking": kept})


def _say(sentence: str) -> None:
    for line in confirmation_text.wrapped(sentence):
        console.say(line)


def _final(asked: Question, name: str) -> History | None:
    """The study of the tested run, if there is one yet."""
    stored = asked.database.storage
    there = asked.database.retry(lambda: history.study_names(stored, name))
    return asked.database.retry(lambda: history.load(stored, name)) if name in there else None


def _same_bits(asked: Question, point: Point) -> str:
    """Whether what was tested is the network that was chosen."""
    name = asked.prepared.study_name
    runs = asked.database.retry(lambda: history.load(asked.database.storage, name))
    final = _final(asked, repeats.final_name(name, point))
    first = [trial for trial in runs.complete if trial.params == {"rival": point.rival, "repeat": point.repeat}]
    hashes = {_weights_hash(trial.record) for trial in (*first, *(final.complete if final else ()))}
    if len(hashes) == 1:
        return "It was trained again for that, bit by bit: the weights are those of its run above."
    return (
        "It was trained again for that, and its weights are not those of its run above (another machine, device or "
        "version): what was tested is another network of the same config."
    )


def _weights_hash(record: RunRecord | None) -> str:
    return record.result.weights_hash if record and record.result else ""


def _register(asked: Question, tested: Confirmation, logged: LoggedRun | None) -> int:
    """Have the tested network be champion, if it is better than the present one. Returns: the exit code."""
    if asked.config.tracking.name == "none":
        _say("Not registered: with tracking=none there is no MLflow, and so no champion.")
        return 0
    verdicts: list[str] = []
    try:
        if logged is None:
            raise StoreError("MLflow hasn't got the tested run yet")
        free = asked.database.try_upload_lock(lambda: verdicts.append(_enter(asked, tested, logged)))
    except MnistexpError as error:
        console.note(f"mnistexp: {error}. The confirmation stands; type the same command to try again")
        return error.exit_code
    if not free:
        console.note("another process is delivering to MLflow just now; the same command registers the network later")
        return 2
    keep_verdict(asked.database, tested.name, verdicts[0])
    _say(verdicts[0])
    return 0


def _enter(asked: Question, tested: Confirmation, logged: LoggedRun) -> str:
    """Register the tested network. Returns: the verdict."""
    assert tested.test is not None
    chosen, dataset = tested.chosen, asked.prepared.dataset
    candidate = registry.Candidate(
        run=logged,
        study=asked.study.name,
        study_id=asked.database.retry(lambda: history.load(asked.database.storage, tested.name)).id,
        trial=chosen.number,
        hits=unpack_correct(chosen.hits, chosen.images),
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        test_accuracy=tested.test.accuracy,
        chosen_from=len(tested.configs),
    )
    where = registry.Registry(resolved_uri(asked.config.tracking))
    known = partial(registry.hits_of, asked.config.tracking, images=chosen.images)
    name = registry.model_name(dataset.name, dataset.source)
    return registry.enter(where, name, candidate, known, partial(_export, dataset, logged))


def _export(dataset: Dataset, logged: LoggedRun, weights: Path, folder: Path, model_id: str) -> None:
    """Have a child process make MLflow's model of the tested network. Raises: StoreError, WorkerError."""
    features = dataset.validation.images.shape[1]
    shape = list(dataset.image_shape)
    scaled = "in [0, 1]" if dataset.scale != 1 else "on the scale of the training images"
    order = {
        "config": logged.config.model_dump(mode="json"),
        "code": user_code.plain(),
        "weights": str(weights),
        "weights_hash": logged.weights_hash,
        "features": features,
        "classes": dataset.classes,
        "example": (dataset.validation.images[:2] * dataset.scale).tolist(),
        "metadata": {
            "data": dataset.name,
            "input": f"float32 [N, {features}]: images {shape}, flattened row by row, {scaled}",
            "output": f"float32 [N, {dataset.classes}]: the probability of each class",
        },
        "folder": str(folder),
        "run_id": logged.run_id,
        "model_id": model_id,
    }
    answer = process.ask("mnistexp.training.export", order)
    if "error" in answer:
        raise StoreError(str(answer["error"]))


def _close_parent(asked: Question, sweep: Sweep, ending: Ending) -> None:
    """Write what came out to the parent run, and close it: the tested run was grouped there."""
    found = _found(asked)
    if found is None:
        return
    interval, test = found.chosen.interval, found.test
    metrics = {"best_val_accuracy": interval.mean, "confirm/low": interval.low, "confirm/high": interval.high}
    if test is not None:
        metrics |= {"test_accuracy": test.accuracy, "confirm/test_low": test.low, "confirm/test_high": test.high}
    try:
        asked.tracker.finish_parent(sweep.open_parent(), metrics, confirmation_text.page(found), ending)
    except StoreError as error:
        console.note(f"{error}. The next confirm closes this one's parent run")
