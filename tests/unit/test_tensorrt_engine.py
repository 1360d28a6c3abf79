"""Engines end to end against a TensorRT that the tests own: built, weighed, checked, opened, run, refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from fake_tensorrt import GPU, Setup, install, write_sources

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, RecipeError, StorageError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.cuda_driver import Gpu, OutOfDeviceMemory
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.runtimes.tensorrt import TENSORRT, tensorrt_builder, tensorrt_library, tensorrt_runtime
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT
from qvec_deploy.tensors import Scheme

State = dict[str, np.ndarray]
TARGET = TensorRT()
LOWERINGS = [row.name for row in TENSORRT.lowerings]


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, State]) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("sources")
    return folder, write_sources(folder, pico_states["receiver"], Scheme(3, "channel", method="mse"))


@pytest.fixture
def folder(tmp_path: Path, built_once: tuple[Path, np.ndarray]) -> Path:
    return Path(shutil.copytree(built_once[0], tmp_path / "bundle"))


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    return install(monkeypatch)


def _images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)


def _compile(folder: Path, lowering: str, options: EngineOptions, **keywords: Any) -> list[str]:
    return TARGET.compile(folder, lowering, options, caches=folder.parent, **keywords)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith("engine.")}


@pytest.mark.slow
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_an_engine_agrees_with_pytorch(
    setup: Setup, folder: Path, built_once: tuple[Path, np.ndarray], lowering: str
) -> None:
    names = _compile(folder, lowering, EngineOptions(batch_sizes=(2,)))
    assert names == [f"engine.{lowering}.b2.plan", f"engine.{lowering}.b2.plan.json"]
    reference = built_once[1]
    with TARGET.open(folder, lowering, 1) as session:
        assert session.input_shape == (3, 32, 32)
        logits = session.run(parity_images((3, 32, 32)))
    assert (
        np.linalg.norm(logits - reference) / np.linalg.norm(reference) < find_lowering("tensorrt", lowering).tolerance
    )
    assert setup.cuda.launches == 1, "it ran as a CUDA graph"
    assert (setup.cuda.memory, setup.cuda.pinned_arrays, setup.cuda.streams) == ({}, 0, 0)
    (engine,) = TensorRT().describe(folder, lowering)
    assert engine["machine"] == {"tensorrt": "10.16.1.11", "gpu": GPU.name, "sm": 89, "driver": "13.0"}
    assert engine["weights_bytes"] == engine["given_bytes"]
    assert engine["plugin_layers"] == (8 if lowering == "packed" else 0)


@pytest.mark.parametrize(
    ("sizes", "count", "launches"), [((1, 4), 6, 3), ((4,), 3, 1), ((2, 8), 1, 1), ((1, 2, 8), 11, 3)]
)
def test_any_batch_is_cut_to_the_engines(
    setup: Setup, folder: Path, sizes: tuple[int, ...], count: int, launches: int
) -> None:
    _compile(folder, "float", EngineOptions(batch_sizes=sizes))
    images = _images(count)
    with TARGET.open(folder, "float", 1) as session:
        together = session.run(images)
        assert setup.cuda.launches == launches
        alone = np.concatenate([session.run(image[None]) for image in images])
    assert together.shape == (count, 10)
    np.testing.assert_allclose(together, alone, rtol=1e-2, atol=1e-2)


def test_a_dynamic_engine_has_a_profile_and_no_graph(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions(batch_sizes=(8, 2), dynamic=True))
    assert _files(folder) == {"engine.float.b2-8.plan", "engine.float.b2-8.plan.json"}
    (((profile,), _),) = _configs(setup)[0].add_optimization_profile.call_args_list
    profile.set_shape.assert_called_once_with("images", (2, 3, 32, 32), (8, 3, 32, 32), (8, 3, 32, 32))
    with TARGET.open(folder, "float", 1) as session:
        seven, one = session.run(_images(7)), session.run(_images(1))
    assert (len(seven), len(one), setup.cuda.launches) == (7, 1, 0)


def test_a_graph_can_be_left_out(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions(cuda_graph=False))
    with TARGET.open(folder, "float", 1) as session:
        session.run(_images(1))
    assert setup.cuda.launches == 0


@pytest.mark.parametrize(
    "images", [_images(1)[:, :, :16], _images(1).astype(np.float64), _images(1)[:0], _images(1)[0]]
)
def test_other_images_are_refused(setup: Setup, folder: Path, images: np.ndarray) -> None:
    _compile(folder, "float", EngineOptions())
    with (
        TARGET.open(folder, "float", 1) as session,
        pytest.raises(IncompatibleError, match=r"takes float32 images \(batch, 3, 32, 32\), got"),
    ):
        session.run(images)


def test_compiling_again_replaces(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions(batch_sizes=(1, 2)))
    _compile(folder, "int4", EngineOptions())
    _compile(folder, "float", EngineOptions(batch_sizes=(4,)))
    engines = {"engine.float.b4.plan", "engine.int4.b1.plan"}
    assert _files(folder) == engines | {f"{name}.json" for name in engines}


def _configs(setup: Setup) -> list[Any]:
    """The builder's configurations so far; `seen` has what was opened, too."""
    return [each[1] for each in setup.trt.seen if not isinstance(each, str)]


@pytest.mark.parametrize(("hardware", "level"), [("ampere_plus", "AMPERE_PLUS"), ("this", None)])
def test_compatibility_is_asked_for(setup: Setup, folder: Path, hardware: str, level: str | None) -> None:
    _compile(folder, "float", EngineOptions(hardware=hardware, version_compatible=level is not None))
    (config,) = _configs(setup)
    if level is None:
        config.set_flag.assert_not_called()
        assert not isinstance(config.hardware_compatibility_level, int), "nobody set it"
    else:
        config.set_flag.assert_called_once_with(setup.trt.BuilderFlag.VERSION_COMPATIBLE)
        assert config.hardware_compatibility_level.name == level


def test_timings_are_kept_by_release_and_gpu(setup: Setup, folder: Path, tmp_path: Path) -> None:
    """The real builder of TensorRT for RTX measures nothing, so what it says of caches would show nothing."""
    _compile(folder, "float", EngineOptions())
    (cache,) = tmp_path.glob("*.timing")
    assert cache.name == "tensorrt-10.16.1.11-nvidia-test-sm89.timing"
    assert cache.read_bytes() == b"timings"
    cache.write_bytes(b"from before")
    _compile(folder, "int4", EngineOptions())
    _configs(setup)[-1].create_timing_cache.assert_called_once_with(b"from before")


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "of another machine"])
def test_timings_that_are_of_no_use_are_left(tmp_path: Path, damaged: bool) -> None:
    (tmp_path / "cache").write_bytes(b"useless")
    config = MagicMock()
    config.create_timing_cache.side_effect = lambda data: None if data and damaged else data
    config.set_timing_cache.side_effect = lambda data, ignore_mismatch: not data
    tensorrt_builder._use_timing_cache(config, tmp_path / "cache")
    assert config.set_timing_cache.call_args.args == (b"", False)


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(setup: Setup, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="the next build will measure again"):
        names = TARGET.compile(folder, "float", EngineOptions(), caches=tmp_path / "file")
    assert _files(folder) == set(names)
    with _opened(folder) as session:
        assert session.run(_images(1)).shape == (1, 10)


def _refuses(error: type[QvecError], match: str, folder: Path, lowering: str = "packed", **options: Any) -> QvecError:
    with pytest.raises(error, match=match) as caught:
        _compile(folder, lowering, EngineOptions(**options))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("lowering", ["packed", "int4", "w8a8"])
def test_unpacked_weights_are_refused(setup: Setup, folder: Path, lowering: str) -> None:
    """What it would store with every quantized weight in float16, and not a byte more."""
    _compile(folder, lowering, EngineOptions())
    (engine,) = TensorRT().describe(folder, lowering)
    weights = PackedFile.open(folder / "weights.qvec.safetensors")
    dense = sum(2 * info.shape[0] * info.shape[1] for info in weights.tensors.values() if info.scheme is not None)
    setup.faults.stores = engine["given_bytes"] - engine["packed_bytes"] + dense
    _refuses(IncompatibleError, "it has unpacked them", folder, lowering)
    assert _files(folder) == set()
    setup.faults.stores = engine["allowed_bytes"]
    _compile(folder, lowering, EngineOptions())


def test_float_weights_cannot_be_unpacked(setup: Setup, folder: Path) -> None:
    setup.faults.unpacks = 100
    _compile(folder, "float", EngineOptions())
    assert _files(folder) == {"engine.float.b1.plan", "engine.float.b1.plan.json"}


def test_a_release_that_does_not_tell_stored_bytes(setup: Setup, folder: Path) -> None:
    del setup.trt.EngineStat
    setup.faults.unpacks = 100
    _compile(folder, "packed", EngineOptions())
    assert TensorRT().describe(folder, "packed")[0]["weights_bytes"] is None


def test_what_a_plugin_raised_comes_through(setup: Setup, folder: Path) -> None:
    plugins: Any = sys.modules["qvec_deploy.runtimes.kernels.plugins"]
    plugins.errors.append(IncompatibleError("ptxas refuses the kernel", hint="none"))
    _refuses(IncompatibleError, "ptxas refuses the kernel", folder)


def test_an_engine_that_cannot_be_weighed(setup: Setup, folder: Path) -> None:
    setup.faults.refuses_plan = True
    _refuses(IncompatibleError, "cannot open what it built: Serialization assertion failed", folder)
    assert _files(folder) == set()


def test_a_tensorrt_that_cannot_start(setup: Setup, folder: Path) -> None:
    def nothing(logger: Any) -> Any:
        logger.log(setup.trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    _compile(folder, "float", EngineOptions())
    setup.trt.Builder = setup.trt.Runtime = nothing
    _refuses(IncompatibleError, "TensorRT cannot start: CUDA initialization failure", folder, "int4")
    with pytest.raises(IncompatibleError, match="TensorRT cannot start"), _opened(folder):
        pass


def test_memory_names_what_fits(setup: Setup, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tensorrt_runtime.build_files

    def build(trt: Any, *arguments: Any, **options: Any) -> Any:
        (batches,) = [each for each in arguments if isinstance(each, Batches)]
        if batches.largest >= 8:
            raise OutOfDeviceMemory("TensorRT ran out of GPU memory", hint="free some")
        return real(trt, *arguments, **options)

    monkeypatch.setattr(tensorrt_runtime, "build_files", build)
    error = _refuses(
        OutOfDeviceMemory,
        "building `float` at batch 8 takes more memory than NVIDIA Test",
        folder,
        "float",
        batch_sizes=(8, 1, 2),
    )
    assert error.hint == "batch 1, 2 fits: leave out the larger ones"
    assert "smaller batch" in _refuses(OutOfDeviceMemory, "batch 8", folder, "float", batch_sizes=(8,)).hint


def test_tensorrts_objects_go_before_the_memory_that_they_point_to(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions(batch_sizes=(1, 2)))
    contexts: list[weakref.ref[Any]] = []
    alive: list[int] = []
    free = setup.cuda.free

    def freeing(address: int) -> None:
        alive.append(sum(context() is not None for context in contexts))
        free(address)

    setup.cuda.free = freeing  # type: ignore[method-assign]
    with _opened(folder) as session:
        contexts += [weakref.ref(engine._context) for engine in session._engines]
        assert all(context() is not None for context in contexts)
    assert alive == [1, 1, 0, 0], "the later engine's context goes first, then its two buffers"


@pytest.mark.parametrize(("sizes", "hint"), [((1, 8), "batch 1 fits"), ((8,), "smaller batch")])
def test_memory_at_load_names_what_fits(setup: Setup, folder: Path, sizes: tuple[int, ...], hint: str) -> None:
    _compile(folder, "float", EngineOptions(batch_sizes=sizes))
    setup.faults.out_of_memory_at = 8
    with pytest.raises(OutOfDeviceMemory, match="`float` at batch 8 does not fit") as caught, _opened(folder):
        pass
    assert hint in caught.value.hint
    assert (setup.cuda.memory, setup.cuda.pinned_arrays, setup.cuda.streams) == ({}, 0, 0)


@contextlib.contextmanager
def _opened(folder: Path, lowering: str = "float") -> Iterator[Any]:
    with TARGET.open(folder, lowering, 1) as session:
        yield session


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("refuses_plan", "cannot open the engine: Serialization"),
        ("refuses_run", "could not run the engine"),
        ("refuses_capture", "cannot be recorded as a CUDA graph: TensorRT could not run"),
    ],
)
def test_what_fails_while_opening(setup: Setup, folder: Path, fault: str, message: str) -> None:
    _compile(folder, "float", EngineOptions())
    setattr(setup.faults, fault, True)
    with pytest.raises(IncompatibleError, match=message), _opened(folder):
        pass
    assert (setup.cuda.memory, setup.cuda.streams) == ({}, 0)


def test_a_driver_that_refuses_the_recording(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions())
    setup.cuda.refuses_capture = True
    with pytest.raises(IncompatibleError, match="as a CUDA graph: the CUDA driver refuses"), _opened(folder):
        pass


# Opening: the sidecar is checked before TensorRT sees the engine.


def _refused(folder: Path, setup: Setup, error: type[QvecError], match: str, lowering: str = "float") -> None:
    setup.trt.seen.clear()
    with pytest.raises(error, match=match) as caught, _opened(folder, lowering):
        pass
    assert "\n" not in caught.value.message
    assert setup.trt.seen == [], "TensorRT saw the file"


def _change(folder: Path, **changes: Any) -> None:
    (path,) = folder.glob("engine.*.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("version", "gpu", "message"),
    [
        ("10.16.2.0", GPU, r"built with TensorRT 10\.16\.1\.11, here is 10\.16\.2\.0"),
        (
            "10.16.1.11",
            Gpu("NVIDIA Other", 89, "13.0"),
            r"built for NVIDIA Test \(sm_89\), here is NVIDIA Other \(sm_89\)",
        ),
        ("10.16.1.11", Gpu("NVIDIA Test", 90, "13.0"), "sm_90"),
        ("10.16.1.11", Gpu("NVIDIA Test", 89, "12.8"), r"driver for CUDA 13\.0, here is one for 12\.8"),
    ],
)
def test_engines_do_not_travel(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, folder: Path, version: str, gpu: Gpu, message: str
) -> None:
    _compile(folder, "float", EngineOptions())
    _refused(folder, install(monkeypatch, version, gpu), IncompatibleError, message)


@pytest.mark.parametrize(
    ("options", "version", "gpu"),
    [
        ({}, "10.16.1.11", Gpu(GPU.name, GPU.sm, "13.2")),
        ({"version_compatible": True}, "10.14.1.48", GPU),
        ({"hardware": "ampere_plus"}, "10.16.1.11", Gpu("NVIDIA H100", 90, "13.0")),
        ({"hardware": "same_compute_capability"}, "10.16.1.11", Gpu("NVIDIA Other", 89, "13.0")),
    ],
)
def test_engines_that_may_travel_do(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, folder: Path, options: dict[str, Any], version: str, gpu: Gpu
) -> None:
    _compile(folder, "float", EngineOptions(**options))
    install(monkeypatch, version, gpu)
    with _opened(folder) as session:
        assert session.run(_images(1)).shape == (1, 10)


@pytest.mark.parametrize(
    ("options", "version", "gpu"),
    [
        ({"version_compatible": True}, "11.0.0", GPU),
        ({"hardware": "ampere_plus"}, "10.16.1.11", Gpu("NVIDIA T4", 75, "13.0")),
        ({"hardware": "same_compute_capability"}, "10.16.1.11", Gpu("NVIDIA H100", 90, "13.0")),
    ],
)
def test_compatibility_has_ends(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, folder: Path, options: dict[str, Any], version: str, gpu: Gpu
) -> None:
    _compile(folder, "float", EngineOptions(**options))
    _refused(folder, install(monkeypatch, version, gpu), IncompatibleError, "built")


def test_an_engine_of_other_weights(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions())
    for name in ("model.onnx", "weights.qvec.safetensors"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data + b"x")
        _refused(folder, setup, IncompatibleError, f"was built from another {name}")
        (folder / name).write_bytes(data)


def test_a_changed_engine(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions())
    engine = folder / "engine.float.b1.plan"
    engine.write_bytes(engine.read_bytes() + b"x")
    _refused(folder, setup, IntegrityError, "was changed after it was built")


def test_an_engine_under_another_name(setup: Setup, folder: Path) -> None:
    _compile(folder, "int4", EngineOptions())
    for name in sorted(_files(folder)):
        (folder / name).rename(folder / name.replace("int4", "float"))
    _refused(folder, setup, IntegrityError, "is not what its sidecar says")


def test_no_engine(setup: Setup, folder: Path) -> None:
    _refused(folder, setup, IncompatibleError, "has no TensorRT engine for lowering `float`")


def test_no_sidecar(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions())
    (folder / "engine.float.b1.plan.json").unlink()
    _refused(folder, setup, IntegrityError, r"engine\.float\.b1\.plan\.json is missing")


@pytest.mark.parametrize("text", ["{", "[]", "{}", "3", "null"])
def test_a_damaged_sidecar(setup: Setup, folder: Path, text: str) -> None:
    _compile(folder, "float", EngineOptions())
    (folder / "engine.float.b1.plan.json").write_text(text)
    _refused(folder, setup, IntegrityError, "is damaged")


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": {"tensorrt": 10, "gpu": "g", "sm": 89, "driver": "13.0"}},
        {"machine": {"tensorrt": "10"}},
        {"machine": 3},
        {"batches": [1, 1, 1]},
        {"hardware": "all"},
        {"input_shape": [3, 32]},
        {"sha256": None},
        {"extra": 1},
    ],
)
def test_an_impossible_sidecar(setup: Setup, folder: Path, changes: dict[str, Any]) -> None:
    _compile(folder, "float", EngineOptions())
    _change(folder, **changes)
    _refused(folder, setup, IntegrityError, "is damaged")


def test_a_sidecar_of_another_version(setup: Setup, folder: Path) -> None:
    _compile(folder, "float", EngineOptions())
    _change(folder, version=2)
    _refused(folder, setup, IncompatibleError, "has format qvec-plan 2, not qvec-plan 1")


# What is missing, and sources that are not there.


def test_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert str(TARGET.missing()).startswith("TensorRT cannot be imported: ")


@pytest.mark.parametrize(
    ("version", "gpu", "lowering", "reason"),
    [
        ("10.2.0", GPU, None, r"TensorRT 10\.2\.0 is installed; 10\.3 and later, below 12\.0, can be used"),
        ("12.0.0.1", GPU, None, r"TensorRT 12\.0\.0\.1 is installed"),
        ("nonsense", GPU, None, "TensorRT nonsense is installed"),
        ("10.8.0.43", GPU, "packed", r"`packed` needs TensorRT 10\.9 or later; 10\.8\.0\.43 is installed"),
        ("11.4.0", Gpu("NVIDIA T4", 75, "13.0"), "packed", r"needs compute capability 8\.0; NVIDIA T4 has 7\.5"),
    ],
)
def test_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, folder: Path, version: str, gpu: Gpu, lowering: str | None, reason: str
) -> None:
    install(monkeypatch, version, gpu)
    with pytest.raises(IncompatibleError, match=reason):
        _compile(folder, lowering or "int4", EngineOptions())
    missing = TARGET.missing(lowering)
    assert missing is not None
    with pytest.raises(IncompatibleError, match=reason), _opened(folder, lowering or "int4"):
        pass


@pytest.mark.parametrize(
    ("version", "lowering"), [("10.3.0", "int4"), ("10.9.0.34", "packed"), ("11.4.0.106", "packed"), ("10.3.0", None)]
)
def test_what_is_enough(monkeypatch: pytest.MonkeyPatch, version: str, lowering: str | None) -> None:
    install(monkeypatch, version)
    assert TARGET.missing(lowering) is None


def test_only_a_bundle_without_kernels_takes_triton(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    given: Any = sys.modules["qvec_deploy.runtimes.kernels.plugins"]
    file = folder / "kernels.json.gz"
    brought = file.read_bytes()
    file.unlink()
    _compile(folder, "packed", EngineOptions())
    assert given.kernels is None
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia", None)
    _refuses(IncompatibleError, "kernels cannot be compiled", folder, "packed")
    _compile(folder, "int4", EngineOptions())
    assert TARGET.missing("packed") is None
    file.write_bytes(brought)
    _compile(folder, "packed", EngineOptions())
    assert given.kernels.kernels
    with _opened(folder, "packed") as session:
        assert session.run(_images(1)).shape == (1, 10)


def test_no_gpu(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise IncompatibleError("the NVIDIA driver finds no GPU", hint="none")

    monkeypatch.setattr(tensorrt_library, "Cuda", refuse)
    assert TARGET.missing() == "the NVIDIA driver finds no GPU"


def test_sources_that_are_not_there(setup: Setup, folder: Path) -> None:
    (folder / "activations.json").unlink()
    _refuses(StorageError, r"activations\.json does not exist", folder, "w8a8")
    (folder / "model.onnx").write_bytes(b"\xff\xff")
    _refuses(IntegrityError, "is damaged", folder)
    (folder / "model.onnx").unlink()
    _refuses(StorageError, r"model\.onnx does not exist", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, "batch sizes"),
        ({"batch_sizes": (0,)}, "batch sizes"),
        ({"hardware": "all"}, "hardware `all`"),
        ({"optimization_level": 6}, "optimization level 6"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EngineOptions(**options)


def test_batches_are_named() -> None:
    assert [str(each) for each in EngineOptions(batch_sizes=(8, 1, 8)).engines()] == ["1", "8"]
    assert str(Batches(1, 4, 8)) == "1-8"
