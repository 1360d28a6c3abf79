"""Devices: what GPUs' data sheets list, and what this machine's CPU is measured to do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from qvec_deploy.bench.environment import capture_environment
from qvec_deploy.bench.gpu_watch import watch_gpu
from qvec_deploy.bench.latency import measure_latency
from qvec_deploy.bench.roofline.roofline_values import Device
from qvec_deploy.bench.runnable import Runnable
from qvec_deploy.errors import RecipeError
from qvec_deploy.runtimes.onnxruntime.ort_product import Product, open_product
from qvec_deploy.tensors import Float32

CPU = "cpu"
"""Name of the CPU here, which is measured."""

REPEATS = 24
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_LEAST_BYTES, _MOST_BYTES = 128 << 20, 1 << 30


@dataclass(frozen=True)
class Listed:
    """A GPU.

    Attributes:
        device: What it can do: dense rates, float16 with float32 sums.
        sheet: Where that is listed. Sheets that give rates "with sparsity" only were halved.
    """

    device: Device
    sheet: str
    nvml: tuple[str, ...]


def _gpu(name: str, bandwidth_gb_s: float, fp16_tflops: float, int8_tops: float, sheet: str, *nvml: str) -> Listed:
    rates = {"fp16": 1e3 * fp16_tflops, "int8": 1e3 * int8_tops}
    return Listed(Device(name, "listed", bandwidth_gb_s, rates), sheet, nvml)


_A100, _H100 = "NVIDIA A100 Tensor Core GPU data sheet", "NVIDIA H100 Tensor Core GPU data sheet"
LISTED = {
    "t4": _gpu("NVIDIA T4", 320, 65, 130, "NVIDIA T4 product brief (PB-09256)", "Tesla T4", "NVIDIA T4"),
    "a10": _gpu("NVIDIA A10", 600, 125, 250, "NVIDIA A10 Tensor Core GPU data sheet", "NVIDIA A10"),
    "a30": _gpu("NVIDIA A30", 933, 165, 330, "NVIDIA A30 Tensor Core GPU data sheet", "NVIDIA A30"),
    "a40": _gpu("NVIDIA A40", 696, 149.7, 299.3, "NVIDIA A40 data sheet", "NVIDIA A40"),
    "a100-40gb": _gpu("NVIDIA A100 40 GB", 1555, 312, 624, _A100, "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    "a100-pcie-80gb": _gpu("NVIDIA A100 PCIe 80 GB", 1935, 312, 624, _A100, "NVIDIA A100 80GB PCIe"),
    "a100-sxm-80gb": _gpu("NVIDIA A100 SXM4 80 GB", 2039, 312, 624, _A100, "NVIDIA A100-SXM4-80GB"),
    "l4": _gpu("NVIDIA L4", 300, 121, 242.5, "NVIDIA L4 Tensor Core GPU data sheet", "NVIDIA L4"),
    "l40s": _gpu("NVIDIA L40S", 864, 362, 733, "NVIDIA L40S data sheet", "NVIDIA L40S"),
    "h100-pcie": _gpu("NVIDIA H100 PCIe", 2000, 756, 1513, _H100, "NVIDIA H100 PCIe"),
    "h100-sxm": _gpu("NVIDIA H100 SXM5", 3350, 989.5, 1979, _H100, "NVIDIA H100 80GB HBM3"),
    "h200": _gpu("NVIDIA H200 SXM", 4800, 989.5, 1979, "NVIDIA H200 Tensor Core GPU data sheet", "NVIDIA H200"),
    "rtx-4090": _gpu(
        "NVIDIA GeForce RTX 4090", 1008, 165.2, 660.6, "NVIDIA Ada GPU architecture paper", "NVIDIA GeForce RTX 4090"
    ),
}
"""By the name that `--device` takes. Names of NVML are compared whole: an A10G is no A10."""


def find_listed(name: str) -> Listed:
    """A GPU by its short name."""
    if name not in LISTED:
        raise RecipeError(f"no device `{name}` is listed", hint=f"use {CPU} (measured here), {', '.join(LISTED)}")
    return LISTED[name]


def find_gpu_here() -> Listed | None:
    """The GPU that CUDA uses here, if there is one and NVML's name for it is in a listed data sheet."""
    with watch_gpu() as watch:
        name = watch.state().name if watch is not None else None
    return next((listed for listed in LISTED.values() if name in listed.nvml), None)


def measure_device(threads: int) -> Device:
    """What this machine's CPU does at best: the fastest of several copies and matrix products.

    Bandwidth: a copy between two arrays far larger than the last cache, bytes read and bytes written. Rates: square
    products in ONNX Runtime, whose kernels the engines run on; int8 is its MatMulInteger, without the quantization of
    activations that an engine does besides. Half a second, longer where others use the machine: the fastest of many
    short repeats is then still near what the machine can do. Nothing is kept.
    """
    environment = capture_environment(threads)
    images = np.zeros((1, 1, 1, 1), np.float32)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        copy = _Copy(_buffer_bytes(), threads, pool)
        products: dict[str, Product] = {kind: open_product(kind, threads) for kind in ("fp32", "int8")}
        sessions: dict[str, Runnable] = {"copy": copy, **products}
        samples = measure_latency(sessions, images, blocks=REPEATS, warmup=0, seed=0)
    best_ms = {name: min(taken.samples_ms) for name, taken in samples.items()}
    gflops = {kind: product.flops / best_ms[kind] / 1e6 for kind, product in products.items()}
    return Device(environment.cpu, "measured", copy.moved / best_ms["copy"] / 1e6, gflops, threads)


class _Copy:
    """One array into another, in one slice per thread; numpy lets go of the interpreter's lock meanwhile."""

    def __init__(self, size: int, threads: int, pool: ThreadPoolExecutor) -> None:
        self._source, self._sink = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
        edges = np.linspace(0, size // 4, threads + 1).astype(int)
        self._parts = [slice(start, end) for start, end in pairwise(edges)]
        self._pool = pool
        self.moved = 2 * self._source.nbytes

    def run(self, images: Float32) -> Float32:
        """Copy everything once."""
        list(self._pool.map(lambda part: np.copyto(self._sink[part], self._source[part]), self._parts))
        return images


def _buffer_bytes() -> int:
    """Four times the last cache, where the system tells its size."""
    try:
        cache = int(_L3.read_text(encoding="ascii").strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        cache = 0
    return min(max(_LEAST_BYTES, 4 * cache), _MOST_BYTES)
