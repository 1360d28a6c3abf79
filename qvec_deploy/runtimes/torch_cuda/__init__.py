"""PyTorch on an NVIDIA GPU."""

from __future__ import annotations

from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.runtime import Lowering, Runtime, float16_bits
from qvec_deploy.tensors import Scheme

_MODULE = "qvec_deploy.runtimes.torch_cuda.torch_module"


def _packed(rows: int, columns: int, scheme: Scheme) -> float:
    layout = choose_layout(rows, columns, scheme.bits, scheme.group_size)
    height, width = layout.words_shape(rows, columns, scheme.bits)
    return 32.0 * (height * width + rows * scheme.groups(columns))


TORCH_CUDA = Runtime(
    name="torch-cuda",
    backend="qvec_deploy.runtimes.torch_cuda.torch_session:TorchCuda",
    device="cuda",
    float_bits=16,
    lowerings=(
        Lowering(
            "float",
            "float16 weights and arithmetic, CUDA graphs: the baseline",
            (16,),
            2e-2,
            "fp16",
            float16_bits,
            implementation=f"{_MODULE}:to_float",
        ),
        Lowering(
            "packed",
            "our kernel: weights stay packed in the GPU's memory",
            (2, 3, 4),
            2e-2,
            "fp16",
            _packed,
            group_multiple=16,
            implementation=f"{_MODULE}:to_packed",
        ),
    ),
    packages=("torch", "triton"),
    preload=("torch", "timm", "torch._dynamo"),  # a custom operator's first call imports the last
    remedy="an NVIDIA GPU, its driver, and torch with CUDA: pip install 'qvec-deploy[build]'; `packed` also needs "
    "triton and compute capability 8.0 or later",
)
