"""Engines with our plugin as a library: carried or kept beside them, and checked before anything is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import Setup, install, write_sources

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError
from qvec_deploy.io.files import sha256_file
from qvec_deploy.runtimes.cuda_driver import Gpu
from qvec_deploy.runtimes.engine_options import EngineOptions
from qvec_deploy.runtimes.tensorrt import plugin_library
from qvec_deploy.runtimes.tensorrt.sidecar import find_engines, read_sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT, TensorRTForRTX
from qvec_deploy.tensors import Scheme

TARGET = TensorRT()
ORIN = Gpu("Orin", 87, "12.6")
BESIDE = "engine.packed.plugin.so"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    made = tmp_path_factory.mktemp("sources")
    write_sources(made, pico_states["receiver"], Scheme(3, "channel"))
    (made / "kernels.json.gz").unlink()  # which the library does without
    return made


@pytest.fixture
def folder(tmp_path: Path, sources: Path) -> Path:
    return Path(shutil.copytree(sources, tmp_path / "bundle"))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libqvec_linear.so"
    path.write_bytes(b"\x7fELF QvecLinear " + bytes(range(256)))
    return path


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setattr(plugin_library, "_loaded", {})
    return install(monkeypatch, "10.3.0.30", ORIN)


def _compile(folder: Path, library: Path, lowering: str = "packed") -> list[str]:
    options = EngineOptions(plugin_library=str(library))
    return TARGET.compile(folder, lowering, options, caches=folder.parent)


def _run(folder: Path) -> Any:
    with TARGET.open(folder, "packed", 1) as session:
        return session.run(parity_images((3, 32, 32)))


def _new_process(monkeypatch: pytest.MonkeyPatch, setup: Setup) -> Setup:
    """The same machine without what was loaded."""
    monkeypatch.setattr(plugin_library, "_loaded", {})
    return install(monkeypatch, setup.trt.__version__, ORIN)


def test_an_engine_carries_its_kernel(
    setup: Setup, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "10.9" in str(TARGET.missing("packed"))
    assert _compile(folder, library) == ["engine.packed.b1.plan", "engine.packed.b1.plan.json"]
    (engine,) = find_engines(folder, "packed")
    sidecar = read_sidecar(engine)
    assert (sidecar.plugin_sha256, sidecar.plugin_carried) == (sha256_file(library), True)
    assert setup.trt.seen[0] == "loaded libqvec_linear.so"
    (network, config) = setup.trt.seen[1]
    kinds = setup.trt.NetworkDefinitionCreationFlag
    assert network.flags == 1 << kinds.STRONGLY_TYPED and config.plugins_to_serialize == [str(library)]
    library.unlink()
    there = _new_process(monkeypatch, setup)
    assert np.isfinite(_run(folder)).all()
    assert there.trt.seen == ["deserialized"] and there.trt.host_code


def test_a_library_that_is_not_carried_is_kept_beside(
    setup: Setup, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.faults.carries_plugins = False
    assert _compile(folder, library)[-1] == BESIDE
    (engine,) = find_engines(folder, "packed")
    assert not read_sidecar(engine).plugin_carried
    assert (folder / BESIDE).read_bytes() == library.read_bytes()
    library.unlink()
    there = _new_process(monkeypatch, setup)
    for _ in range(2):  # loaded once
        assert np.isfinite(_run(folder)).all()
    assert there.trt.seen == [f"loaded {BESIDE}", "deserialized", "deserialized"] and not there.trt.host_code

    install(monkeypatch, "11.4.0.106", ORIN)
    TARGET.compile(folder, "int4", EngineOptions(), caches=folder.parent)
    assert (folder / BESIDE).is_file()
    (folder / "engine.packed.b1.plan").unlink()
    assert TARGET.compile(folder, "packed", EngineOptions(), caches=folder.parent)[-1] == "engine.packed.b1.plan.json"


@pytest.mark.parametrize("change", ["missing", "altered"])
def test_a_library_that_is_not_there_is_refused_before_anything_is_loaded(
    setup: Setup, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    setup.faults.carries_plugins = False
    _compile(folder, library)
    beside, error = folder / BESIDE, IntegrityError if change == "altered" else StorageError
    beside.unlink() if change == "missing" else beside.write_bytes(beside.read_bytes() + b"?")
    there = _new_process(monkeypatch, setup)
    says = "is not the library that the engine was built with" if change == "altered" else "does not exist"
    with pytest.raises(error, match=says):
        _run(folder)
    assert there.trt.seen == []


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (None, StorageError, "does not exist"),
        (b"text", IncompatibleError, "is no shared library"),
        (b"\x7fELF another", IncompatibleError, r"TensorRT 10\.3\.0\.30 does not take .* for the plugin QvecLinear"),
    ],
)
def test_what_is_no_plugin_library_is_refused(
    setup: Setup, folder: Path, tmp_path: Path, data: bytes | None, error: type[QvecError], says: str
) -> None:
    path = tmp_path / "lib.so"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(error, match=says):
        _compile(folder, path)
    assert not find_engines(folder, "packed")


def test_a_process_takes_one_library(setup: Setup, folder: Path, library: Path) -> None:
    _compile(folder, library)
    library.write_bytes(library.read_bytes() + b"later")
    with pytest.raises(IncompatibleError, match="this process has another plugin QvecLinear"):
        _compile(folder, library)


def test_where_no_library_is_taken(setup: Setup, folder: Path, library: Path) -> None:
    _compile(folder, library, "int4")
    assert [each for each in setup.trt.seen if str(each).startswith("loaded")] == []
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    options = EngineOptions(plugin_library=str(library))
    with pytest.raises(IncompatibleError, match="takes no plugin library"):
        TensorRTForRTX().compile(folder, "int4", options, caches=folder.parent)
