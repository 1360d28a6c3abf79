"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.runtime import BY_ROW, EVERY_WIDTH, Lowering, Runtime, TritonBackend, float16_bits
from qvec_deploy.tensors import Scheme

_LINEAR = "qvec_deploy.runtimes.tensorrt.tensorrt_linear"

INT4_BLOCKS = (128, 64)
"""Block sizes of TensorRT's INT4, the one with fewer scales first."""


def int4_block(columns: int, group_size: int) -> int:
    """Block size of TensorRT's INT4 for rows of `columns` weights."""
    if not group_size:
        return min(INT4_BLOCKS, key=lambda block: (-(-columns // block) * (4 * block + 16), -block))
    for block in INT4_BLOCKS:
        if group_size % block == 0:
            return block
    raise IncompatibleError(
        f"TensorRT's INT4 takes blocks of 64 and 128 weights, not groups of {group_size}",
        hint="use a group size that is a multiple of 64, granularity channel, or the lowering `packed`",
    )


def _packed(rows: int, columns: int, scheme: Scheme) -> float:
    return 32.0 * rows * (scheme.bits * -(-columns // 32) + scheme.groups(columns))


def _int4(rows: int, columns: int, scheme: Scheme) -> float:
    block = int4_block(columns, scheme.group_size if scheme.groups(columns) > 1 else 0)
    return float(rows * -(-columns // block) * (4 * block + 16))


def _int8(rows: int, columns: int, _: Scheme) -> float:
    return rows * (8.0 * columns + 16)


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
            _int8,
            granularities=BY_ROW,
            calibrates_activations=True,
            implementation=f"{_LINEAR}:to_w8a8",
        ),
    ),
    packages=("tensorrt", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
    preload=("tensorrt",),
    remedy="an NVIDIA GPU and its driver, then: pip install --extra-index-url https://pypi.nvidia.com "
    "-e '.[tensorrt]'; until then bundles are written without engine, and `qvec-deploy compile` adds it on the device",
    compiles=True,
    triton=TritonBackend('platform: "tensorrt_plan"', "model.plan"),
)
