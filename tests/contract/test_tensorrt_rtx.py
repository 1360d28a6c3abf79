"""Engines by NVIDIA's real builder, TensorRT for RTX, on the CPU: what it computes, and what is refused."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import write_sources
from linear_graphs import image_shape, linear_graph
from without_build import device_environment

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, StorageError
from qvec_deploy.io.files import sha256_bytes
from qvec_deploy.jobs.job import Job
from qvec_deploy.jobs.processes import LocalProcesses
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import check_engine, find_lowering, usual_capabilities
from qvec_deploy.runtimes.runtime import Lowering
from qvec_deploy.runtimes.session import LinearProduct
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX, engine_build, python_plugin, tensorrt_library
from qvec_deploy.runtimes.tensorrt.python_plugin import library_folder
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar, engine_path, find_engines, mismatch, read_sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import Built, build_engine
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine, load_tensorrt
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX
from qvec_deploy.tensors import Scheme

pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
BACKEND = TensorRTForRTX()
OPTIONS = EngineOptions(compute_capabilities=(8.6, 8.9))
SHAPE = (3, 4, 8)  # as an image: 3 x 4 rows of 8 columns, which the graph reshapes


def _row(lowering: str) -> Lowering:
    return find_lowering(TENSORRT_RTX.name, lowering)


def _build(lowering: Lowering, columns: int = 96, options: EngineOptions = OPTIONS) -> Built:
    graph = linear_graph(lowering, columns)
    return build_engine(load_tensorrt(tensorrt_library.RTX), graph, Batches(1, 8, 8), image_shape(columns), options)


@pytest.mark.parametrize(
    "lowering",
    [
        pytest.param(lowering, id=f"{row.name}-{lowering.name}")
        for row in (TENSORRT, TENSORRT_RTX)
        for lowering in row.lowerings
        if not linear_graph(lowering, 768).plugin_layers
    ],
)
def test_a_linear_is_multiplied_as_it_is_stored(lowering: Lowering) -> None:
    """The builder takes the graphs of full TensorRT's lowerings too, but for those that need a plugin."""
    least = find_lowering(TENSORRT_RTX.name, lowering.name).least_capability
    able = tuple(each for each in TENSORRT_RTX.compute_capabilities if each >= least)
    columns, rows = 768, 64
    built, graph = _build(lowering, columns, EngineOptions(compute_capabilities=able)), linear_graph(lowering, columns)
    assert len(built.plan) > 100_000
    bits = lowering.weight_bits(rows, columns, Scheme(3, "channel"))
    assert (
        built.weights_bytes is not None and bits / 8 <= built.weights_bytes < bits / 8 + 8192
    )  # scales of blocks are stored for 128 rows at least
    assert len(built.products) == len(graph.products)
    for product, wanted in zip(built.products, graph.products, strict=True):
        assert product.fused and wanted.inputs in product.inputs and wanted.weights in product.constants


@pytest.mark.parametrize("columns", [96, 768])  # in either layout
def test_a_linear_stays_packed_for_our_plugin(columns: int) -> None:
    job = Job("linear", "job_functions:build_packed_linear", {"columns": columns})
    with (
        library_folder() as folder,
        LocalProcesses(1, environment={"LD_LIBRARY_PATH": str(folder)}) as processes,
    ):
        processes.submit(job)
        (outcome,) = processes.outcomes()
    assert outcome.failure is None, outcome.failure
    built: Any = outcome.result
    assert built["fused"] and built["constants"] == ["Int32", "Float", "Half"]
    bits = _row("packed").weight_bits(64, columns, Scheme(3, "channel"))
    assert bits / 8 <= built["weights"] < bits / 8 + 1024


def test_without_the_name_that_the_parser_looks_for_nothing_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it missing the parser would end this process."""
    monkeypatch.setattr(python_plugin, "NAME", "libnothing_of_that_name.so")
    with pytest.raises(IncompatibleError, match=r"a library named libnothing_of_that_name\.so and aborts without"):
        _build(_row("packed"), 768)


def test_a_wheel_without_the_library_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_plugin, "_LIBRARY", "libtensorrt_rtx.so.9")
    with pytest.raises(IncompatibleError, match=r"libtensorrt_rtx\.so\.9 .* is not where its wheel puts it"):
        BACKEND.compile(folder, "packed", EngineOptions(), caches=folder.parent)


def test_old_gpus_and_bundles_without_kernels_are_refused_for_packed(folder: Path, tmp_path: Path) -> None:
    options = EngineOptions(compute_capabilities=(7.5, 8.6))
    with pytest.raises(IncompatibleError, match=r"compute capability 7\.5"):
        BACKEND.compile(folder, "packed", options, caches=folder.parent)
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "kernels.json.gz").unlink()
    with pytest.raises(IncompatibleError, match="has no compiled kernels for its engines to launch"):
        BACKEND.compile(bare, "packed", EngineOptions(), caches=tmp_path)


@pytest.mark.parametrize("lowering", [_row(name) for name in ("int4", "fp8", "nvfp4")], ids=lambda row: row.name)
def test_gpus_that_lack_the_arithmetic_are_refused_by_the_builder_too(lowering: Lowering) -> None:
    unable = max(each for each in TENSORRT_RTX.compute_capabilities if each < lowering.least_capability)
    with pytest.raises(IncompatibleError, match="TensorRT cannot build the engine"):
        _build(lowering, 768, EngineOptions(compute_capabilities=(unable,)))


def test_a_padded_block_is_expanded_and_refused() -> None:
    """Rows of 12 weights make no two blocks of any size."""
    with pytest.raises(IncompatibleError, match="1 of 1 Linears are not multiplied as they are stored: `fc`"):
        _build(_row("int4"), 12)


def test_a_capability_that_the_library_lacks() -> None:
    with pytest.raises(IncompatibleError, match=r"does not build for compute capability 9\.0"):
        _build(_row("float"), options=EngineOptions(compute_capabilities=(8.6, 9.0)))


@pytest.mark.parametrize(
    ("wanted", "others", "says"),
    [
        ((9.0,), False, "does not build for compute capability 9.0"),
        ((8.6, 8.9, 8.6), False, "was given 8.6 twice"),
        ((8.9, 8.6), False, "GPUs of compute capability 8.6 lack the arithmetic of lowering `fp8`"),
        ((), True, "neither `hardware` nor `version_compatible`"),
    ],
)
def test_what_cannot_be_asked_for(wanted: tuple[float, ...], others: bool, says: str) -> None:
    with pytest.raises(IncompatibleError, match=says):
        check_engine("tensorrt-rtx", "fp8", wanted, others=others)
    check_engine("tensorrt-rtx", "float", (8.6, 12.0), others=False)
    with pytest.raises(IncompatibleError, match="does not build engines for compute capabilities"):
        check_engine("tensorrt", "float", (8.6,), others=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, dict[str, np.ndarray]]) -> Path:
    made = tmp_path_factory.mktemp("sources")
    write_sources(made, pico_states["receiver"], Scheme(3, "channel"))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("lowering", [row.name for row in TENSORRT_RTX.lowerings])
def test_a_bundle_gets_its_engine_without_a_gpu(folder: Path, lowering: str) -> None:
    seen: list[str] = []

    def stage(name: str) -> Any:
        seen.append(name)
        return engine_build_stage()

    assert BACKEND.cannot_build(lowering) is None
    names = BACKEND.compile(folder, lowering, EngineOptions(), caches=folder.parent, stage=stage)
    assert names == [f"engine.{lowering}.b1-8.plan.delta", f"engine.{lowering}.b1-8.plan.json"]
    assert seen == [f"{lowering}, batch 1-8"]
    (engine,) = find_engines(folder, lowering)
    sidecar = read_sidecar(engine)
    plan = BACKEND.read(folder, lowering, Batches(1, 8, 8))
    assert sidecar.sha256 == sha256_bytes(plan)
    assert (folder / names[0]).stat().st_size < len(plan) / 10
    _made_again_elsewhere(folder, lowering, sidecar.sha256)
    able = usual_capabilities(BACKEND.library.runtime, lowering)
    assert (
        sidecar.compute_capabilities == able == {"fp8": (8.9, 12.0), "nvfp4": (12.0,)}.get(lowering, (8.6, 8.9, 12.0))
    )
    assert sidecar.weights_bytes is not None and sidecar.weights_bytes > 0
    assert len(sidecar.products) == (0 if lowering == "float" else 8)
    assert all(product.fused for product in sidecar.products)
    (described,) = BACKEND.describe(folder, lowering)
    assert described["compute_capabilities"] == able
    assert described["plan_bytes"] == len(plan)


def _made_again_elsewhere(folder: Path, lowering: str, sha256: str) -> None:
    """In another process, which has neither NVIDIA's library nor PyTorch nor Triton."""
    program = (
        "import hashlib, sys; from pathlib import Path; "
        "from qvec_deploy.runtimes.engine_options import Batches; "
        "from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRTForRTX; "
        "plan = TensorRTForRTX().read(Path(sys.argv[1]), sys.argv[2], Batches(1, 8, 8)); "
        "print(hashlib.sha256(plan).hexdigest())"
    )
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**device_environment(Path(scratch)), "PYTHONHASHSEED": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), lowering],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
    assert done.stdout.strip() == sha256, done.stderr


def engine_build_stage() -> Any:
    """A stage that shows nothing."""
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


@pytest.mark.parametrize("interrupted", [False, True])
def test_nothing_is_left_of_a_build_that_did_not_fail(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def advance(done: int, total: int) -> None:
        if interrupted:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
        engine_build.build_apart(folder, "float", Batches.of(1), OPTIONS, advance)
    assert list(tmp_path.glob("qvec-engine.*")) == []


def test_a_build_that_hangs_or_fails_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = EngineOptions(compute_capabilities=(8.6, 9.0))
    with pytest.raises(IncompatibleError, match=r"compute capability 9\.0") as caught:
        engine_build.build_apart(folder, "float", Batches.of(1), options, lambda done, total: None)
    assert "the library's log is" in caught.value.hint
    log = Path(caught.value.hint.rpartition("log is ")[2])
    assert log.is_file()
    assert not engine_path(folder, "float", Batches.of(1)).exists()


def test_a_library_that_hangs_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "JOB", "job_functions:hang")
    with pytest.raises(
        IncompatibleError, match=r"^building `float` at batch 1 .* failed: it took more than \d+ seconds$"
    ):
        engine_build.build_apart(folder, "float", Batches.of(1), OPTIONS, lambda done, total: None)


@pytest.mark.parametrize(("number", "says"), [(signal.SIGALRM, "it took more than"), (signal.SIGABRT, "SIGABRT")])
def test_a_process_that_dies_is_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, says: str
) -> None:
    monkeypatch.setattr(engine_build, "JOB", "job_functions:die_of")
    options = EngineOptions(compute_capabilities=(8.6,), workspace_mib=int(number))
    with pytest.raises(IncompatibleError, match=says):
        engine_build.build_apart(folder, "float", Batches.of(1), options, lambda done, total: None)


@pytest.mark.parametrize(("damage", "error"), [(b"no model", IntegrityError), (None, StorageError)])
def test_errors_about_files_keep_their_kind(
    folder: Path, tmp_path: Path, damage: bytes | None, error: type[QvecError]
) -> None:
    """A damaged model and a missing one; a full disk comes the same way."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("engine.*")))
    (copy / "model.onnx").unlink()
    if damage is not None:
        (copy / "model.onnx").write_bytes(damage)
    options = EngineOptions(compute_capabilities=(8.6,))
    with pytest.raises(error, match=r"model\.onnx"):
        engine_build.build_apart(copy, "float", Batches.of(1), options, lambda done, total: None)
    assert not list(copy.glob("*engine*"))


def test_which_gpus_run_it() -> None:
    built = Machine("1.7.1.116", "GPUs of compute capability 8.6, 8.9", 0, "0.0")
    sidecar = Sidecar(
        built, "int4", Batches.of(1), SHAPE, "this", False, True, 0, 1, 1, None, 1, 0, "", "", "", 1.0, (8.6, 8.9),
        (LinearProduct("fc", "gemm", ("Half",), ("Int4",), True),),
    )  # fmt: skip
    assert mismatch(sidecar, Machine("1.7.1.116", "RTX 4090", 89, "13.0")) is None
    assert "here is RTX 5090 (12.0)" in (mismatch(sidecar, Machine("1.7.1.116", "RTX 5090", 120, "13.0")) or "")
    assert "here is 1.7.2" in (mismatch(sidecar, Machine("1.7.2", "RTX 4090", 89, "13.0")) or "")


@pytest.mark.slow
def test_one_image_at_a_time(folder: Path) -> None:
    """The residual after `attn.proj` and `fc2` takes no weights out of their 4 bits."""
    options = EngineOptions(batch_sizes=(1,), dynamic=False)
    names = BACKEND.compile(folder, "int4", options, caches=folder.parent)
    assert names[0].startswith("engine.int4.b1.plan")
    products = BACKEND.products(folder, "int4")
    assert len(products) == 8 and all(product.fused for product in products)
