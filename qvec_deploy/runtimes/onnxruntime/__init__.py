"""ONNX Runtime on the CPU."""

from __future__ import annotations

from qvec_deploy.runtimes.runtime import BY_ROW, EVERY_WIDTH, Lowering, Runtime, float32_bits
from qvec_deploy.tensors import Scheme

_BLOCKS = (16, 32, 64, 128, 256)  # block sizes that every build of MatMulNBits takes


def block_of(columns: int, group_size: int) -> int:
    """The block size that needs least memory, padding and scales counted; a group, or an even share of a large one."""
    if group_size:
        return min(group_size, _BLOCKS[-1])
    return min(_BLOCKS, key=lambda block: (-(-columns // block) * (block // 2 + 4), block))


def _int4(rows: int, columns: int, scheme: Scheme) -> float:
    block = block_of(columns, scheme.group_size)
    return 8.0 * rows * -(-columns // block) * (block // 2 + 4)


def _int8(rows: int, columns: int, _: Scheme) -> float:
    return rows * (8.0 * columns + 32)


ONNXRUNTIME = Runtime(
    name="onnxruntime",
    backend="qvec_deploy.runtimes.onnxruntime.ort_session:OnnxRuntime",
    device="cpu",
    float_bits=32,
    lowerings=(
        Lowering("float", "float32 weights and arithmetic: the baseline", (32,), 1e-3, "fp32", float32_bits),
        Lowering(
            "packed",
            "the file as it is: any ONNX Runtime opens it, unpacked to float32 once at load",
            EVERY_WIDTH,
            1e-3,
            "fp32",
            float32_bits,
        ),
        Lowering(
            "int4",
            "the exact codes in 4-bit containers (MatMulNBits): least memory",
            (2, 3, 4),
            1e-3,
            "fp32",
            _int4,
            group_multiple=16,
            power_of_two_groups=True,
            implementation="qvec_deploy.runtimes.onnxruntime.ort_lowering:to_int4",
        ),
        Lowering(
            "int8",
            "the exact codes as int8, activations quantized per run: fastest",
            EVERY_WIDTH,
            0.25,
            "int8",
            _int8,
            granularities=BY_ROW,
            implementation="qvec_deploy.runtimes.onnxruntime.ort_lowering:to_int8",
        ),
    ),
    packages=("onnxruntime", "onnxruntime-gpu"),
    preload=("onnxruntime",),
    remedy="pip install onnxruntime, or onnxruntime-gpu on x86-64 Linux: one of the two, never both",
)
