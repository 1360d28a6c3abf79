"""Devices: the list holds together, and what is measured follows from the fastest sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.roofline import devices
from qvec_deploy.bench.roofline.devices import LISTED, find_gpu_here, find_listed, measure_device
from qvec_deploy.errors import RecipeError


def test_listed_devices() -> None:
    names = [name for listed in LISTED.values() for name in listed.nvml]
    assert len(set(names)) == len(names)
    for listed in LISTED.values():
        device = listed.device
        assert device.source == "listed" and device.threads is None and listed.sheet.startswith("NVIDIA")
        assert device.gflops["int8"] / device.gflops["fp16"] in (pytest.approx(2, rel=0.02), pytest.approx(4, rel=0.02))
        assert 100 < device.gflops["fp16"] / device.bandwidth_gb_s < 450  # operations a byte; twice that is a slip


def test_an_unknown_device_names_the_known() -> None:
    assert find_listed("l4").device.name == "NVIDIA L4"
    with pytest.raises(RecipeError, match="no device `l5`") as caught:
        find_listed("l5")
    assert "cpu" in caught.value.hint and "l40s" in caught.value.hint


@pytest.mark.parametrize(("name", "found"), [("NVIDIA A10", "NVIDIA A10"), ("NVIDIA A10G", None), (None, None)])
def test_the_gpu_here(monkeypatch: pytest.MonkeyPatch, name: str | None, found: str | None) -> None:
    @contextlib.contextmanager
    def watch() -> Iterator[SimpleNamespace | None]:
        yield SimpleNamespace(state=lambda: SimpleNamespace(name=name)) if name is not None else None

    monkeypatch.setattr(devices, "watch_gpu", watch)
    listed = find_gpu_here()
    assert (listed.device.name if listed is not None else None) == found


def test_the_fastest_sample_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(sessions: dict[str, object], *_: object, **__: object) -> dict[str, LatencySamples]:
        assert list(sessions) == ["copy", "fp32", "int8"]
        return {
            "copy": LatencySamples(1, (9.0, 5.0)),
            "fp32": LatencySamples(1, (2.0, 4.0)),
            "int8": LatencySamples(1, (1.0, 0.5)),
        }

    monkeypatch.setattr(devices, "measure_latency", measure)
    monkeypatch.setattr(devices, "_buffer_bytes", lambda: 1 << 20)
    device = measure_device(1)
    assert device.bandwidth_gb_s == pytest.approx(2 * (1 << 20) / 5e-3 / 1e9)  # read and written
    assert device.gflops == {
        "fp32": pytest.approx(2 * 512**3 / 2e-3 / 1e9),
        "int8": pytest.approx(2 * 512**3 / 5e-4 / 1e9),
    }
    assert device.threads == 1 and device.source == "measured"


@pytest.mark.slow
def test_this_machine() -> None:
    device = measure_device(2)
    assert 0.5 < device.bandwidth_gb_s < 5000
    assert 1 < device.gflops["fp32"] < 1e5 and 1 < device.gflops["int8"] < 1e6
    assert device.threads == 2 and device.name
