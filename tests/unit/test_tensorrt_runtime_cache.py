"""Kernels that TensorRT for RTX compiled are kept beside the bundle, and are never in the way of an engine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import GPU, Setup, install, write_sources

from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.tensorrt.engine_build import build_files
from qvec_deploy.runtimes.tensorrt.tensorrt_library import RTX, machine
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX
from qvec_deploy.tensors import Scheme

IMAGES = np.zeros((1, 3, 32, 32), np.float32)
STATIC, OPEN = Batches.of(2), Batches(1, 4, 8)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, pico_states["receiver"], Scheme(3, "channel"))
    return folder


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A GPU, and a TensorRT for RTX whose runtime is a stand-in."""
    setup = install(monkeypatch, "1.7.1.116")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", setup.trt)
    return setup


@pytest.fixture
def bundle(setup: Setup, sources: Path, tmp_path: Path) -> Iterator[Path]:
    folder = Path(shutil.copytree(sources, tmp_path / "out" / "bundle"))
    _build(setup, folder, STATIC)
    before = {path.name for path in folder.iterdir()}
    yield folder
    assert {path.name for path in folder.iterdir()} == before, "nothing is written into the bundle"


def _build(setup: Setup, folder: Path, batches: Batches) -> None:
    here = machine(setup.trt, GPU)
    build_files(setup.trt, here, RTX, folder, "float", batches, EngineOptions(), lambda done, total: None)


def _open(folder: Path) -> None:
    with TensorRTForRTX().open(folder, "float", 1) as session:
        assert session.run(IMAGES).shape == (1, 10)


def _caches(bundle: Path) -> list[Path]:
    return sorted(bundle.parent.glob("*.runtime"))


def _config(setup: Setup) -> Any:
    return [each for each in setup.trt.seen if hasattr(each, "cuda_graph_strategy")][-1]


def test_kernels_are_kept_beside_the_bundle_and_read_again(setup: Setup, bundle: Path) -> None:
    _open(bundle)
    (cache,) = _caches(bundle)
    assert cache.name.startswith("tensorrt-rtx-1.7.1.116-nvidia-test-sm89-")
    assert cache.read_bytes() == b"kernels of 2", "the first run's, of the largest batch"
    read: list[bytes] = []
    real = type(_config(setup)).deserialize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(_config(setup)), "deserialize", lambda self, data: read.append(data) or real(self, data))
        written = cache.stat().st_mtime_ns, cache.stat().st_ino
        _open(bundle)
    assert read == [b"kernels of 2"]
    assert (cache.stat().st_mtime_ns, cache.stat().st_ino) == written, "nothing new, so nothing is written"


def test_another_engine_gpu_or_release_has_a_cache_of_its_own(
    setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(bundle)
    setup.trt.__version__ = "1.7.2.0"
    _build(setup, bundle, STATIC)
    _open(bundle)
    first, second = _caches(bundle)
    assert "1.7.1.116" in first.name and "1.7.2.0" in second.name


def test_a_part_of_a_bundle_keeps_its_kernels_outside_too(setup: Setup, bundle: Path) -> None:
    plain = bundle / "lambda0"
    plain.mkdir()
    for path in bundle.iterdir():
        if path.is_file():
            shutil.copy2(path, plain)
    _open(plain)
    assert len(_caches(bundle)) == 1
    shutil.rmtree(plain)


@pytest.mark.parametrize("content", [b"damaged", b"x"])
def test_a_cache_that_is_of_no_use_is_made_anew(setup: Setup, bundle: Path, content: bytes) -> None:
    _open(bundle)
    (cache,) = _caches(bundle)
    cache.write_bytes(content)
    with pytest.warns(UserWarning, match=r"compiled anew: .*\.runtime is damaged, or of another driver"):
        _open(bundle)
    assert cache.read_bytes() == b"kernels of 2"


def test_a_cache_that_cannot_be_written(setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qvec_deploy.errors import StorageError
    from qvec_deploy.runtimes.tensorrt import runtime_cache

    def refuse(path: Path, data: bytes) -> None:
        raise StorageError(f"{path} cannot be written: no space", hint="none")

    monkeypatch.setattr(runtime_cache, "write_bytes", refuse)
    with pytest.warns(UserWarning, match="the next start will compile kernels again, for .* no space"):
        _open(bundle)
    assert _caches(bundle) == []


def test_a_cache_that_cannot_be_read(setup: Setup, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open(bundle)
    (cache,) = _caches(bundle)
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if path == cache:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    with pytest.warns(UserWarning, match="kernels are compiled anew, for .*ermission"):
        _open(bundle)


def test_a_library_that_has_no_cache(setup: Setup, bundle: Path) -> None:
    setup.faults.refuses_cache = True
    with pytest.warns(UserWarning, match="there is no runtime cache: no cache here$"):
        _open(bundle)
    assert _caches(bundle) == []


@pytest.mark.parametrize(("batches", "strategy"), [(STATIC, "DISABLED"), (OPEN, "WHOLE_GRAPH_CAPTURE")])
def test_who_records_a_run(setup: Setup, sources: Path, tmp_path: Path, batches: Batches, strategy: str) -> None:
    """An open batch is recorded by the library, size by size; a static one by the session."""
    folder = Path(shutil.copytree(sources, tmp_path / "bundle"))
    _build(setup, folder, batches)
    _open(folder)
    assert _config(setup).cuda_graph_strategy.name == strategy
    assert setup.cuda.launches == (1 if batches.static else 0)
