"""What a runtime, a lowering or a method takes: the examples beside this folder are added, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from example_lowering import INT8_BLOCKS
from example_method import STOCHASTIC
from example_runtime import TORCH_CPU

from qvec_deploy.bench import run as bench_run
from qvec_deploy.bench.footprint import Footprint
from qvec_deploy.bench.results import Candidate
from qvec_deploy.builder import pipeline
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.registry import RUNTIMES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_work")]

TESTS = Path(__file__).parents[1]
NO_FOOTPRINT = Footprint(load_s=0.1, baseline_rss_bytes=1, rss_bytes=2, peak_rss_bytes=None)


def _build(recipe: Path, folder: Path) -> tuple[Bundle, Candidate]:
    """A bundle, and what was measured of its engine."""
    result = pipeline.build(load_recipe(recipe), folder)
    assert result.report is not None
    (shipped,) = [each for each in result.report.candidates if each.name == "pico"]
    assert shipped.latency
    return Bundle.open(folder), shipped


def test_a_runtime_is_one_module_and_one_row(
    pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RUNTIMES, TORCH_CPU.name, TORCH_CPU)
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{TESTS.parent}")  # of the process that measures memory
    target = {"runtime": "torch-cpu", "lowering": "dequantized", "threads": 1}
    recipe = pico_recipe(target=target, vector=None, **{"lambda": 0.0})
    bundle, measured = _build(recipe, tmp_path / "bundle")
    assert (measured.runtime, measured.lowering, measured.runtime_bits_per_weight) == ("torch-cpu", "dequantized", 32)
    assert measured.footprint is not None and measured.predictions
    assert "parity" in bundle.verify()


def test_a_lowering_is_one_function_and_one_row(
    pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = RUNTIMES["onnxruntime"]
    monkeypatch.setitem(RUNTIMES, own.name, replace(own, lowerings=(*own.lowerings, INT8_BLOCKS)))
    # A process of its own has the table as it is installed, without the row of this test.
    monkeypatch.setattr(bench_run, "probe", lambda *_, **__: NO_FOOTPRINT)
    recipe = pico_recipe(
        target={"lowering": "int8_blocks", "threads": 1}, quantize={"bits": 5}, vector=None, **{"lambda": 0.0}
    )
    bundle, measured = _build(recipe, tmp_path / "bundle")
    assert measured.lowering == "int8_blocks" and 8 < measured.runtime_bits_per_weight < 10
    assert measured.layer_times and "parity" in bundle.verify()


def test_a_method_is_one_file_and_one_row(
    pico_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, STOCHASTIC.name, STOCHASTIC)
    monkeypatch.setattr(bench_run, "probe", lambda *_, **__: NO_FOOTPRINT)
    calibration = {"on": "generated", "count": 8}
    recipe = pico_recipe(quantize={"method": "stochastic", "calibration": calibration}, vector=None, **{"lambda": 0})
    bundle, measured = _build(recipe, tmp_path / "bundle")
    assert (bundle.manifest.method, measured.method) == ("stochastic", "stochastic")
    assert "stochastic on the mse grid" in (tmp_path / "bundle" / "report.md").read_text(encoding="utf-8")
