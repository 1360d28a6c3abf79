"""TensorRT, and TensorRT for RTX, on NVIDIA GPUs: two products with one interface, and a row each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.runtime import BY_ROW, EVERY_WIDTH, Lowering, Runtime, TritonBackend, float16_bits
from qvec_deploy.tensors import Scheme

_LINEAR = "qvec_deploy.runtimes.tensorrt.tensorrt_linear"

INT4_BLOCKS = (64, 128)
"""Block sizes of TensorRT's INT4."""

RTX_INT4_BLOCKS = (16, 32, 64, 128, 256)
"""Block sizes of the INT4 of TensorRT for RTX."""


def int4_block(columns: int, group_size: int, blocks: tuple[int, ...] = INT4_BLOCKS) -> int:
    """Block size of INT4 for rows of `columns` weights: the one with fewest scales that TensorRT multiplies with.

    A row that is one block, or that has to be padded, is expanded to float16 by a kernel of its own at every run.
    """
    fitting = [block for block in blocks if group_size % block == 0]
    if not fitting:
        raise IncompatibleError(
            f"TensorRT's INT4 takes blocks of {', '.join(map(str, blocks))} weights, not groups of {group_size}",
            hint=f"use a group size that is a multiple of {min(blocks)}, granularity channel, or another lowering",
        )
    fused = [block for block in fitting if columns % block == 0 and columns >= 2 * block]
    if fused or group_size:
        return max(fused or fitting)
    return min(fitting, key=lambda block: (-(-columns // block) * (4 * block + 16), -block))


NVFP4_BLOCK = 16
"""Weights that share a scale in NVFP4."""


def _packed(rows: int, columns: int, scheme: Scheme) -> float:
    return 32.0 * rows * (scheme.bits * -(-columns // 32) + scheme.groups(columns))


def _int4(rows: int, columns: int, scheme: Scheme, blocks: tuple[int, ...] = INT4_BLOCKS) -> float:
    block = int4_block(columns, scheme.group_size, blocks)
    return float(rows * -(-columns // block) * (4 * block + 16))


def _eight_bits(rows: int, columns: int, _: Scheme) -> float:
    return rows * (8.0 * columns + 16)


def _nvfp4(rows: int, columns: int, _: Scheme) -> float:
    if columns % NVFP4_BLOCK:
        raise IncompatibleError(
            f"NVFP4 takes rows of whole blocks of {NVFP4_BLOCK} weights, not of {columns}",
            hint="use the lowering `fp8`, `w8a8` or `int4`",
        )
    return rows * (4.0 * columns + 16)  # Linears of one shape share the scales of blocks, which are all 1


TENSORRT = Runtime(
    name="tensorrt",
    backend="qvec_deploy.runtimes.tensorrt.tensorrt_runtime:TensorRT",
    device="cuda",
    float_bits=16,
    lowerings=(
        Lowering(
            "float",
            "float16 weights and arithmetic: the baseline",
            (16,),
            2e-2,
            "fp16",
            float16_bits,
            implementation=f"{_LINEAR}:to_float",
        ),
        Lowering(
            "packed",
            "our plugin: weights stay packed",
            (2, 3, 4),
            2e-2,
            "fp16",
            _packed,
            group_multiple=16,
            carries_kernels=True,
            implementation=f"{_LINEAR}:to_packed",
        ),
        Lowering(
            "int4",
            "the exact codes as blocks of INT4, TensorRT's own kernels",
            (2, 3, 4),
            2e-2,
            "fp16",
            _int4,
            group_multiple=64,
            implementation=f"{_LINEAR}:to_int4",
        ),
        Lowering(
            "w8a8",
            "the exact codes as INT8, activations on calibrated grids",
            EVERY_WIDTH,
            0.25,
            "int8",
            _eight_bits,
            granularities=BY_ROW,
            calibrates_activations=True,
            implementation=f"{_LINEAR}:to_w8a8",
        ),
        Lowering(
            "fp8",
            "the exact codes as E4M3, activations as E4M3 with calibrated scales",
            (2, 3, 4, 5),
            0.25,
            "fp8",
            _eight_bits,
            granularities=BY_ROW,
            calibrates_activations=True,
            least_capability=8.9,
            implementation=f"{_LINEAR}:to_fp8",
        ),
        Lowering(
            "nvfp4",
            "the exact codes as E2M1, activations as NVFP4, whose blocks find their scales when it runs",
            (2, 3),
            0.5,
            "fp4",
            _nvfp4,
            granularities=BY_ROW,
            calibrates_activations=True,
            least_capability=10.0,
            implementation=f"{_LINEAR}:to_nvfp4",
        ),
    ),
    packages=("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    preload=("tensorrt",),
    remedy="an NVIDIA GPU and its driver, then: pip install --extra-index-url https://pypi.nvidia.com "
    "-e '.[tensorrt]'; until then bundles are written without engine, and `qvec-deploy compile` adds it on the device",
    compiles=True,
    triton=TritonBackend('platform: "tensorrt_plan"', "model.plan"),
)

_FLOAT, _PACKED, _INT4, *_NARROW = TENSORRT.lowerings
_RTX_PACKED = replace(
    _PACKED,
    summary="experimental: our plugin, which NVIDIA does not support here: weights stay packed",
    least_capability=8.0,
)
_RTX_INT4 = replace(
    _INT4,
    least_capability=8.0,
    weight_bits=partial(_int4, blocks=RTX_INT4_BLOCKS),
    group_multiple=min(RTX_INT4_BLOCKS),
    implementation=f"{_LINEAR}:to_rtx_int4",
)

TENSORRT_RTX = Runtime(
    name="tensorrt-rtx",
    backend="qvec_deploy.runtimes.tensorrt.tensorrt_runtime:TensorRTForRTX",
    device="cuda",
    float_bits=16,
    lowerings=(_FLOAT, _RTX_PACKED, _RTX_INT4, *_NARROW),
    packages=("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
    preload=("tensorrt_rtx_bindings",),
    remedy="pip install 'qvec-deploy[rtx]' to build engines, on any x86-64 machine; to run them, an NVIDIA GPU of "
    "their compute capabilities and its driver",
    compiles=True,
    compute_capabilities=(7.5, 8.0, 8.6, 8.9, 12.0, 12.1),
    usual_capabilities=(8.6, 8.9, 12.0),
)
