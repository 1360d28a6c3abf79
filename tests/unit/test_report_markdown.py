"""The Markdown that people read, and text that must not become markup."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import IMAGES, example_report, selecting_report
from shown import markdown_of, page_of

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import GateResult
from qvec_deploy.bench.summary import rows
from qvec_deploy.report import prose
from qvec_deploy.report.render_markdown import escape

GOLDEN = Path(__file__).parents[1] / "golden" / "report.md"


def changed(report, name, /, **changes):
    """The report with one candidate changed."""
    candidates = tuple(replace(c, **changes) if c.name == name else c for c in report.candidates)
    return replace(report, candidates=candidates)


def headline(report) -> str:
    return prose.headline(report, rows(report))


def test_the_golden_report(check_golden):
    check_golden(GOLDEN, markdown_of(selecting_report(batch_sizes=(1, 8))))


def test_the_paragraph_before_the_table_states_what_was_built():
    paragraph = prose.setup(example_report())
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
    report = replace(report, candidates=bare, dataset="none", split="none", images=0, warnings=())
    paragraph = prose.setup(report)
    assert paragraph.endswith("Accuracy was not measured.") and "none" not in paragraph + page_of(report).kicker


@pytest.mark.slow
def test_tables_are_rectangular():
    for table in re.findall(r"(?:^\|.*\|\n)+", markdown_of(selecting_report(batch_sizes=(1, 8))), flags=re.MULTILINE):
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
        ("https://a.b, HTTP://c", "https:<!-- -->//a.b, HTTP:<!-- -->//c"),
        ("_www.a.b", r"\_www<!-- -->.a.b"),
        ("@org/team and me@a.org", "@<!-- -->org/team and me@<!-- -->a.org"),
        ("hf://acme/vit@0123abc/model.pt", "hf://acme/vit@0123abc/model.pt"),
        ("#12, acme/x#3, GH-4, # 5", "#<!-- -->12, acme/x#<!-- -->3, GH-<!-- -->4, # 5"),
        ("~~x~~", r"\~\~x\~\~"),
        ("$x$", "<span>$</span>x<span>$</span>"),
        ("# x", r"\# x"),
        ("> x", r"\> x"),
        ("- x", r"\- x"),
        ("12. x", r"12\. x"),
        ("---", r"\---"),
        ("-0.5 to 3.", "-0.5 to 3."),
        ("a\x1b[2J\r\u202eb", r"a\\x1b[2J\\r\\u202eb"),
    ],
)
def test_text_stays_text(text, shown):
    assert escape(text) == shown


def test_a_hostile_name_stays_in_its_cell():
    report = changed(example_report(), "one_donor", name="<b>|x|\n# y")
    lines = markdown_of(report).splitlines()
    assert [line for line in lines if line.startswith(r"| &lt;b>\|x\| # y |")]
    assert "# y" not in lines


def test_hostile_names_of_gates_donors_and_images_stay_text():
    report, name = selecting_report(), "<b>|x|\n# y"
    donors = tuple(replace(donor, name=f"{name}{i}") for i, donor in enumerate(report.selection.donors))
    selection = replace(report.selection, donors=donors, images=name)
    text = markdown_of(replace(report, selection=selection, gates=(GateResult(name, name, name, passed=False),)))
    cell = r"&lt;b>\|x\| # y"
    assert f"| {cell} | {cell} | {cell} | **MISSED** |" in text
    assert f"| {cell}0 | 0.412 | 0.471 |" in text
    assert f"on 200 images of {cell}, confirmed" in text
    assert f"**Do not ship:** gptaq misses its gate: {cell} (wanted {cell}, found {cell})." in text
    assert "<b>" not in text and "\n# y" not in text


def test_p90_is_left_out_below_its_sample_size():
    report = example_report()
    few = tuple(
        replace(c, latency=tuple(LatencySamples(1, e.samples_ms[:20]) for e in c.latency)) for c in report.candidates
    )
    report = replace(report, candidates=few)
    text = markdown_of(report)
    row = next(line for line in text.splitlines() if line.startswith("| ptq<br>"))
    assert row.split(" | ")[5:7] == ["9.10", "110"] and "p90 (ms)" not in text, "a column of dashes is none"
    assert re.search(r"\| 20 \| 9\.1\d? \[.*\] \| – \|", text), "the table by batch size says how many are missing"


@pytest.mark.slow
def test_the_headline_claims_only_what_intervals_support():
    report = example_report()
    assert "16.7 points above ptq [+15.2, +18.3] and 5.5 points below float" in headline(report)
    assert "1.29× the speed of float" in headline(report)
    even = PairedAnswers(gained=40, lost=38, agreeing=2600, count=2700)
    same = changed(report, "mean", paired={"ptq": even}, latency=report["float"].latency)
    assert "not clearly different from ptq (+0.1 points [−0.6, +0.7])" in headline(same)
    slower = changed(report, "mean", latency=(LatencySamples(1, report["float"].latency[0].samples_ms[::-1]),))
    assert "not clearly different from float" in headline(slower)


def test_a_selected_float_is_not_compared_with_itself():
    text = headline(example_report(selected="float"))
    assert "smaller" not in text and "speed of" not in text


@pytest.mark.slow
def test_the_headline_says_what_is_shipped_though_gates_are_missed():
    report = selecting_report()
    assert headline(report).startswith("gptaq misses 1 of 4 gates: max_top1_drop. gptaq reaches 95.3 % top-1")
    passed = replace(report, gates=tuple(replace(gate, passed=True) for gate in report.gates))
    assert headline(passed).startswith("gptaq reaches 95.3 % top-1")
    assert headline(passed).endswith("The patch was not clearly better: lambda 0 was taken, without a patch.")


def test_without_selection_and_gates_their_sections_are_left_out():
    text = markdown_of(example_report())
    assert not re.search(r"^## (Gates|Selection)", text, flags=re.MULTILINE)
    assert "**Selection.**" not in text and "**Gates.**" not in text


@pytest.mark.slow
def test_without_a_selection_it_says_what_was_compared():
    report = example_report(selected=None)
    assert headline(report) == "8 engines were measured side by side. Speed-ups are over float."
    few = replace(report, candidates=report.candidates[:3], warnings=())
    assert headline(few) == (
        "float (96.7 % top-1, 86.7 MB, 11.8 ms), ptq (74.5 % top-1, 8.57 MB, 9.10 ms) and ptq_mse (87.8 % top-1, "
        "8.57 MB, 9.10 ms) were measured side by side. Speed-ups are over float."
    )


def as_good(report, gained: int, lost: int, **changes):
    """The headline where another engine gains and loses so many images against the one that ships."""
    names = ("mean", "ptq_mse")
    for one, other, up, down in ((*names, lost, gained), (*names[::-1], gained, lost)):
        pairs = {**report[one].paired, other: PairedAnswers(up, down, IMAGES - up - down, IMAGES)}
        report = changed(report, one, paired=pairs, **(changes if one == "ptq_mse" else {}))
    return headline(report)


@pytest.mark.slow
def test_what_is_as_good_and_faster_or_smaller_is_named():
    report = example_report()
    fast = (LatencySamples(1, tuple(sample / 1.5 for sample in report["mean"].latency[0].samples_ms)),)
    assert as_good(report, 20, 30, latency=fast).endswith(
        "ptq_mse, not clearly different in accuracy (p = 0.2), is 1.50× as fast [1.50, 1.50]."
    )
    assert as_good(report, 20, 30, stored_bytes=4_285_952).endswith("(p = 0.2), is 2.0 times smaller.")
    both = as_good(report, 20, 30, latency=fast, stored_bytes=17_143_808)
    assert both.endswith("is 1.50× as fast [1.50, 1.50] and is 2.0 times larger.")
    assert as_good(report, 60, 10, latency=fast).endswith("ptq_mse, more accurate, is 1.50× as fast [1.50, 1.50].")


@pytest.mark.slow
def test_what_is_less_accurate_or_neither_faster_nor_smaller_is_not_named():
    report = example_report()
    fast = (LatencySamples(1, tuple(sample / 1.5 for sample in report["mean"].latency[0].samples_ms)),)
    for text in (as_good(report, 10, 60, latency=fast), as_good(report, 20, 30)):
        assert "ptq_mse" not in text


@pytest.mark.slow
def test_a_speed_of_a_disturbed_machine_is_said_to_be_one():
    report = example_report()
    first = report["mean"].latency[0]
    slow = (replace(first, samples_ms=(*first.samples_ms[:20], *(1.2 * sample for sample in first.samples_ms[20:]))),)
    assert "measured on a disturbed machine (drift)." in headline(changed(report, "mean", latency=slow))
    assert "disturbed" not in headline(report)
    fast = tuple(replace(entry, samples_ms=tuple(sample / 1.5 for sample in entry.samples_ms)) for entry in slow)
    text = as_good(report, 20, 30, latency=fast)
    assert "may be" in text and text.endswith("(that too was measured on a disturbed machine).")


def test_a_candidate_larger_than_float_is_called_larger():
    assert "2.0 times larger than float" in headline(changed(example_report(), "mean", stored_bytes=173_486_592))


def test_what_was_not_measured_is_a_dash():
    report = example_report(batch_sizes=())
    report = changed(report, "ptq", accuracy=None, paired={}, footprint=None)
    text = markdown_of(report)
    assert "**Latency.** Not measured." in text
    row = next(line for line in text.splitlines() if line.startswith("| ptq<br>"))
    assert row.count("–") == 4
    assert "Latency (median ms" not in text and "Speed-up" not in text, "a column of dashes is none"
