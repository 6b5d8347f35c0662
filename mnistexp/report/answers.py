"""The report's words: the best config, whether it is real, what a confirmation found, who looked at the test split."""

from __future__ import annotations

from collections.abc import Iterator

from mnistexp.analysis import comparison
from mnistexp.analysis.comparison import BestComparison, accuracy_of
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import Trial
from mnistexp.report import confirmation_text, figures
from mnistexp.report.document import Block, Code, Note, Paragraph, Section, Strong, Table, Text, paragraph
from mnistexp.report.drawing import picture
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, counted, duration, p_number, p_value
from mnistexp.tracking import run_context

ROWS = 10  # of rivals that are shown


def config_name(trial: Trial) -> str:
    """A trial's config in a few words: 'nesterov lr=0.29 tanh 500-200 b=128'."""
    return run_context.run_name(trial.record.config) if trial.record else ""


# -------------------------------------------------------------------------------------------------- the answer


def answer(material: ReportData) -> tuple[Block, ...]:
    """The best config, what can't be told apart from it, what it beats."""
    best = material.best
    if best is None:
        return (_no_answer(material),)
    sentences: list[Paragraph] = []
    if material.confirmation is not None:
        sentences.append(_confirmed_answer(material, material.confirmation))
    sentences.append(_best_sentence(material, best))
    if not comparison.repeats_one_config(material.history):
        sentences += [*_alike_sentence(material), *_beaten_sentence(material, best)]
    return tuple(sentences)


def _no_answer(material: ReportData) -> Paragraph:
    spent = comparison.costs(material.history)
    if not spent.trials:
        return paragraph("No trial of this study has ended yet, so there is no best config.")
    return paragraph(
        f"No trial of this study completed, so there is no best config: of {counted(spent.trials, 'trial')} "
        f"{spent.failed} failed and {spent.pruned} were pruned."
    )


def _confirmed_answer(material: ReportData, found: Confirmation) -> Paragraph:
    chosen = found.chosen
    trial = next((each for each in material.history.ranked if each.number == chosen.number), None)
    name = config_name(trial) if trial else ""
    test = (
        f"; {confirmation_text.test_sentence(found.test)}" if found.test else "; the test split was not looked at yet"
    )
    return paragraph(
        f"Confirmed with {found.seeds} fresh seeds: ",
        Strong(f"trial {chosen.number}, {name}"),
        ", mean validation accuracy ",
        Strong(accuracy(chosen.interval.mean)),
        f" (95 % interval for new seeds {accuracy(chosen.interval.low)} to {accuracy(chosen.interval.high)}){test}.",
    )


def _best_sentence(material: ReportData, best: Trial) -> Paragraph:
    found, result = material.standing, best.record.result if best.record else None
    interval = (
        f" (95 % interval {accuracy(found.low)} to {accuracy(found.high)}, from {found.images:,} images)"
        if found
        else ""
    )
    tested = result.test_accuracy if result else None
    test = f"; test accuracy {accuracy(tested)}, which nothing was chosen by" if tested is not None else ""
    ended = counted(len(material.history.trials), "trial")
    once = " in the sweep, by one run each" if material.confirmation else ""
    return paragraph(
        f"Best of {ended}{once}: ",
        Strong(f"trial {best.number}, {config_name(best)}"),
        ", validation accuracy ",
        Strong(accuracy(accuracy_of(best))),
        f"{interval}{test}.",
    )


def _alike_sentence(material: ReportData) -> Iterator[Paragraph]:
    found = material.standing
    if found is None or not found.rivals:
        return
    yield paragraph(_alike(found), ".")


def _alike(found: BestComparison) -> str:
    """How many rivals can't be told apart from the best."""
    alike, others = len(found.alike), len(found.rivals)
    if alike == 0:
        return (
            f"It is better than {'the other complete config' if others == 1 else f'all {others} other complete ones'}"
        )
    if alike == others:
        whole = "The other complete config" if others == 1 else f"All {others} other complete configs"
        return f"{whole} can't be told apart from it on these images"
    return f"{alike} of the other {others} complete configs can't be told apart from it on these images"


def _beaten_sentence(material: ReportData, best: Trial) -> Iterator[Paragraph]:
    """What it beats: the config that the sweep started from."""
    start = next((trial for trial in material.history.complete if trial.baseline), None)
    if start is None or not comparison.searched(material.history):  # a confirmation starts from what it reruns
        return
    if start.number == best.number:
        yield paragraph("It is the config that the sweep started from: no other trial beat that.")
        return
    ahead = accuracy_of(best) - accuracy_of(start)
    versus = (v for v in (material.standing.rivals if material.standing else ()) if v.trial.number == start.number)
    test = next((each.test for each in versus), None)
    verdict = "" if test is None else f", {_believed(test.distinguishable)} (corrected {p_value(test.adjusted)})"
    yield paragraph(
        f"It beats the config that the sweep started from (trial {start.number}, {config_name(start)}, "
        f"{accuracy(accuracy_of(start))}) by {accuracy(ahead)}{verdict}."
    )


def _believed(distinguishable: bool) -> str:
    return "more than luck explains" if distinguishable else "which may be luck"


# ------------------------------------------------------------------------------------------------- is it real?


def reality(material: ReportData) -> Section:
    """How much of the best score is luck, and which rivals are as good."""
    return Section("real", "Is it real?", tuple(_reality(material)))


def _reality(material: ReportData) -> Iterator[Block]:
    found = material.standing
    if material.best is None:
        yield Note("No trial completed, so there is nothing to compare.")
    elif found is None:
        yield Note("The records of which images each trial got right don't fit the scores, so nothing was tested.")
    elif not found.rivals:
        yield Note("One trial completed, so there is no rival to compare it with.")
    else:
        yield _why_luck(found)
        yield _what_test(found)
        yield _optimism(found)
        yield from _what_now(material, found)
        yield picture(
            "rivals",
            figures.rivals(found.rivals, found.best.number),
            "Images that only the best trial got right, and those that only each rival got right",
            "To the right the images that only the best trial got right, to the left those that only the rival did. Of "
            "equals, the two are alike but for chance.",
        )
        yield _rivals_table(found)


def _why_luck(found: BestComparison) -> Paragraph:
    count = len(found.rivals) + 1
    return paragraph(
        f"A sweep's winner is always partly lucky: it has the highest of {count} measured scores, each measured on "
        f"{found.images:,} images alone, and such a score is off by about {accuracy(found.standard_error)} (one "
        f"standard error), up as often as down. The highest of many is mostly one that went up."
    )


def _what_test(found: BestComparison) -> Paragraph:
    count = len(found.rivals) + 1
    pairs = count * (count - 1) // 2
    return paragraph(
        "So each rival was set beside the best on the same images: only those that one of the two got right and the "
        "other wrong tell them apart (McNemar's exact test), and as any two trials could have come out on top, the "
        f"test is corrected for {f'all {pairs:,} pairs' if pairs > 1 else 'that'} (Holm). ",
        Strong(f"{_alike(found)}."),
    )


def _optimism(found: BestComparison) -> Paragraph:
    best = accuracy_of(found.best)
    if found.optimism < 0.00005:
        return paragraph(
            f"Of its {accuracy(best)} next to nothing is luck in the draw of the images: it stays ahead whichever of "
            f"them one draws. A lucky seed would not show here; new seeds show it."
        )
    return paragraph(
        f"Of its {accuracy(best)} about {accuracy(found.optimism)} is luck in the draw of the images (estimated by "
        f"drawing them anew 1,000 times): expect about {accuracy(best - found.optimism)} on new ones. A lucky seed "
        f"would come on top of that; new seeds show it."
    )


def _what_now(material: ReportData, found: BestComparison) -> Iterator[Paragraph]:
    if found.alike:
        yield paragraph(
            "“Can't be told apart” doesn't mean “equal”: these images are too few to say. Among such configs take the "
            f"one that costs least: {_cheapest(found)}."
        )
    if material.confirmation is None:
        command = Code(material.command("confirm"))
        yield paragraph("To settle it, train the best ones again with fresh seeds: ", command, ".")


def _cheapest(found: BestComparison) -> str:
    """The smallest and the fastest of the configs that can't be told apart."""
    group = (found.best, *found.alike)
    small = min(group, key=lambda trial: (comparison.cost_of(trial, "parameters"), -accuracy_of(trial), trial.number))
    quick = min(group, key=lambda trial: (comparison.cost_of(trial, "seconds"), -accuracy_of(trial), trial.number))
    size, seconds = comparison.cost_of(small, "parameters"), comparison.cost_of(quick, "seconds")
    smallest = f"trial {small.number} has the fewest parameters ({size:,.0f}, accuracy {accuracy(accuracy_of(small))})"
    trained = f"trained fastest ({duration(seconds)}"
    if small.number == quick.number:
        return f"{smallest} and {trained})"
    return f"{smallest}, trial {quick.number} {trained}, accuracy {accuracy(accuracy_of(quick))})"


def _rivals_table(found: BestComparison) -> Table:
    head = ("rival", "config", "accuracy", "best only", "rival only", "p", "corrected", "")
    rows = [
        (
            f"#{versus.trial.number}",
            config_name(versus.trial),
            accuracy(accuracy_of(versus.trial)),
            str(versus.test.better),
            str(versus.test.worse),
            p_number(versus.test.p_value),
            p_number(versus.test.adjusted),
            "worse" if versus.test.distinguishable else "can't tell",
        )
        for versus in found.rivals[:ROWS]
    ]
    more = f"; the first {ROWS} of {len(found.rivals)} rivals" if len(found.rivals) > ROWS else ""
    title = (
        f"Against trial {found.best.number}: how many of the {found.images:,} validation images only the best, or only "
        f"the rival, got right{more}"
    )
    return Table(head, tuple(rows), "lwrrrrrl", title)


# ---------------------------------------------------------------------------------------------- the confirmation


def confirmed(material: ReportData) -> Section:
    """What fresh seeds say."""
    found = material.confirmation
    if found is None:
        text = "The best configs have not been trained again with fresh seeds yet; the command confirm does that."
        return Section("confirmed", "With fresh seeds", (Note(text),))
    return Section("confirmed", "With fresh seeds", tuple(_confirmed(found)))


def _confirmed(found: Confirmation) -> Iterator[Block]:
    configs = counted(len(found.configs), "best config")
    yield paragraph(
        f"The study's {configs} {'was' if len(found.configs) == 1 else 'were'} trained again with {found.seeds} fresh "
        f"seeds each, and ranked by mean validation accuracy; the test split stayed sealed meanwhile."
    )
    yield picture(
        "confirmed",
        figures.confirmed(found),
        "Validation accuracy of each config with each fresh seed, with intervals and the sweep's own score",
        "A dot for each seed, the mean with its 95 % interval, and as a hollow marker the score that the config had in "
        "the sweep: how far that lies above the dots is how lucky it was.",
    )
    if len(found.configs) > 1:
        yield picture(
            "noise",
            figures.noise(found.configs),
            "How far each config lies behind the chosen one, with intervals",
            "The lead of the chosen config over each other one, seed by seed and image by image. An interval that "
            "reaches 0 leaves open which is better.",
        )
    behind = f"behind ({100 * found.level:.3g} %)" if len(found.configs) > 1 else ""
    yield Table((*confirmation_text.HEAD[:-1], behind), tuple(confirmation_text.rows(found)), "lrrrrrl", marked=0)
    yield from (paragraph(sentence) for sentence in confirmation_text.sentences(found))
    yield paragraph(_test_look(found))
    if found.decision:
        yield paragraph(found.decision)


def _test_look(found: Confirmation) -> str:
    if found.test is None:
        return "The chosen config was not tested yet."
    return f"The chosen config was then tested once: {confirmation_text.test_sentence(found.test)}."


# ------------------------------------------------------------------------------------------ the sealed envelope


def envelope(material: ReportData) -> Section:
    """How often the test split was looked at, and that nothing was ordered by it."""
    looks, found = material.history.test_evaluations, material.confirmation
    total = looks + (found.test_evaluations if found else 0)
    if not total:
        none = Strong("This study has never looked at the test split")
        return Section("envelope", "The sealed envelope", (paragraph(none, ", so nothing was ordered by it."),))
    told: list[Text] = [
        Strong(f"This study has looked at the test split {_times(total)}"),
        f": {counted(looks, 'trial')} of the sweep, each once, after its training had ended",
    ]
    if found:
        told.append(f"; {counted(found.test_evaluations, 'network')} of its confirmations, after the choice was made")
    told.append(
        ". Nothing was ordered by what it saw: the sampler, the pruner, the best trial, every table here and the "
        "confirmation's choice go by validation alone."
    )
    stands = "only the chosen trial's test accuracy stands"
    if material.groups is not None:
        stands += f", and beside each value of {material.groups.key} the mean one of its chosen config,"
    why = paragraph(
        f"That is why {stands} in this report. The others are in MLflow; whoever picks the highest of them has tuned "
        "on the test split, and its score is then as lucky as the sweep's winner."
    )
    return Section("envelope", "The sealed envelope", (Paragraph(tuple(told)), why))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count:,} times")
