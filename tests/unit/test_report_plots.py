"""Where labels go, and which figures there are."""

from dataclasses import replace

import numpy as np
import pytest
from report_example import example_report

from qvec_deploy.bench.results import ConfidenceBin, LayerError, LayerTime, Report
from qvec_deploy.bench.roofline.roofline_values import layer_kind
from qvec_deploy.bench.summary import rows
from qvec_deploy.report.accuracy_section import reliability
from qvec_deploy.report.layer_plot import layer_errors, panels
from qvec_deploy.report.plots import Point, front, spread, trade_offs
from qvec_deploy.report.svg import Figure, labels
from qvec_deploy.report.time_plot import distributions, layer_times


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([10.0, 50.0, 90.0], [10.0, 50.0, 90.0]),
        ([50.0, 50.0], [45.0, 55.0]),
        ([50.0, 50.0, 50.0, 90.0], [40.0, 50.0, 60.0, 90.0]),
        ([0.0, 0.0], [0.0, 10.0]),
        ([100.0, 100.0], [90.0, 100.0]),
        ([1.0] * 20, [10.0 * i for i in range(20)]),
        ([30.0], [30.0]),
    ],
)
def test_labels_are_spread_as_little_as_needed(wanted, placed):
    assert spread(wanted, pitch=10.0, height=100.0) == pytest.approx(placed)


def test_labels_never_overlap_and_keep_their_order():
    draw = np.random.default_rng(0)
    for _ in range(50):
        wanted = sorted(draw.uniform(0, 200, draw.integers(1, 15)))
        placed = spread(wanted, pitch=13.0, height=200.0)
        assert np.all(np.diff(placed) >= 13.0 - 1e-9)
        assert placed[0] >= 0 and placed[-1] <= 200 + 1e-9


def test_layers_are_grouped_by_kind():
    layers = ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.11.attn.qkv", "layers.20.blocks.2.attn.qkv", "proj"]
    assert panels(layers) == {
        "attn.qkv": ["blocks.0.attn.qkv", "blocks.11.attn.qkv", "layers.20.blocks.2.attn.qkv"],
        "mlp.fc1": ["blocks.0.mlp.fc1"],
        "proj": ["proj"],
    }


def test_layers_of_a_kind_are_ordered_by_number():
    layers = [f"blocks.{block}.mlp.fc{which}" for block in (0, 1, 10, 2) for which in (1, 2)]
    assert panels(layers)["mlp.fc2"] == [f"blocks.{block}.mlp.fc2" for block in (0, 1, 2, 10)]
    assert list(panels(layers)) == ["mlp.fc1", "mlp.fc2"]


def figures(report: Report) -> list[Figure]:
    some = (layer_errors(report), layer_times(report), reliability(report))
    return [*trade_offs(rows(report)), *distributions(report), *(figure for figure in some if figure is not None)]


def titles(report: Report) -> list[str]:
    return [figure.title for figure in figures(report)]


@pytest.mark.slow
def test_figures_follow_the_data():
    report = example_report()
    layers = ["Rounding error by layer", "Time by layer", "Confidence and accuracy"]
    assert titles(report) == ["Accuracy and latency", "Accuracy and size", "Latency samples, batch 1", *layers]
    assert titles(example_report(batch_sizes=())) == ["Accuracy and size", layers[0], layers[2]]
    nothing = replace(report["float"], accuracy=None, paired={}, latency=(), layer_times=(), predictions=())
    assert titles(replace(report, candidates=(nothing,), selected=None, warnings=())) == []


def test_rounding_error_is_of_plain_ptq_and_the_selected_one_only():
    report = example_report(selected="ptq_mse")
    svg = layer_errors(report).svg
    assert ">ptq</text>" in svg and ">ptq_mse</text>" in svg
    assert ">mean</text>" not in svg


def test_a_long_name_is_shortened_in_the_figure():
    report = example_report()
    long = replace(report["mean"], name="a" * 60)
    report = replace(report, candidates=(report["float"], long), selected=None, warnings=())
    svg = figures(report)[0].svg
    assert f">{'a' * 7}…{'a' * 12}</text>" in svg


def test_names_that_differ_at_their_ends_stay_apart():
    names = ["demo_symbols-lambda0.5-seed1", "demo_symbols-lambda0.5-seed2", "demo_symbols-lambda0.25-seed1"]
    assert labels(names) == ["…lambda0.5-seed1", "…lambda0.5-seed2", "…lambda0.25-seed1"]
    assert labels(["a-b", "a-c"]) == ["a-b", "a-c"], "short ones stay"
    assert labels(["a" * 30, "a" * 29 + "b"]) == ["a" * 7 + "…" + "a" * 12, "a" * 7 + "…" + "a" * 11 + "b"]
    assert labels(["x-" + "a" * 30] * 2) == ["…" + "a" * 6 + "…" + "a" * 12] * 2


def test_dollar_signs_are_not_mathematics():
    report = example_report()
    odd = replace(report["mean"], name="$x^2$", layer_errors=(LayerError("blocks.0.$y$", 0.2),))
    report = replace(report, candidates=(report["float"], odd), selected="$x^2$", warnings=())
    for figure in figures(report):
        assert ">$x^2$</text>" in figure.svg


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.0, 9.0, 11.0, 5000.0])
def test_any_range_of_sizes_can_be_drawn(factor):
    report = example_report()
    large = replace(report["float"], stored_bytes=int(8_571_904 * factor))
    report = replace(report, candidates=(large, report["ptq"]), selected=None, warnings=())
    assert "stored size, MB" in figures(report)[1].svg


def point(name: str, x: float, y: float, *, ships: bool = True) -> Point:
    return Point(name, "variant", False, (x, x, x), (y, y, y), ships)


def test_the_front_is_what_nothing_else_beats_on_both_axes():
    points = [
        point("slow and good", 3, 90),
        point("fast and poor", 1, 60),
        point("beaten", 2, 55),
        point("middle", 2, 80),
        point("twin", 2, 80),
        point("control", 0.5, 99, ships=False),
    ]
    assert [entry.name for entry in front(points)] == ["fast and poor", "middle", "slow and good"]
    assert front(points[-1:]) == []


def test_a_front_of_controls_alone_is_not_drawn():
    report = example_report()
    report = replace(report, candidates=(report["random_1"], report["random_2"]), baseline="random_1", selected=None)
    latency, _ = trade_offs(rows(replace(report, warnings=())))
    assert [line[-1] for line in latency.samples] == [False, False]


@pytest.mark.slow
def test_a_figure_has_exactly_the_numbers_it_draws():
    report = example_report(batch_sizes=(1, 8))
    latency, size, one, eight, *_ = figures(report)
    medians = {row.candidate.name: row.first_latency.median_ms for row in rows(report)}
    assert {line[0]: line[2] for line in latency.samples} == medians
    assert {line[0]: line[2] for line in size.samples} == {c.name: c.stored_bytes / 1e6 for c in report.candidates}
    for index, figure in ((0, one), (1, eight)):
        taken = {candidate.name: [] for candidate in report.candidates}
        for name, block, value in figure.samples:
            assert block == len(taken[name])
            taken[name].append(value)
        assert taken == {c.name: list(c.latency[index].samples_ms) for c in report.candidates}


def test_times_of_layers_are_of_the_baseline_and_of_what_ships_beside_their_bounds():
    report = example_report(batch_sizes=(1, 8))
    samples = layer_times(report).samples
    assert list(dict.fromkeys(line[0] for line in samples)) == ["float", "mean"]
    first = report["mean"].predictions[0].layers[0]
    (line,) = [line for line in samples if line[:2] == ("mean", first.layer)]
    assert line[2:] == (report["mean"].layer_times[0].ms, first.ms)
    bare = replace(report["float"], predictions=())
    shown = replace(report, candidates=(bare,), selected=None, warnings=())
    assert {line[3] for line in layer_times(shown).samples} == {None}
    assert "roofline" not in layer_times(shown).caption


def test_a_layer_without_a_bound_leaves_its_kind_without_one():
    report = example_report()
    odd = replace(report["float"], layer_times=(*report["float"].layer_times, LayerTime("blocks.12.mlp.fc1", 0.3)))
    assert layer_times(replace(report, candidates=(odd,), selected=None, warnings=())).samples[-1][3] is None


def test_kinds_of_layers():
    assert [layer_kind(name) for name in ("blocks.3.mlp.fc1", "layers.1.blocks.0.attn", "rest")] == [
        "mlp.fc1",
        "attn",
        "rest",
    ]


@pytest.mark.parametrize("samples", [(2.0,) * 40, (0.5, 80.0) * 20, (0.0, 1.0) * 20])
def test_any_spread_of_samples_can_be_drawn(samples):
    report = example_report()
    odd = replace(report["float"], latency=(replace(report["float"].latency[0], samples_ms=samples),))
    (figure,) = distributions(replace(report, candidates=(odd,), selected=None, warnings=()))
    assert "host latency, ms" in figure.svg and "nan" not in figure.svg


def test_empty_bins_of_confidence_are_not_drawn():
    report = example_report()
    answers = replace(report["float"].accuracy, bins=(ConfidenceBin(0, 0, 0.0), ConfidenceBin(2700, 2612, 2650.0)))
    one = replace(report, candidates=(replace(report["float"], accuracy=answers),), selected=None, warnings=())
    figure = reliability(one)
    assert "97 % right at 98 %" in figure.svg
    assert figure.samples == (("float", 0, 0, 0, 0.0), ("float", 1, 2700, 2612, 2650.0))
