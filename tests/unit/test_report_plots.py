"""Where labels go, and which figures there are."""

from dataclasses import replace

import numpy as np
import pytest
from report_example import example_report

from qvec_deploy.report.layer_plot import panels
from qvec_deploy.report.plots import figures, spread
from qvec_deploy.report.summary import rows
from qvec_deploy.report.values import LayerError


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


def titles(report) -> list[str]:
    return [figure.title for figure in figures(report, rows(report))]


def test_figures_follow_the_data():
    report = example_report()
    assert titles(report) == ["Accuracy and latency", "Accuracy and size", "Rounding error by layer"]
    no_latency = example_report(batch_sizes=())
    assert titles(no_latency) == ["Accuracy and size", "Rounding error by layer"]
    nothing = replace(report["float"], accuracy=None, paired={})
    assert titles(replace(report, candidates=(nothing,), selected=None, warnings=())) == []


def test_rounding_error_is_of_plain_ptq_and_the_selected_one_only():
    report = example_report(selected="ptq_mse")
    svg = figures(report, rows(report))[2].svg
    assert ">ptq</text>" in svg and ">ptq_mse</text>" in svg
    assert ">mean</text>" not in svg


def test_a_long_name_is_shortened_in_the_figure():
    report = example_report()
    long = replace(report["mean"], name="a" * 60)
    report = replace(report, candidates=(report["float"], long), selected=None, warnings=())
    svg = figures(report, rows(report))[0].svg
    assert f">{'a' * 19}…</text>" in svg


def test_dollar_signs_are_not_mathematics():
    report = example_report()
    odd = replace(report["mean"], name="$x^2$", layer_errors=(LayerError("blocks.0.$y$", 0.2),))
    report = replace(report, candidates=(report["float"], odd), selected="$x^2$", warnings=())
    for figure in figures(report, rows(report)):
        assert ">$x^2$</text>" in figure.svg


@pytest.mark.parametrize("factor", [1.0, 9.0, 11.0, 5000.0])
def test_any_range_of_sizes_can_be_drawn(factor):
    report = example_report()
    large = replace(report["float"], stored_bytes=int(8_571_904 * factor))
    report = replace(report, candidates=(large, report["ptq"]), selected=None, warnings=())
    assert "stored size, MB" in figures(report, rows(report))[1].svg
