"""The Markdown that people read, and text that must not become markup."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import example_report, selecting_report

from qvec_deploy.measure.accuracy import Paired
from qvec_deploy.measure.latency import LatencySamples
from qvec_deploy.report.markdown import escape, to_markdown
from qvec_deploy.report.values import GateResult

GOLDEN = Path(__file__).parents[1] / "golden" / "report.md"


def changed(report, name, /, **changes):
    """The report with one candidate changed."""
    candidates = tuple(replace(c, **changes) if c.name == name else c for c in report.candidates)
    return replace(report, candidates=candidates)


def headline(report) -> str:
    return to_markdown(report).split("\n\n")[1]


def test_the_golden_report(check_golden):
    check_golden(GOLDEN, to_markdown(selecting_report(batch_sizes=(1, 8))))


def test_the_paragraph_before_the_table_states_what_was_built():
    paragraph = to_markdown(example_report()).split("\n\n")[2]
    for fact in (
        "rtn",
        "7 levels",
        "per output channel",
        "head, patch_embed",
        "λ = 1",
        "svhn",
        "eurosat",
        "test",
        "2,700",
    ):
        assert fact in paragraph


def test_without_images_it_names_no_dataset():
    report = example_report()
    bare = tuple(replace(candidate, accuracy=None, paired={}) for candidate in report.candidates)
    text = to_markdown(replace(report, candidates=bare, dataset="none", split="none", images=0, warnings=()))
    paragraph = text.split("\n\n")[2]
    assert paragraph.endswith("Accuracy was not measured.") and "none" not in paragraph


def test_tables_are_rectangular():
    for table in re.findall(r"(?:^\|.*\|\n)+", to_markdown(selecting_report(batch_sizes=(1, 8))), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x>", "&lt;img src=x>"),
        ("[x](javascript:1)", r"[x\](javascript:1)"),
        ("[x][y]: z", r"[x\][y\]: z"),
        ("[1.2, 3.4].", "[1.2, 3.4]."),
        ("*a* `b` \\", r"\*a\* \`b\` \\"),
        ("one_donor _em_", r"one_donor \_em\_"),
        ("line\n\n# heading", "line # heading"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_text_stays_text(text, shown):
    assert escape(text) == shown


def test_a_hostile_name_stays_in_its_cell():
    report = changed(example_report(), "one_donor", name="<b>|x|\n# y")
    lines = to_markdown(report).splitlines()
    assert [line for line in lines if line.startswith(r"| &lt;b>\|x\| # y |")]
    assert "# y" not in lines


def test_hostile_names_of_gates_donors_and_images_stay_text():
    report, name = selecting_report(), "<b>|x|\n# y"
    donors = tuple(replace(donor, name=f"{name}{i}") for i, donor in enumerate(report.selection.donors))
    selection = replace(report.selection, donors=donors, images=name)
    text = to_markdown(replace(report, selection=selection, gates=(GateResult(name, name, name, passed=False),)))
    cell = r"&lt;b>\|x\| # y"
    assert f"| {cell} | {cell} | {cell} | MISSED |" in text
    assert f"| {cell}0 | 0.412 | 0.471 |" in text
    assert f"on 200 images of {cell}, confirmed" in text
    assert f"misses 1 of 1 gate: {cell}." in text
    assert "<b>" not in text and "\n# y" not in text


def test_p90_is_left_out_below_its_sample_size():
    report = example_report()
    few = tuple(
        replace(c, latency=tuple(LatencySamples(1, e.samples_ms[:20]) for e in c.latency)) for c in report.candidates
    )
    report = replace(report, candidates=few)
    row = next(line for line in to_markdown(report).splitlines() if line.startswith("| ptq |"))
    assert row.split(" | ")[5:7] == ["9.10", "–"]


def test_the_headline_claims_only_what_intervals_support():
    report = example_report()
    assert "16.7 points above ptq [+15.2, +18.3] and 5.5 points below float" in headline(report)
    assert "1.29× the speed of float" in headline(report)
    even = Paired(gained=40, lost=38, agreeing=2600, count=2700)
    same = changed(report, "mean", paired={"ptq": even}, latency=report["float"].latency)
    assert "not clearly different from ptq (+0.1 points [−0.6, +0.7])" in headline(same)
    slower = changed(report, "mean", latency=(LatencySamples(1, report["float"].latency[0].samples_ms[::-1]),))
    assert "not clearly different from float" in headline(slower)


def test_a_selected_float_is_not_compared_with_itself():
    text = headline(example_report(selected="float"))
    assert "smaller" not in text and "speed of" not in text


def test_the_headline_says_what_is_shipped_though_gates_are_missed():
    report = selecting_report()
    assert headline(report).startswith("gptaq misses 1 of 4 gates: max_top1_drop. gptaq reaches 95.3 % top-1")
    passed = replace(report, gates=tuple(replace(gate, passed=True) for gate in report.gates))
    assert headline(passed).startswith("gptaq reaches 95.3 % top-1")
    assert headline(passed).endswith("The patch was not clearly better: lambda 0 is shipped, without a patch.")


def test_without_selection_and_gates_their_sections_are_left_out():
    text = to_markdown(example_report())
    assert not re.search(r"^## (Gates|Selection)", text, flags=re.MULTILINE)
    assert "**Selection.**" not in text and "**Gates.**" not in text


def test_without_a_selection_it_says_so():
    assert headline(example_report(selected=None)) == "No candidate was selected."


def test_a_candidate_larger_than_float_is_called_larger():
    assert "2.0 times larger than float" in headline(changed(example_report(), "mean", stored_bytes=173_486_592))


def test_what_was_not_measured_is_a_dash():
    report = example_report(batch_sizes=())
    report = changed(report, "ptq", accuracy=None, paired={}, footprint=None)
    text = to_markdown(report)
    assert "**Latency.** Not measured." in text
    row = next(line for line in text.splitlines() if line.startswith("| ptq |"))
    assert row.count("–") == 8
