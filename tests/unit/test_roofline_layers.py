"""What a report gets of every contender's layers: times where there is a profiler, predictions where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from small_engines import write_engine

from qvec_deploy.bench import layers
from qvec_deploy.bench.layers import Layers, measure_layers
from qvec_deploy.bench.results import Candidate, LayerTime
from qvec_deploy.bench.roofline.devices import LISTED
from qvec_deploy.bench.roofline.roofline_values import Device
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.onnxruntime.ort_session import OnnxRuntime

CPU = Device("a CPU", "measured", 10.0, {"fp32": 100.0}, threads=2)
MODEL = SimpleNamespace(name=PICO_MODEL, classes=PICO_CLASSES, args=PICO_ARGS, input_shape=(3, 32, 32))


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Threads that the CPU was measured at, and shapes of the images that were profiled."""
    asked: list[Any] = []

    def measure(threads: int) -> Device:
        asked.append(threads)
        return CPU

    def profile(
        _: OnnxRuntime, directory: Path, lowering: str, threads: int, images: Any, runs: int
    ) -> dict[str, float]:
        asked.append(images.shape)
        if lowering == "packed":
            raise IncompatibleError("names", hint="none")
        return {"head": 0.25, "rest": 1.0}

    monkeypatch.setattr(layers, "measure_device", measure)
    monkeypatch.setattr(OnnxRuntime, "profile", profile)
    return asked


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_engine(tmp_path)
    return tmp_path


def _measure(engine: Path, runtimes: Mapping[str, tuple[str, str]], baseline: str) -> Layers:
    contenders: list[Any] = [
        SimpleNamespace(
            name=name,
            recipe=SimpleNamespace(target=SimpleNamespace(runtime=runtime)),
            directory=engine,
            lowering=lowering,
            threads=2,
        )
        for name, (runtime, lowering) in runtimes.items()
    ]
    bench: Any = SimpleNamespace(model=MODEL, batch_sizes=(4, 1), baseline=baseline)
    return measure_layers(contenders, bench, 2, Progress())


def test_on_the_cpu(engine: Path, asked: list[Any]) -> None:
    runtimes = {"a": ("onnxruntime", "int4"), "b": ("onnxruntime", "packed"), "c": ("torch-cuda", "packed")}
    found = _measure(engine, runtimes, "a")
    assert asked == [2, (1, 3, 32, 32), (1, 3, 32, 32)]
    assert found.device == CPU
    assert found.times == {"a": (LayerTime("head", 0.25), LayerTime("rest", 1.0)), "b": (), "c": ()}
    assert [prediction.batch_size for prediction in found.predictions["a"]] == [1, 4]
    assert found.predictions["c"] == ()
    int4, packed = found.predictions["a"][0], found.predictions["b"][0]
    assert int4.ms < packed.ms  # 4.x against 32 bits, all of it read from memory at one image
    candidate = Candidate("a", "ptq", None, None, "onnxruntime", "int4", 1, 3.0, 4.5)
    filled = found.fill(candidate)
    assert filled.layer_times == found.times["a"] and filled.predictions == found.predictions["a"]


def test_on_a_gpu(engine: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = {"a": ("torch-cuda", "packed"), "b": ("onnxruntime", "int4")}
    monkeypatch.setattr(layers, "find_gpu_here", lambda: LISTED["l4"])
    found = _measure(engine, runtimes, "a")
    assert found.device == LISTED["l4"].device and asked == [(1, 3, 32, 32)]  # the CPU was not measured
    assert len(found.predictions["a"]) == 2 and found.predictions["b"] == ()
    monkeypatch.setattr(layers, "find_gpu_here", lambda: None)
    found = _measure(engine, runtimes, "a")
    assert found.device is None and found.predictions == {"a": (), "b": ()}


def test_a_model_whose_operations_cannot_be_counted(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise IncompatibleError("no", hint="none")

    monkeypatch.setattr(layers, "count_operations", refuse)
    found = _measure(engine, {"a": ("onnxruntime", "int4")}, "a")
    assert found.device is None and found.predictions == {"a": ()} and len(found.times["a"]) == 2
