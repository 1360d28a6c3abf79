"""What a measurement depends on, and what the report says of an engine's file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.bench import run as bench
from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.run import measure_engines, stored_bits_per_weight
from qvec_deploy.bench.warnings import MeasurementWarning
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.progress import Progress
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.recipe import Measure
from qvec_deploy.recipe.blocks import Target
from qvec_deploy.tensors import Scheme


def test_factors_of_inputs_are_stored_too(tmp_path: Path) -> None:
    scheme = Scheme(3, "channel")
    weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    scaled = {"a.weight": pack(quantize(weight, scheme)), "a.bias": np.zeros(32, np.float32)}
    layout = {"a.weight": Entry((32, 64), scheme), "a.bias": Entry((32,), None)}

    def bits(**more: np.ndarray) -> float:
        entries = layout | {name: Entry(value.shape, None) for name, value in more.items()}
        write_packed(tmp_path / "w.safetensors", entries, {**scaled, **more}.items())
        return stored_bits_per_weight(PackedFile.open(tmp_path / "w.safetensors"))

    plain = 3 + 32 * 32 / (32 * 64)
    assert bits() == pytest.approx(plain)
    assert bits(**{"a.input_scale": np.ones(64, np.float32)}) == pytest.approx(plain + 32 * 64 / (32 * 64))


class _Stopped(Exception):
    pass


def test_the_load_is_read_when_nothing_else_of_a_sweep_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = []

    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        alone.append(True)
        yield
        alone.pop()

    def capture(*_: object) -> None:
        raise _Stopped(bool(alone))

    monkeypatch.setattr(bench, "capture_environment", capture)
    target = SimpleNamespace(threads=1, emulated=False, recipe=SimpleNamespace(target=Target()))
    asked: Any = SimpleNamespace(measure=Measure(), alone=hold, profile=False)
    contenders: Any = [target]
    with pytest.raises(_Stopped, match="True"):
        measure_engines(contenders, asked, None, Progress())


def test_where_there_is_no_float_engine_the_best_one_is_doubted() -> None:
    labels = np.repeat(np.arange(10), 20).astype(np.int32)
    asked: Any = SimpleNamespace(model=SimpleNamespace(classes=10, class_names=tuple("abcdefghij")))
    images: Any = SimpleNamespace(class_names=())

    def answers(predictions: np.ndarray) -> Accuracy:
        return Accuracy(labels, predictions.astype(np.int32), None, np.full(200, 0.9, np.float32))

    good, shifted, nothing = answers(labels), answers((labels + 1) % 10), answers(0 * labels)
    assert bench._doubts({"two": nothing, "three": good}, None, asked, images) == []
    (finding,) = bench._doubts({"two": nothing, "three": shifted}, None, asked, images)
    assert finding.subject == "two" and finding.warning is MeasurementWarning.NO_BETTER_THAN_GUESSING
    (finding,) = bench._doubts({"float": shifted, "three": good}, shifted, asked, images)
    assert finding.subject == "float" and finding.detail.count("where the label says `") == 5
    assert bench._doubts({}, None, asked, None) == []


def test_a_deadline_under_the_rules_is_told_by_what_the_rules_ask() -> None:
    measure = Measure(blocks=10, scenarios=("single_stream",), mlperf_rules=True, max_seconds=1.0)
    asked: Any = SimpleNamespace(measure=measure, batch_sizes=(1, 8), baseline="float")
    steady = tuple(10 + 0.01 * (index % 7) for index in range(40))
    latencies = [{"float": LatencySamples(size, steady)} for size in (1, 8)]
    (finding,) = bench._findings({}, latencies, [], asked)
    assert finding.warning is MeasurementWarning.FEWER_SAMPLES
    assert finding.detail == "The time was up after 40 of 64 samples, 0.401 of 600 s (batch size 1)."


def test_a_journal_is_of_images_that_nobody_has_written_since(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / "x.png")
    config = DataConfig()
    model = SimpleNamespace(data_config=asdict(config))
    environment: Any = SimpleNamespace(cpu="a cpu", packages={})
    asked: Any = SimpleNamespace(model=model)

    def described() -> dict[str, Any]:
        images = open_dataset(DatasetSpec("folder", root=tmp_path), config)
        return bench._described([], asked, images, 32, environment)

    before = described()
    assert described() == before
    os.utime(tmp_path / "a" / "x.png", ns=(1, 1))
    assert described() != before
