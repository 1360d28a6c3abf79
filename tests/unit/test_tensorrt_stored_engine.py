"""The engines of a bundle as files: a delta in a plan's stead, found, described, read, removed, and refused."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_tensorrt import GPU, install, write_sources

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError
from qvec_deploy.io import files
from qvec_deploy.io.files import sha256_file
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.tensorrt import TENSORRT_RTX, engine_build
from qvec_deploy.runtimes.tensorrt.engine_build import engine_files, load_engine, remove_engines, source_paths
from qvec_deploy.runtimes.tensorrt.sidecar import (
    Sidecar,
    delta_path,
    engine_path,
    find_engines,
    read_sidecar,
    sidecar_path,
    stored_path,
    write_sidecar,
)
from qvec_deploy.runtimes.tensorrt.stored_engine import WHOLE, store_engine
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import Built, sidecar_of
from qvec_deploy.runtimes.tensorrt.tensorrt_library import FULL, Library, machine
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT, TensorRTForRTX
from qvec_deploy.tensors import Scheme

SIZES = Batches(1, 8, 8)
LOWERINGS = [row.name for row in TENSORRT_RTX.lowerings if row.name != "packed"]


class WithDeltas(TensorRT):
    """TensorRT whose engines are deltas, as those of TensorRT for RTX are."""

    library: ClassVar[Library] = replace(FULL, stores_deltas=True)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder, pico_states["receiver"], Scheme(3, "channel", method="mse"))
    return folder


@pytest.fixture
def folder(tmp_path: Path, built_once: Path) -> Path:
    return Path(shutil.copytree(built_once, tmp_path / "bundle"))


def _store(folder: Path, lowering: str = "int4", *, alike: bool = True, batches: Batches = SIZES) -> tuple[Path, bytes]:
    """What a build leaves of an engine that holds its graph's constants, or none of them."""
    stored, weights, hashes = engine_build.read_sources(folder)
    graph = engine_build.lower_sources(folder, stored, weights, TENSORRT_RTX.name, lowering, batches)
    noise = np.random.default_rng(0).bytes(700)
    constants = b"".join(tensor.raw_data + noise[:40] for tensor in graph.model.graph.initializer) if alike else b""
    built = Built(noise + constants + bytes(3000), b"", None, 0, 1.0)
    path, here = engine_path(folder, lowering, batches), machine(_Library, GPU)
    sidecar = sidecar_of(built, graph, here, lowering, batches, (3, 32, 32), EngineOptions(), hashes=hashes)
    write_sidecar(path, replace(sidecar, stored_whole=store_engine(path, built.plan, graph.model)))
    return path, built.plan


class _Library:
    __version__ = "1.7.1.116"


def _load(engine: Path) -> bytes:
    return load_engine(engine, TENSORRT_RTX.name)


def _refused(engine: Path, error: type[QvecError], says: str) -> QvecError:
    with pytest.raises(error, match=says) as caught:
        _load(engine)
    return caught.value


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_a_delta_in_an_engines_stead(folder: Path, lowering: str) -> None:
    engine, plan = _store(folder, lowering)
    name = f"engine.{lowering}.b1-8.plan"
    assert not engine.exists() and stored_path(engine).name == f"{name}.delta"
    assert find_engines(folder, lowering) == [engine]
    assert engine_files(folder, lowering, [SIZES]) == [f"{name}.delta", f"{name}.json"]
    assert _load(engine) == plan == TensorRTForRTX().read(folder, lowering, SIZES)
    (described,) = TensorRTForRTX().describe(folder, lowering)
    assert described["file"] == f"{name}.delta" and described["stored_whole"] is None
    assert described["plan_bytes"] == len(plan)
    assert described["stored_bytes"] == stored_path(engine).stat().st_size < len(plan) / 2
    remove_engines(folder, lowering)
    assert not list(folder.glob("engine.*"))


def test_an_engine_that_is_nothing_like_its_graph_is_stored_whole_and_says_so(folder: Path) -> None:
    engine, plan = _store(folder, alike=False)
    assert engine.read_bytes() == plan == _load(engine) and not delta_path(engine).exists()
    (described,) = TensorRTForRTX().describe(folder, "int4")
    assert described["stored_whole"] == WHOLE == read_sidecar(engine).stored_whole
    assert described["stored_bytes"] == described["plan_bytes"] == len(plan)


def test_engines_of_earlier_versions_still_open(folder: Path) -> None:
    """Their sidecars know nothing of deltas, and the plan lies there as it is."""
    engine, plan = _store(folder)
    delta_path(engine).unlink()
    engine.write_bytes(plan)
    document = json.loads(sidecar_path(engine).read_text())
    del document["plan_bytes"], document["stored_whole"]
    sidecar_path(engine).write_text(json.dumps(document))
    assert _load(engine) == plan
    (described,) = TensorRTForRTX().describe(folder, "int4")
    assert described["plan_bytes"] == described["stored_bytes"] == len(plan)


def test_several_engines_of_a_lowering(folder: Path) -> None:
    small, large = (_store(folder, batches=Batches.of(size))[0] for size in (1, 4))
    assert find_engines(folder, "int4") == [small, large]
    assert find_engines(folder, "float") == []


def test_an_altered_engine_or_delta(folder: Path) -> None:
    engine, plan = _store(folder)
    delta = delta_path(engine).read_bytes()
    for altered in (delta[:-1], delta + b"x", b"", delta[:9] + b"x" + delta[10:]):
        delta_path(engine).write_bytes(altered)
        assert str(delta_path(engine)) in _refused(engine, IntegrityError, "the engine's delta is damaged").message
    delta_path(engine).unlink()
    engine.write_bytes(plan + b"x")
    _refused(engine, IntegrityError, "was changed after it was built")


def test_a_delta_of_another_engine(folder: Path) -> None:
    """One that is good in itself: only the sidecar knows that it is not this engine's."""
    engine, plan = _store(folder)
    stored, weights, _ = engine_build.read_sources(folder)
    model = engine_build.lower_sources(folder, stored, weights, TENSORRT_RTX.name, "int4", SIZES).model
    assert store_engine(engine, plan + b"x", model) is None
    _refused(engine, IntegrityError, r"plan\.delta was changed after it was built")


def test_other_sources(folder: Path) -> None:
    engine, _ = _store(folder)
    for path in source_paths(folder).values():
        data = path.read_bytes()
        path.write_bytes(data + b"x")
        _refused(engine, IncompatibleError, f"was built from another {path.name}")
        path.write_bytes(data)


def test_a_graph_that_is_made_otherwise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources are the same; what makes the graph of them is another version, or has other activations."""
    engine, _ = _store(folder)
    lower = engine_build.lower_sources

    def otherwise(*arguments: Any) -> Any:
        graph = lower(*arguments)
        tensor = next(tensor for tensor in graph.model.graph.initializer if len(tensor.raw_data) > 256)
        tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] ^ 1])
        return graph

    monkeypatch.setattr(engine_build, "lower_sources", otherwise)
    error = _refused(engine, IncompatibleError, "a difference to a graph that is made otherwise here")
    assert "qvec-deploy compile BUNDLE" in error.hint and str(delta_path(engine)) in error.message


def test_an_engine_that_is_gone(folder: Path) -> None:
    engine, _ = _store(folder)
    delta_path(engine).unlink()
    assert find_engines(folder, "int4") == []
    _refused(engine, StorageError, "No such file")


@pytest.mark.parametrize("fails", ["plan.delta", "plan.json"])
def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Whether the delta or its sidecar does not fit."""
    real = files.write_bytes

    def full(path: Path, data: bytes) -> None:
        if path.name.endswith(fails):
            with files.storage_errors(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    for module in ("stored_engine", "sidecar"):
        monkeypatch.setattr(f"qvec_deploy.runtimes.tensorrt.{module}.write_bytes", full)
    install(monkeypatch)
    with pytest.raises(StorageError, match="No space left on device"):
        WithDeltas().compile(folder, "int4", EngineOptions(), caches=folder.parent)
    assert not list(folder.glob("*engine.*"))


def test_an_engine_is_rebuilt_and_checked_before_tensorrt_sees_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, backend = install(monkeypatch), WithDeltas()
    names = backend.compile(folder, "int4", EngineOptions(), caches=folder.parent)
    assert names == ["engine.int4.b1.plan.delta", "engine.int4.b1.plan.json"]
    with backend.open(folder, "int4", 1) as session:
        assert session.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 10)
    delta = folder / names[0]
    delta.write_bytes(delta.read_bytes()[:-1])
    monkeypatch.setattr(setup.trt, "Runtime", None)
    with pytest.raises(IntegrityError, match="the engine's delta is damaged"), backend.open(folder, "int4", 1):
        pass


def test_sidecars_say_how_large_an_engine_is(folder: Path) -> None:
    engine, plan = _store(folder)
    sidecar: Sidecar = read_sidecar(engine)
    assert sidecar.plan_bytes == len(plan) and sidecar.sha256 != sha256_file(delta_path(engine))
