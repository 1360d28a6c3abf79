"""ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from qvec_deploy.runtimes.onnxruntime import block_of
from qvec_deploy.runtimes.runtime import Lowering, Runtime, float16_bits
from qvec_deploy.tensors import Scheme

LARGEST_BLOCK = 128
"""Of ONNX Runtime's CUDA kernels for MatMulNBits."""


def _int4(rows: int, columns: int, scheme: Scheme) -> float:
    block = min(block_of(columns, scheme.group_size), LARGEST_BLOCK)
    return 8.0 * rows * -(-columns // block) * (block // 2 + 2)


ONNXRUNTIME_CUDA = Runtime(
    name="onnxruntime-cuda",
    backend="qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_session:OnnxRuntimeCuda",
    device="cuda",
    float_bits=16,
    lowerings=(
        Lowering("float", "float16 weights and arithmetic: the baseline", (16,), 2e-2, "fp16", float16_bits),
        Lowering(
            "int4",
            "the exact codes in 4-bit containers (MatMulNBits), float16",
            (2, 3, 4),
            2e-2,
            "fp16",
            _int4,
            group_multiple=16,
            power_of_two_groups=True,
            implementation="qvec_deploy.runtimes.onnxruntime_cuda.ort_cuda_lowering:to_int4",
        ),
    ),
    packages=("onnxruntime", "onnxruntime-gpu"),
    preload=("onnxruntime",),
    remedy="an NVIDIA GPU, its driver, and onnxruntime-gpu instead of onnxruntime: pip uninstall -y onnxruntime, then "
    "pip install 'onnxruntime-gpu[cuda,cudnn]'",
)
