"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

from qvec_deploy.runtimes.engine_files import LOWERING_KEY, MODEL_FILE
from qvec_deploy.runtimes.runtime import BY_ROW, EVERY_WIDTH, Lowering, Runtime, TritonBackend, float32_bits
from qvec_deploy.tensors import Scheme

_BLOCKS = (16, 32, 64, 128, 256)  # block sizes that every build of MatMulNBits takes


def block_of(columns: int, group_size: int) -> int:
    """The largest block that the payload's padded rows are a multiple of; a group, or an even share of a large one."""
    if group_size:
        return min(group_size, _BLOCKS[-1])
    return max(block for block in _BLOCKS if -(-columns // 32) * 32 % block == 0)


def is_written_as(model: Path, lowering: str) -> bool:
    """Whether a model file is of a lowering; its bytes are searched, so that onnx need not be imported for it."""
    key, value = LOWERING_KEY.encode(), lowering.encode()
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value  # protobuf of key and value
    return entry in model.read_bytes()


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
            "ONNX's standard operators alone: any runtime opens it, unpacked to float32 once at load",
            EVERY_WIDTH,
            1e-3,
            "fp32",
            float32_bits,
            implementation="qvec_deploy.runtimes.graph.operator:STANDARD",
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
            implementation="qvec_deploy.runtimes.onnxruntime.ort_lowering:INT4",
        ),
        Lowering(
            "int8",
            "the exact codes as int8, activations put on calibrated 8-bit grids: fastest",
            EVERY_WIDTH,
            0.25,
            "int8",
            _int8,
            granularities=BY_ROW,
            calibrates_activations=True,
            implementation="qvec_deploy.runtimes.onnxruntime.ort_lowering:INT8",
        ),
    ),
    packages=("onnxruntime", "onnxruntime-gpu"),
    preload=("onnxruntime",),
    stands_alone=True,
    session_options=(("inter_op_num_threads", 1),),
    # Idle threads of one engine must not spin while another one is being measured.
    session_config=(("session.force_spinning_stop", "1"),),
    triton=TritonBackend(
        'backend: "onnxruntime"', MODEL_FILE, "intra_op_thread_count", (("inter_op_thread_count", "1"),)
    ),
    remedy="pip install onnxruntime, or onnxruntime-gpu on x86-64 Linux: one of the two, never both",
)
