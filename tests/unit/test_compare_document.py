"""A comparison's regressions, doubts and texts, from scripted values."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from report_example import ENVIRONMENT
from rich.console import Console

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.comparison import (
    AccuracyChange,
    Changed,
    Comparison,
    GateChange,
    LatencyChange,
    Side,
    SizeChange,
    Tolerances,
    comparison_json,
)
from qvec_deploy.bench.environment import GpuState
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.verdicts import (
    GateVerdict,
    accuracy_verdict,
    gate_verdict,
    latency_verdict,
    size_verdict,
)
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.bundle.changes import machine_differences
from qvec_deploy.bundle.compare import require_no_regression
from qvec_deploy.errors import GateError
from qvec_deploy.report.comparison_page import changes_table, comparison_page, verdict_lines, verdict_table
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.report.render_terminal import render_table

OLD_MS = tuple(10 + 0.01 * (index % 7) for index in range(60))


def accuracy(gained: int, lost: int, tolerances: Tolerances, count: int = 5000) -> AccuracyChange:
    word, difference, p = accuracy_verdict(gained, lost, count, level=tolerances.level, tolerance=tolerances.accuracy)
    paired = PairedAnswers(gained, lost, count - gained - lost, count)
    return AccuracyChange(word, "stored", "", "eurosat", "test", 4000, 4000 + gained - lost, paired, difference, p)


def latency(factor: float, tolerances: Tolerances) -> LatencyChange:
    """NEW takes `factor` times as long as OLD."""
    new = tuple(factor * sample for sample in OLD_MS)
    word, ratio = latency_verdict(OLD_MS, new, level=tolerances.level, tolerance=tolerances.latency)
    return LatencyChange(word, "measured", "", 1, ratio, LatencySamples(1, OLD_MS), LatencySamples(1, new))


def make(
    *,
    gained: int = 3,
    lost: int = 3,
    factor: float = 1.0,
    size: int = 1000,
    gates: tuple[GateChange, ...] = (),
    tolerances: Tolerances | None = None,
) -> Comparison:
    tolerances = tolerances or Tolerances()
    side = Side("edge", "2026-01-01T00:00:00+00:00", "0" * 64, "onnxruntime", "int4", "mse", 1.0)
    return Comparison(
        old=side,
        new=replace(side, name="edge_next", lowering="int8"),
        tolerances=tolerances,
        changes=(Changed("recipe", "target.lowering", "int4", "int8"), Changed("sources", "a.pt", "a" * 64, None)),
        accuracy=accuracy(gained, lost, tolerances),
        latency=(latency(factor, tolerances),),
        size=SizeChange(size_verdict(1000, size, tolerances.size), 1000, size, 32.0, 3.02, 32.0, 4.02),
        gates=gates,
        environment=ENVIRONMENT,
        warnings=(Finding(MeasurementWarning.DRIFT, "NEW", "It drifts."),),
        created_by="qvec-deploy 0",
    )


def test_nothing_worse_is_ok() -> None:
    same = make()
    assert same.outcome() == "OK" and same.regressions() == [] and same.doubts() == []
    assert [line.verdict for line in verdict_lines(same)] == ["SAME", "SAME", "SAME"]
    better = make(gained=150, lost=50, factor=0.5, size=500)
    assert [line.verdict for line in verdict_lines(better)] == ["BETTER", "FASTER", "SMALLER"]
    assert better.outcome() == "OK"
    require_no_regression(better, strict=True)


@pytest.mark.parametrize(
    ("change", "line", "lenient"),
    [
        ({"gained": 50, "lost": 150}, "accuracy is WORSE by 2.00 points", Tolerances(accuracy=3.5)),
        ({"factor": 1.1}, "latency at batch size 1 is SLOWER by more than 2 %", Tolerances(latency=0.15)),
        ({"size": 1100}, "size is LARGER by 10 %, more than 1 %", Tolerances(size=0.2)),
    ],
)
def test_every_tolerance(change: dict[str, float], line: str, lenient: Tolerances) -> None:
    comparison = make(**change)  # type: ignore[arg-type]
    (found,) = comparison.regressions()
    assert found.startswith(line) and comparison.outcome() == "REGRESSION"
    with pytest.raises(GateError, match="edge_next is a regression"):
        require_no_regression(comparison)
    allowed = make(**change, tolerances=lenient)  # type: ignore[arg-type]
    assert allowed.regressions() == []


def test_a_real_loss_smaller_than_the_tolerance_is_worse_but_no_regression() -> None:
    comparison = make(gained=60, lost=110, tolerances=Tolerances(accuracy=1.5))
    assert comparison.accuracy.verdict == "WORSE" and comparison.regressions() == []
    assert make(gained=60, lost=110, tolerances=Tolerances(accuracy=0.9)).regressions() != []


@pytest.mark.parametrize(
    ("old", "new", "word", "regression", "doubt"),
    [
        (True, True, "PASSED", False, False),
        (True, False, "MISSED", True, False),
        (False, False, "MISSED", False, True),
        (None, False, "MISSED", True, False),
        (False, True, "PASSED", False, False),
        (True, None, "UNSURE", False, True),
    ],
)
def test_gates(old: bool | None, new: bool | None, word: GateVerdict, regression: bool, doubt: bool) -> None:
    gate = GateChange("min_speedup", gate_verdict(new), old, new, "at least 2×", "1.4×" if new is not None else "")
    comparison = make(gates=(gate,))
    assert gate.verdict is word
    assert bool(comparison.regressions()) is regression and bool(comparison.doubts()) is doubt
    if regression:
        assert comparison.regressions() == ["gate min_speedup is MISSED: wanted at least 2×, found 1.4×"]
    if old is new is False:
        assert comparison.doubts() == ["gate min_speedup: still missed: wanted at least 2×, found 1.4×"]


def test_unsure_fails_only_when_strict() -> None:
    unsure = make()
    unsure = replace(unsure, latency=(LatencyChange("UNSURE", None, "NEW has no engine: none"),))
    assert unsure.outcome() == "UNSURE" and unsure.doubts() == ["latency: NEW has no engine: none"]
    require_no_regression(unsure)
    with pytest.raises(GateError, match="NEW has no engine"):
        require_no_regression(unsure, strict=True)


def test_unsure_tests_say_what_would_decide() -> None:
    noisy = make(gained=95, lost=105)
    loss = "5,000 images reveal a loss of 1.1 points in four of five cases; more would decide"
    assert noisy.doubts() == [f"accuracy: {loss}"]
    wide = replace(make().latency[0], verdict="UNSURE")
    assert "more blocks" in replace(make(), latency=(wide,)).doubts()[0]


def test_stored_latency_is_at_most_a_doubt() -> None:
    slower = make(factor=1.5)
    stored = replace(slower, latency=(replace(slower.latency[0], source="stored"),))
    assert slower.outcome() == "REGRESSION" and stored.outcome() == "UNSURE"
    assert stored.doubts() == ["latency at batch size 1: SLOWER in separate runs; compare without --stored"]
    require_no_regression(stored)
    with pytest.raises(GateError, match="SLOWER in separate runs"):
        require_no_regression(stored, strict=True)


def _markdown(comparison: Comparison) -> str:
    return render_markdown(comparison_page(comparison), "")


def test_json_is_versioned_and_whole() -> None:
    document = json.loads(comparison_json(make(gained=50, lost=150)))
    assert (document["format"], document["version"]) == ("qvec-comparison", 1)
    assert document["derived"]["outcome"] == "REGRESSION" and len(document["derived"]["regressions"]) == 1
    assert document["accuracy"]["verdict"] == "WORSE" and document["accuracy"]["paired"]["count"] == 5000
    assert len(document["latency"][0]["old"]["samples_ms"]) == 60
    assert document["changes"][0] == {
        "group": "recipe",
        "field": "target.lowering",
        "old": "int4",
        "new": "int8",
    }
    assert document["environment"]["cpu"] == ENVIRONMENT.cpu


def test_markdown_has_the_verdicts_on_top() -> None:
    text = _markdown(make(gained=50, lost=150, factor=0.5))
    assert text.startswith("# REGRESSION: edge_next (onnxruntime, int8) against edge (onnxruntime, int4)\n")
    assert text.index("**WORSE**") < text.index("regression: accuracy") < text.index("<details>")
    assert "of 5,000 images of eurosat" in text and "2.00× as fast" in text and "at 99 %, 60 blocks" in text
    assert "drift (NEW): It drifts." in text and "aaaaaaaaaaaa |" in text and "a" * 13 not in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.count(" | ") for line in table[:4]}) == 1


def test_markdown_of_hostile_names_makes_no_table_and_no_tag() -> None:
    comparison = make()
    changes = (Changed("recipe", "a|b", "<script>", "x | y\nz"), Changed("engine", "missing", None, "n" * 500))
    text = _markdown(replace(comparison, changes=changes))
    assert "<script>" not in text and "a\\|b" in text and "n" * 61 not in text


def test_terminal_shows_the_same_words() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        comparison = make(gained=50, lost=150, factor=1.2, size=2000)
        for table in (verdict_table(comparison), changes_table(comparison)):
            assert table is not None
            console.print(render_table(table))
            console.print(table.title)
        text = console.export_text()
    assert all(word in text for word in ("WORSE", "SLOWER", "LARGER", "What changed", "recipe: target.lowering"))


def test_nothing_changed_is_said() -> None:
    comparison = replace(make(), changes=(), warnings=())
    assert "Nothing else changed." in _markdown(comparison)
    assert changes_table(comparison) is None


def test_what_makes_two_machines() -> None:
    runtimes = {"onnxruntime"}
    busy = replace(ENVIRONMENT, load_average=9.0, frequency_mhz=1000.0, load_average_after=3.0)
    assert machine_differences(ENVIRONMENT, busy, runtimes) == []
    other = replace(ENVIRONMENT, cpu="another", threads=1, packages={**ENVIRONMENT.packages, "onnxruntime": "1"})
    assert machine_differences(ENVIRONMENT, other, runtimes) == ["cpu", "threads", "onnxruntime"]
    assert machine_differences(ENVIRONMENT, other, {"tensorrt"}) == ["cpu", "threads"]
    gpu = GpuState("H100", "570", 80 * 2**30, sm_clock_mhz=1000.0)
    hot, old_driver = replace(gpu, sm_clock_mhz=900.0, temperature_c=80.0), replace(gpu, driver="550")
    with_gpu = replace(ENVIRONMENT, gpu=gpu)
    assert machine_differences(with_gpu, replace(ENVIRONMENT, gpu=hot), runtimes) == []
    assert machine_differences(with_gpu, replace(ENVIRONMENT, gpu=old_driver), runtimes) == ["gpu.driver"]
    assert "SAME" == "SAME"
