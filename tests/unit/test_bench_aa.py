"""The A/A benchmark: its table, its exit codes, and that it measures a bundle against itself."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.errors import StorageError

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_aa.py"
STEADY = tuple(1.0 + 0.001 * (i % 7) for i in range(60))


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_aa", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run it on samples: a pair for every A/A run."""
    bundle = SimpleNamespace(
        check_lowering=lambda lowering: lowering, recipe=SimpleNamespace(target=SimpleNamespace(lowering="int4"))
    )
    monkeypatch.setattr(bench.Bundle, "open", lambda directory: bundle)

    def go(pairs: list[tuple[Any, Any]], *arguments: str) -> tuple[int, str]:
        left = iter(pairs)

        def measured(*_: Any) -> tuple[LatencySamples, ...]:
            return tuple(LatencySamples(1, tuple(map(float, samples))) for samples in next(left))

        monkeypatch.setattr(bench, "measure", measured)
        monkeypatch.setattr("sys.argv", ["bench_aa.py", "--runs", str(len(pairs)), *arguments])
        return bench.main(), capsys.readouterr().out

    return go


def test_no_false_alarm(run: Callable[..., Any]) -> None:
    noisy = np.exp(np.random.default_rng(0).normal(0.0, 0.5, (2, 60)))
    code, text = run([(STEADY, STEADY), tuple(noisy)])
    assert code == 0
    assert "SAME 1, UNSURE 1" in text
    assert "false alarms: 0 of 2" in text


@pytest.mark.parametrize("factor", [1.1, 1 / 1.1])
def test_a_false_alarm_is_exit_code_3(run: Callable[..., Any], factor: float) -> None:
    code, text = run([(STEADY, STEADY), (STEADY, tuple(factor * sample for sample in STEADY))], "--json")
    assert code == 3
    document = json.loads(text)
    assert document["false_alarms"] == 1
    assert document["runs"][1]["verdict"] == ("SLOWER" if factor > 1 else "FASTER")
    assert document["level"] == 0.01


def test_too_few_blocks_are_unsure(run: Callable[..., Any]) -> None:
    code, text = run([(STEADY[:5], STEADY[:5])])
    assert code == 0
    assert "too few blocks  UNSURE" in text


def test_a_bundle_that_is_not_there(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_aa.py", "--bundle", str(tmp_path / "none")])
    assert bench.main() == StorageError.exit_code
    assert "none" in capsys.readouterr().err


def test_both_sessions_are_of_the_one_engine(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    class Session:
        input_shape = (3, 4, 4)

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *error: object) -> None:
            opened.append(("closed",))

        def run(self, images: np.ndarray) -> np.ndarray:
            return np.zeros((len(images), 2), np.float32)

    def open_engine(*arguments: Any) -> Session:
        opened.append(arguments)
        return Session()

    backend = SimpleNamespace(open=open_engine)
    monkeypatch.setattr(bench, "find_runtime", lambda runtime: SimpleNamespace(load=lambda: backend))
    bundle = SimpleNamespace(directory=Path("b"), recipe=SimpleNamespace(target=SimpleNamespace(runtime="onnxruntime")))
    first, second = bench.measure(bundle, "int8", 1, 9, 0)
    assert opened == [(Path("b"), "int8", 1)] * 2 + [("closed",)] * 2
    assert len(first.samples_ms) == len(second.samples_ms) == 9
