from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from histories import GELU, RELU, SEEDED, seeded, study, three_values, trial
from html_pages import Page, check_self_contained
from markdown_it import MarkdownIt

from mnistexp.analysis import comparison
from mnistexp.analysis.by_value import by_value
from mnistexp.analysis.history import History, Importances, Trial
from mnistexp.report.by_value_text import ROWS
from mnistexp.report.document import Report, commands, escape, table
from mnistexp.report.report_data import ReportData
from mnistexp.report.studies_text import studies_report
from mnistexp.report.text import study_report

ACTIVATION, RATE = "model.activation", "optimizer.learning_rate"
HOSTILE = "<script>alert(1)</script> | `x` [a](https://evil.example/) ![b](c.png) ${7*7} {{ 7*7 }} \"'&amp;\n# 1. *z*"
NONE = Importances({}, 0, "10 complete trials are needed")


def data_of(found: History, key: str = "") -> ReportData:
    """The report data of a study whose data set is not here."""
    groups = by_value(found, key) if key else None
    return ReportData(found, NONE, comparison.compare_best(found), None, None, "no data here", groups=groups)


def page_of(report: Report) -> Page:
    """The report's HTML page, checked; its Markdown must be possible too."""
    assert report.markdown("figures")
    return check_self_contained(report.html())


def by_rows(found: History, key: str = ACTIVATION) -> list[dict[str, str]]:
    """The table of the section on a key, without the intervals."""
    values: Any = study_report(data_of(found, key), "", "by").values["sections"]["by"]
    return [dict(zip(values["head"], row, strict=True)) for row in values["rows"]]


# ------------------------------------------------------------------------------------------------- thin studies

FAILED = (trial(0, state="FAILED", reason="NaN"), Trial(1, "FAILED", {}, None, "no"))
THIN = {
    "no trial": study(),
    "all failed": study(*FAILED),
    "all pruned": study(*(trial(n, n, "PRUNED", params={RATE: 0.1 * n}) for n in range(3))),
    "one trial": study(trial(0, baseline=True, params={RATE: 0.01})),
    "not tested": study(trial(0, test=None), trial(1, test=None), searched={}),
    "no hits": study(trial(0, 0), trial(1, 0)),
    "perfect": study(*(trial(n, 100, params={RATE: 0.0}) for n in range(3))),
    "many": study(*(trial(n, n % 90, ("COMPLETE", "PRUNED")[n % 2], params={RATE: 0.1 / (n + 1)}) for n in range(100))),
}


@pytest.mark.parametrize("name", THIN)
def test_a_study_with_few_or_odd_results_has_a_report(name: str) -> None:
    """Sections without data are left out."""
    report = study_report(data_of(THIN[name]), "footer")

    page = page_of(report)

    assert {"result", "how-the-search-went", "use-of-the-test-set", "provenance"} <= set(page.texts)
    assert all(text.strip() for text in page.texts.values())
    none_completed = name in ("no trial", "all failed", "all pruned")
    assert ("the-ten-best-trials" in page.texts) != none_completed
    assert bool({"best_so_far", "slices", "pareto_seconds"} & report.figures.keys()) != none_completed


def test_the_result_compares_the_best_with_the_start_and_the_others() -> None:
    """It has the best trial's scores and interval, and the number of trials without a significant difference."""
    trials = (trial(0, 60, baseline=True), trial(1, 90), trial(2, 89), trial(3, 70, state="PRUNED"))

    rows = dict(study_report(data_of(study(*trials)), "").values["answer"])

    assert rows["best trial"].startswith("trial 1, ")
    assert rows["validation accuracy"] == "0.9000 (95 % interval 0.8256 to 0.9448, 100 images)"
    assert rows["test accuracy"].startswith("0.5000")
    assert rows["no significant difference to it"].startswith("1 of 2 ")
    assert "0.3000 higher, corrected p < 0.0001" in rows["config at the start of the sweep"]


def test_pruned_and_failed_trials_are_reported() -> None:
    """With the saved epochs, and each reason with its trials."""
    trials = (trial(0, before=(0.1, 0.2)), trial(1, state="PRUNED"), *(replace(each, number=2) for each in FAILED[:1]))

    values: Any = study_report(data_of(study(*trials)), "", "course,test").values

    rows = dict(values["sections"]["course"]["rows"])
    assert (rows["pruned"], rows["failed"], rows["epochs saved by pruning"]) == ("1", "1", "2 (29 %)")
    assert values["sections"]["course"]["failures"] == [("#2", "NaN")]
    assert dict(values["sections"]["test"]["rows"]) == {"trials": "2", "networks of confirmations": "0"}


def test_nothing_in_a_database_becomes_markup() -> None:
    """Names, values and reasons are shown as text in both formats, and load nothing."""
    failed = trial(0, state="FAILED", reason=HOSTILE, params={RATE: 0.1})
    good = [trial(n, 80 + n, params={ACTIVATION: HOSTILE, RATE: 0.01 * n}) for n in (1, 2)]
    space = {f"search.{HOSTILE}": '{"values": ["<b>"]}', f"search.{ACTIVATION}": json.dumps({"values": [HOSTILE]})}
    data = data_of(study(failed, *good, name=HOSTILE, searched=space), ACTIVATION)
    report = study_report(data, HOSTILE)

    html, page = report.html(), page_of(report)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(report.markdown("figures"))

    shown = " ".join(HOSTILE.split())
    assert shown in page.texts[""]
    assert shown in page.texts["how-the-search-went"]
    assert "<script>alert(1)</script>" in page.texts[f"by-{ACTIVATION.replace('.', '-')}"]
    assert "<script" not in html
    assert not re.search(r"<(script|b|em|a)\b", re.sub(r'<(img|a href="#).*?>', "", rendered))
    assert set(re.findall(r'src="([^"]+)"', rendered)) == {f"figures/{name}.png" for name in report.figures}


@pytest.mark.parametrize(
    "text", ["1. not a list", "# no heading", "- no item", "a|b", "*x* _y_ `z`", "<b>", "a\nb", "\\", "&lt;", "$x$"]
)
def test_escaped_text_stays_text(text: str) -> None:
    """A Markdown reader shows it as it is, in a paragraph and in a cell of a table."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    plain = " ".join(text.split())

    paragraph = reader.parse(escape(text))
    cells = [each for each in reader.parse(table([(text, "end")])) if each.type == "inline"]

    assert [each.type for each in paragraph] == ["paragraph_open", "inline", "paragraph_close"]
    for inline in (paragraph[1], cells[-2]):
        assert "".join(child.content for child in inline.children or ()) == plain
        assert {child.type for child in inline.children or ()} <= {"text", "text_special"}
    assert cells[-1].content == "end"


def test_commands_with_backticks_stay_in_their_block() -> None:
    """The fence is longer than any in a line, and a line break does not start another command."""
    (block,) = MarkdownIt().parse(commands("echo ```", "ls\nrm"))

    assert block.type == "fence"
    assert block.content == "echo ```\nls rm\n"


# ------------------------------------------------------------------------------------------------------ by value


def test_the_section_on_a_key_has_a_row_for_each_value() -> None:
    """Means, seeds, settings, differences and results, best first; the result names the best value and its equals."""
    found = three_values()

    rows, answer = by_rows(found), dict(study_report(data_of(found, ACTIVATION), "").values["answer"])

    assert [(row[ACTIVATION], row["result"]) for row in rows] == [
        ("relu", "best"), ("gelu", "not significant"), ("tanh", "worse"),
    ]  # fmt: skip
    assert (rows[0]["learning_rate"], rows[0]["seeds"], rows[0]["validation"]) == ("0.1", "5", "0.9510")
    assert (rows[0]["parameters"], rows[0]["seconds"], rows[2]["difference"]) == ("104", "3.0", "0.0196")
    assert answer[f"best {ACTIVATION}"] == "relu, optimizer.learning_rate=0.1, 5 seeds"
    assert answer["its mean validation accuracy"] == "0.9510 (95 % interval 0.9490 to 0.9530)"
    assert answer["its mean test accuracy"].startswith("0.9400 (95 % interval 0.9312 to 0.9488)")
    assert (answer["other values: not significant"], answer["other values: worse"]) == ("gelu", "tanh")


def test_a_row_shows_its_seeds_and_what_did_not_complete() -> None:
    """A difference by some of the seeds has their number; a value without a complete trial is the last row."""
    trials = (
        *seeded(0, "relu", 0.1, RELU),
        *seeded(5, "relu", 1.0, (900,)),
        *seeded(10, "gelu", 0.1, GELU[:3]),
        *seeded(15, "tanh", 0.1, (954,)),
        *seeded(20, "selu", 0.1, (0,), states=("FAILED",)),
    )

    rows = by_rows(study(*trials, searched=SEEDED))

    assert [(row[ACTIVATION], row["seeds"], row["result"]) for row in rows] == [
        ("relu", "5", "best"),
        ("tanh", "1", "not tested"),
        ("gelu", "3", "not significant"),
        ("selu", "–", "no trial completed"),
    ]
    assert rows[2]["difference"].endswith("(3 seeds)")
    assert [(row["configs"], row["failed"]) for row in (rows[0], rows[3])] == [("2", "0"), ("0", "1")]


def test_many_values_are_cut_off_and_counted() -> None:
    """The table has the first ones, and the section their number."""
    trials = [each for n in range(ROWS + 5) for each in seeded(10 * n, "relu", 0.01 * (n + 1), (950 - n, 951 - n))]
    report = study_report(data_of(study(*trials, searched=SEEDED), RATE), "", "by")

    assert len(report.values["sections"]["by"]["rows"]) == ROWS
    assert f"first {ROWS} of {ROWS + 5} values" in page_of(report).texts[f"by-{RATE.replace('.', '-')}"]


SEEDS_ONLY = {"search.seed": SEEDED["search.seed"]}
FEW = {
    "failed": study(*seeded(0, "relu", 0.1, (900,), states=("FAILED",)), searched=SEEDED),
    "one": study(*seeded(0, "relu", 0.1, (950,)), searched=SEEDED),
    "equal": study(*seeded(0, "relu", 0.1, (950,) * 3), *seeded(5, "tanh", 0.1, (950,) * 3), searched=SEEDED),
    "not tested": study(*seeded(0, "relu", 0.1, (950, 951), tests=(None, None)), searched=SEEDED),
}


@pytest.mark.parametrize("key", [ACTIVATION, RATE])
@pytest.mark.parametrize("name", FEW)
def test_a_study_with_few_results_has_a_section_on_a_key(name: str, key: str) -> None:
    """Nothing fails where intervals, tests or trials are missing."""
    texts = page_of(study_report(data_of(FEW[name], key), "", "by")).texts

    assert (f"by-{key.replace('.', '-')}" in texts) == (name != "failed")


def test_a_study_with_seeds_shows_the_command_for_means() -> None:
    """Unless the user gave a key, or the study searched no seeds or nothing else."""
    without = replace(three_values(), fingerprint={name: d for name, d in SEEDED.items() if name != "search.seed"})
    seeds_only = study(*seeded(0, "relu", 0.1, RELU), searched=SEEDS_ONLY)

    shown = [study_report(data_of(each), "", "top").values for each in (three_values(), without, seeds_only)]
    asked = study_report(data_of(three_values(), ACTIVATION), "", "top").values

    assert [values["by_command"] for values in (*shown, asked)] == [
        "python -m mnistexp report study.name=study by=model.activation", "", "", "",
    ]  # fmt: skip
    rows = dict(shown[2]["answer"])
    assert rows["mean validation accuracy of the config over 5 seeds"].startswith("0.9510 (95 % interval 0.9490")
    assert "no significant difference to it" not in rows


# --------------------------------------------------------------------------------------------- several studies


def test_studies_with_other_images_are_not_compared() -> None:
    """Their accuracies are shown without a test; so are those of a study without a complete trial."""
    here, there = data_of(study(trial(0), name="here")), data_of(study(trial(0, 80, data="0" * 32), name="there"))

    for other, result in ((there, "not tested"), (data_of(study(name="empty")), "–")):
        report = studies_report([here, other], "")
        assert "Nothing was tested" in page_of(report).texts["result"]
        assert [row[-1] for row in report.values["winners"]] == ["not tested", result]
