"""What fits together in a report and what is refused; derived numbers on top of it."""

from dataclasses import replace

import pytest
from report_example import IMAGES, SELECTION, example_report, selecting_report

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import AnswerCounts, Candidate
from qvec_deploy.bench.summary import numbered_warnings, rows
from qvec_deploy.tensors import Scheme


@pytest.fixture(scope="module")
def report():
    return example_report(batch_sizes=(1, 8))


def quantized(scheme: Scheme | None, method: str = "rtn") -> Candidate:
    return Candidate("x", "ptq", scheme, None, "onnxruntime-cpu", "int4", 1, 3.0, 4.0, method=method)


@pytest.mark.parametrize(
    ("scheme", "levels"),
    [
        (Scheme(3, "channel"), 7),
        (Scheme(3, "channel", clip=0.8), 8),
        (Scheme(3, "channel", method="mse"), 8),
        (Scheme(2, "tensor"), 3),
        (Scheme(8, "group", 32), 255),
        (None, None),
    ],
)
def test_levels_are_the_codes_a_quantizer_reaches(scheme, levels):
    assert quantized(scheme).levels == levels


@pytest.mark.parametrize(("method", "levels"), [("rtn", 7), ("awq", 7), ("gptq", 8), ("gptaq", 8)])
def test_error_feedback_reaches_the_lowest_code(method, levels):
    """AWQ rounds to nearest on the grid of its scaled weights, which never reaches it."""
    assert quantized(Scheme(3, "channel"), method).levels == levels


def test_a_selection_fits_the_report():
    report = selecting_report()
    with pytest.raises(ValueError, match="the finalist 'gptaq' is no candidate"):
        replace(report, candidates=report.candidates[:-1], selected="mean", gates=())
    with pytest.raises(ValueError, match="'mean' is shipped and 'gptaq' selected"):
        replace(report, selected="mean")
    with pytest.raises(ValueError, match="'gptaq' is shipped and 'gptaq' selected, of "):
        replace(report, selection=replace(SELECTION, confirmed=SELECTION.confirmed[:2]))


def test_names_are_unique(report):
    with pytest.raises(ValueError, match="share a name"):
        replace(report, candidates=(*report.candidates, report["ptq"]))


@pytest.mark.parametrize("field", ["baseline", "selected"])
def test_baseline_and_selected_are_candidates(report, field):
    with pytest.raises(ValueError, match="'missing' is no candidate"):
        replace(report, **{field: "missing"})


def test_every_accuracy_is_over_all_images(report):
    odd = replace(report["ptq"], name="odd", accuracy=AnswerCounts(1, 10))
    with pytest.raises(ValueError, match=f"odd: 10 images in a report over {IMAGES}"):
        replace(report, candidates=(*report.candidates, odd))


def test_latency_samples_pair_with_the_baselines(report):
    odd = replace(report["ptq"], name="odd", latency=(LatencySamples(1, (1.0, 2.0)),))
    with pytest.raises(ValueError, match="odd: samples by batch size"):
        replace(report, candidates=(*report.candidates, odd))


def test_candidates_by_name_and_role(report):
    assert report["mean"].role == "patched"
    assert report.first("ptq").name == "ptq"
    assert replace(report, candidates=report.candidates[:1], selected=None).first("ptq") is None
    with pytest.raises(KeyError, match="missing"):
        report["missing"]


def test_rows_derive_from_the_inputs(report):
    by_name = {row.candidate.name: row for row in rows(report)}
    mean = by_name["mean"]
    assert mean.selected and not mean.baseline
    assert mean.top1.value == 2463 / IMAGES
    assert mean.deltas["ptq"].value == pytest.approx((2463 - 2011) / IMAGES)
    assert [entry.batch_size for entry in mean.latency] == [1, 8]
    assert mean.first_latency.samples == 40
    assert mean.first_latency.p90_ms > mean.first_latency.median_ms
    assert mean.first_latency.images_per_s == pytest.approx(1000 / mean.first_latency.median_ms)
    assert mean.first_latency.speed_up.contains(11.8 / 9.1)
    assert by_name["float"].baseline
    assert by_name["float"].first_latency.speed_up.value == 1.0


def test_what_was_not_measured_has_no_row_of_it(report):
    bare = replace(report["random_1"], accuracy=None, paired={}, latency=(), footprint=None)
    candidates = tuple(bare if entry.name == "random_1" else entry for entry in report.candidates)
    row = rows(replace(report, candidates=candidates))[5]
    assert (row.top1, row.deltas, row.first_latency) == (None, {}, None)


def test_warnings_are_numbered_by_kind_and_marked_where_they_apply(report):
    entries = numbered_warnings(report)
    assert [(entry.number, entry.title) for entry in entries] == [
        (1, "frequency not fixed"),
        (2, "accuracy difference unclear"),
    ]
    assert [subject for subject, _ in entries[1].details] == ["random_1", "random_2"]
    marks = {row.candidate.name: row.marks for row in rows(report)}
    assert marks["random_1"] == (2,)
    assert marks["mean"] == ()
