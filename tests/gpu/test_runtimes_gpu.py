"""The runtimes without TensorRT on a real GPU: parity, graphs, memory, refusals; and the C++ plugin's kernels."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import CASES, Case, dequantized, excess, tensors
from pico import PICO_ARGS
from small_engines import WIDE_ARGS, relative_error, write_engine

from qvec_deploy.bench.latency import measure_latency
from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.plugin_config import PluginConfig
from qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session import CPU, OnnxRuntimeCuda
from qvec_deploy.runtimes.tensorrt.plugin_library import SOURCES
from qvec_deploy.runtimes.torch_cuda.torch_session import GRAPHS, TorchCuda, TorchSession
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.gpu

HALF_TOLERANCE = 5e-3
SHAPE = (3, 32, 32)
IMAGES = parity_images(SHAPE)
SCHEMES = [Scheme(3, "channel"), Scheme(3, "group", 16), Scheme(2, "tensor", method="mse"), Scheme(4, "channel")]


@pytest.mark.parametrize("args", [PICO_ARGS, WIDE_ARGS], ids=["rows", "p32"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_packed_on_the_gpu_is_packed_on_the_cpu(tmp_path: Path, scheme: Scheme, args: dict[str, Any]) -> None:
    reference = write_engine(tmp_path, scheme, args, factors=True)
    with TorchCuda().open(tmp_path, "packed", 1) as session, TorchCuda("cpu").open(tmp_path, "packed", 1) as other:
        logits = session.run(IMAGES)
        assert relative_error(logits, reference) < HALF_TOLERANCE
        assert relative_error(logits, other.run(IMAGES)) < HALF_TOLERANCE


def test_float_on_the_gpu_computes_what_pytorch_computes(tmp_path: Path) -> None:
    reference = write_engine(tmp_path, scheme=None)
    with TorchCuda().open(tmp_path, "float", 1) as session:
        assert relative_error(session.run(IMAGES), reference) < HALF_TOLERANCE


def test_replays_are_deterministic_and_graphs_do_not_disturb_one_another(tmp_path: Path) -> None:
    write_engine(tmp_path, args=WIDE_ARGS)
    generator = np.random.default_rng(0)
    batches = [generator.standard_normal((size, *SHAPE), dtype=np.float32) for size in (1, 3, 7)]
    with TorchCuda().open(tmp_path, "packed", 1) as session:
        first = [session.run(batch) for batch in batches]
        for _ in range(5):
            for batch, expected in zip(reversed(batches), reversed(first), strict=True):
                np.testing.assert_array_equal(session.run(batch), expected)


def test_graphs_are_bounded(tmp_path: Path) -> None:
    write_engine(tmp_path)
    with TorchCuda().open(tmp_path, "packed", 1) as session:
        assert isinstance(session, TorchSession)
        for size in range(1, GRAPHS + 4):
            assert session.run(np.zeros((size, *SHAPE), np.float32)).shape == (size, 10)
        assert list(session._graphs) == list(range(4, GRAPHS + 4))


def test_memory_is_given_back(tmp_path: Path) -> None:
    write_engine(tmp_path, args=WIDE_ARGS)
    with TorchCuda().open(tmp_path, "packed", 1) as session:  # what stays for good, such as cuBLAS's workspace
        session.run(IMAGES)
    del session
    before = torch.cuda.memory_allocated()
    with TorchCuda().open(tmp_path, "packed", 1) as session:
        session.run(IMAGES)
        assert torch.cuda.memory_allocated() > before
    del session
    assert torch.cuda.memory_allocated() <= before


def test_a_session_outlives_the_one_that_was_captured_first(tmp_path: Path) -> None:
    """Recordings share a stream, and cuBLAS keeps a workspace for a stream: each must have its own."""
    write_engine(tmp_path, args=WIDE_ARGS)
    target = TorchCuda()
    with contextlib.ExitStack() as stack:
        with target.open(tmp_path, "float", 1) as first:
            first.run(IMAGES)
            second = stack.enter_context(target.open(tmp_path, "float", 1))
            expected = second.run(IMAGES)
        del first
        torch.cuda.empty_cache()
        poison = [torch.full((1 << 20,), torch.nan, device="cuda") for _ in range(64)]  # where the first one's was
        np.testing.assert_array_equal(second.run(IMAGES), expected)
        del poison


def test_out_of_memory_names_the_batch_that_fits(tmp_path: Path) -> None:
    write_engine(tmp_path)
    with TorchCuda().open(tmp_path, "packed", 1) as session:
        session.run(IMAGES)
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / _total() + 2**27 / _total())
        try:
            with pytest.raises(IncompatibleError, match=r"`packed` does not fit .* at batch 65536; batch \d+ does"):
                session.run(np.zeros((65536, *SHAPE), np.float32))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert session.run(IMAGES).shape == (2, 10)


def _total() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def test_packed_and_float_are_measured_side_by_side(tmp_path: Path) -> None:
    write_engine(tmp_path, args=WIDE_ARGS)
    target = TorchCuda()
    with target.open(tmp_path, "packed", 1) as packed, target.open(tmp_path, "float", 1) as half:
        samples = measure_latency({"packed": packed, "float": half}, IMAGES, blocks=20, warmup=3, seed=0)
    assert all(0 < sample < 100 for taken in samples.values() for sample in taken.samples_ms)


def test_parts_of_a_run_add_up_and_a_cold_cache_is_slower_or_equal(tmp_path: Path) -> None:
    write_engine(tmp_path, args=WIDE_ARGS)
    images = np.resize(IMAGES, (8, *SHAPE))
    with TorchCuda().open(tmp_path, "packed", 1) as session:
        warm = measure_latency({"packed": session}, images, blocks=50, warmup=5, seed=0)["packed"]
        cold = measure_latency({"packed": session}, images, blocks=50, warmup=5, seed=0, cold_l2=True)["packed"]
    for taken in (warm, cold):
        assert taken.stages is not None
        parts = [np.median(part) for part in (taken.stages.h2d_ms, taken.stages.compute_ms, taken.stages.d2h_ms)]
        assert all(part > 0 for part in parts)
        assert sum(parts) < 1.2 * np.median(taken.samples_ms), "device time lies within what the host waits for"
    assert np.median(cold.stages.compute_ms) > 0.95 * np.median(warm.stages.compute_ms)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, words, scale, bias: (x.cpu(), words, scale, bias),
        lambda x, words, scale, bias: (x, words.cpu(), scale, bias),
        lambda x, words, scale, bias: (x.t().contiguous().t(), words, scale, bias),
        lambda x, words, scale, bias: (x.float(), words, scale, bias),
        lambda x, words, scale, bias: (x[:, :128].contiguous(), words, scale, bias),
        lambda x, words, scale, bias: (x, words[:16].contiguous(), scale, bias),
    ],
    ids=["x on the CPU", "words on the CPU", "x not contiguous", "x float32", "x too narrow", "words of another shape"],
)
def test_the_operator_refuses_other_tensors(change: Any) -> None:
    import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers qvec::linear
    from qvec_deploy.runtimes.kernels.layouts import choose_layout

    layout = choose_layout(64, 256, 3)
    codes = np.random.default_rng(0).integers(-4, 4, (64, 256), dtype=np.int8)
    tensors = (
        torch.ones((8, 256), dtype=torch.float16, device="cuda"),
        torch.from_numpy(layout.pack(codes, 3)).cuda(),
        torch.ones((64, 1), device="cuda"),
        torch.zeros(64, dtype=torch.float16, device="cuda"),
    )
    torch.ops.qvec.linear(*tensors, layout.id, 3, 256, 0)
    with pytest.raises(IncompatibleError):
        torch.ops.qvec.linear(*change(*tensors), layout.id, 3, 256, 0)


@pytest.fixture
def provider(request: pytest.FixtureRequest) -> OnnxRuntimeCuda:
    target = OnnxRuntimeCuda()
    reason = target.missing()
    if reason is not None:
        leave = pytest.fail if request.config.getoption("--require-gpu") else pytest.skip
        leave(f"{reason}: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return target


@pytest.mark.parametrize("scheme", [Scheme(3, "channel"), Scheme(3, "group", 16)], ids=str)
def test_int4_runs_on_the_gpu_alone(provider: OnnxRuntimeCuda, tmp_path: Path, scheme: Scheme) -> None:
    """A session that any node of would run on the CPU cannot be loaded, so a loaded one is the proof."""
    reference = write_engine(tmp_path, scheme, WIDE_ARGS, graph=True, factors=True)
    with provider.open(tmp_path, "int4", 1) as session, OnnxRuntimeCuda(CPU).open(tmp_path, "int4", 1) as other:
        for size in (1, 2, 5):
            images = np.resize(IMAGES, (size, *SHAPE))
            assert relative_error(session.run(images), other.run(images)) < HALF_TOLERANCE
        assert relative_error(session.run(IMAGES), reference) < HALF_TOLERANCE


def test_float_runs_on_the_gpu_alone(provider: OnnxRuntimeCuda, tmp_path: Path) -> None:
    reference = write_engine(tmp_path, scheme=None, graph=True)
    with provider.open(tmp_path, "float", 1) as session:
        assert relative_error(session.run(IMAGES), reference) < HALF_TOLERANCE


# The plugin in C++, without TensorRT.

DECLARATIONS = Path(__file__).parents[1] / "tensorrt_declarations"
PLUGIN_CASES = [case for case in CASES if case.dtype == "float16" and case.bits <= 4]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    made = tmp_path_factory.mktemp("plugin") / "libqvec_linear.so"
    command = ["nvcc", "-std=c++17", "-arch=native", "-shared", "-Xcompiler", "-fPIC", f"-I{DECLARATIONS}"]
    subprocess.run([*command, str(SOURCES / "qvec_linear.cu"), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


def _config(case: Case) -> bytes:
    layout = case.device_layout
    return str(PluginConfig(layout.id, layout.version, case.bits, case.n, case.k, case.group)).encode()


def _at(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("case", PLUGIN_CASES, ids=str)
def test_the_plugin_in_c_plus_plus_is_within_rounding(plugin: Any, case: Case) -> None:
    values = tensors(case, "cuda")
    bias = values["bias"] if values["bias"] is not None else torch.zeros(case.n, dtype=torch.float16, device="cuda")
    y = torch.full((case.m, case.n), torch.nan, dtype=torch.float16, device="cuda")
    torch.cuda.synchronize()
    inputs = [_at(each) for each in (values["x"], values["words"], values["scale"], bias)]
    assert plugin.qvec_linear(_config(case), *inputs, case.m, _at(y), None) == 0
    torch.cuda.synchronize()
    assert excess(case, values, y) <= 1.0


@pytest.mark.parametrize("case", PLUGIN_CASES, ids=str)
def test_its_dequantized_weights_are_exact(plugin: Any, case: Case) -> None:
    values = tensors(case, "cuda")
    dense = torch.full((case.n, case.k), torch.nan, dtype=torch.float16, device="cuda")
    torch.cuda.synchronize()
    assert plugin.qvec_dequantize(_config(case), _at(values["words"]), _at(values["scale"]), _at(dense), None) == 0
    torch.cuda.synchronize()
    assert torch.equal(dense.cpu(), dequantized(case, values))
