"""Several bundles beside each other: their order, what is said of them, what does not belong together."""

import re
from dataclasses import replace

import pytest
from report_example import example_report, gpu_report, patched_report, selecting_report
from shown import html_of, markdown_of

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.decision import decide
from qvec_deploy.bench.results import GateResult
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.report.overview import bundles_table, caveat, figures, headline, overview

PASSED = (GateResult("max_stored_bits", "at most 4", "3.04", passed=True),)


@pytest.fixture(scope="module")
def shown():
    return overview(
        {
            "misses": selecting_report(),
            "plain": example_report(selected="ptq_mse"),
            "float": example_report(selected="float"),
            "passes": replace(patched_report(), gates=PASSED),
        }
    )


def names(reports: dict) -> list[str]:
    return [standing.name for standing in overview(reports).standings]


def test_gates_come_before_accuracy(shown):
    assert [standing.name for standing in shown.standings] == ["passes", "float", "plain", "misses"]
    assert shown.best.name == "passes"


def test_equal_accuracies_are_ordered_by_size_then_latency():
    report = example_report()
    small = replace(report["mean"], stored_bytes=1)
    fast = replace(report["mean"], latency=(replace(report["mean"].latency[0], samples_ms=(1.0,) * 40),))

    def having(candidate):
        candidates = tuple(candidate if c.name == "mean" else c for c in report.candidates)
        return replace(report, candidates=candidates)

    assert names({"a": report, "fast": having(fast), "small": having(small)}) == ["small", "fast", "a"]


def test_what_was_not_measured_comes_last():
    report = example_report()
    bare = tuple(replace(c, accuracy=None, paired={}) for c in report.candidates)
    unmeasured = replace(report, candidates=bare, warnings=())
    assert names({"a": unmeasured, "b": report}) == ["b", "a"]
    assert "%" not in headline(overview({"a": unmeasured}))
    untimed = example_report(batch_sizes=())
    assert names({"a": untimed, "b": report}) == ["b", "a"]


def test_the_headline_says_what_it_costs_and_whether_it_passes_the_gates(shown):
    assert headline(shown) == "passes comes first: 91.2 % top-1, 8.57 MB, 9.11 ms at batch 1; passes its gate."


def test_overlapping_intervals_are_told():
    two = overview({"a": example_report(), "b": patched_report()})
    assert headline(two).endswith("By accuracy alone it is not clearly apart from b: their intervals overlap.")


def test_answers_to_the_same_images_are_compared_image_by_image():
    reports = {"a": example_report(), "b": patched_report(), "c": example_report()}
    pairs = {"b": PairedAnswers(10, 12, 2600, 2700), "c": PairedAnswers(2, 60, 2600, 2700)}
    asked = []

    def paired(name: str, other: str) -> PairedAnswers:
        asked.append((name, other))
        return pairs[name]

    said = headline(overview(reports, paired))
    assert said.endswith("By accuracy alone it is not clearly apart from b: image by image, no clear difference.")
    assert asked == [("b", "a"), ("c", "a")]
    some = overview(reports, lambda name, _: pairs["c"] if name == "c" else None)
    assert headline(some).endswith("apart from b: their intervals overlap.")


@pytest.mark.slow
def test_latencies_of_separate_runs_are_said_not_to_be_paired(shown):
    assert "separate runs, on AMD EPYC 9575F with 4 threads, and are not paired" in caveat(shown)
    report = example_report()
    other = replace(report, environment=replace(report.environment, cpu="another", threads=1))
    assert "on different machines with 1 to 4 threads" in caveat(overview({"a": report, "b": other}))
    for text in (html_of(shown), markdown_of(shown)):
        assert "are not paired" in text


def test_a_row_for_every_bundle(shown):
    first, *_, last = bundles_table(shown).rows
    assert first == (
        "passes",
        "91.2 [90.1, 92.2]",
        "8.57",
        "9.11 (batch 1)",
        "passes its gate",
        "1.29× [1.29, 1.30]",
        "3.04 / 4.04",
        "mean, λ = 1, 2 donors",
        "onnxruntime-cpu, int4",
    )
    assert (last[0], last[4]) == ("misses", "misses 1 of 4 gates")
    assert bundles_table(shown).rows[1][5] == "–", "the baseline of its own run"


def test_figures_have_a_point_per_bundle(shown):
    size, latency = figures(shown)
    assert [line[0] for line in size.samples] == [standing.name for standing in shown.standings]
    assert "not paired" in latency.caption
    untimed = overview({"a": example_report(batch_sizes=()), "b": example_report(batch_sizes=())})
    assert [figure.name for figure in figures(untimed)] == ["size"]


def test_the_page_has_every_bundle_and_unique_ids(shown):
    text = html_of(shown)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert {"run-1", "run-4", "run-4-warning-1"} <= set(ids)
    for target in re.findall(r'href="#([^"]*)"', text):
        assert target in ids
    assert "http://" not in text and "https://" not in text and "<script" not in text


def test_markdown_folds_every_run(shown):
    text = markdown_of(shown)
    assert text.startswith("# 4 bundles on eurosat\n")
    assert re.findall(r"<summary>(\D.*)</summary>", text) == [
        f"{one.name} ({decide(one.report).verdict})" for one in shown.standings
    ]


@pytest.mark.slow
def test_hostile_names_stay_text():
    name = "<img src=x>\n# y"
    two = overview({name: example_report(), "b": patched_report()})
    assert "<img" not in html_of(two)
    assert "<img" not in markdown_of(two) and "\n# y" not in markdown_of(two)


def test_a_name_that_bundle_and_candidate_share_is_shown_once():
    listed = bundles_table(overview({"mean": example_report()}))
    assert (listed.columns[7], listed.rows[0][7]) == ("Patch", "λ = 1, 2 donors")
    plain = bundles_table(overview({"ptq": example_report(selected="ptq"), "mean": example_report()}))
    assert [row[7] for row in plain.rows] == ["λ = 1, 2 donors", "none"]


def test_a_disturbed_machine_is_named():
    report = replace(example_report(), environment=gpu_report().environment)
    assert "9.11 ms at batch 1 (measured on a disturbed machine)" in headline(overview({"a": report}))


@pytest.mark.parametrize("change", [{"dataset": "other"}, {"split": "train"}, {"class_names": ("a", "b")}])
def test_other_images_or_classes_do_not_stand_beside_each_other(change):
    field = {"class_names": "classes"}.get(*change, *change)
    with pytest.raises(IncompatibleError, match=f"b and a differ in {field}") as caught:
        overview({"a": example_report(), "b": replace(example_report(), **change)})
    assert caught.value.exit_code == 4


def test_another_number_of_images_is_other_images():
    with pytest.raises(IncompatibleError, match="differ in dataset, split, images"):
        overview({"a": example_report(), "b": gpu_report()})


def test_what_ships_nothing_has_no_place():
    with pytest.raises(IncompatibleError, match="a holds no candidate"):
        overview({"a": example_report(selected=None)})
