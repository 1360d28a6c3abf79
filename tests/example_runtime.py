"""How to add a runtime: this one runs PyTorch on the CPU, and is complete.

A runtime is a folder of `qvec_deploy/runtimes` with a backend, which opens engines, a session, which runs one, and a
row, which says what the rest of the package has to know. The row goes into RUNTIMES; nothing else is touched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.runtime import EVERY_WIDTH, Lowering, Runtime, float32_bits
from qvec_deploy.runtimes.session import require_images
from qvec_deploy.runtimes.torch_cuda.torch_structure import read_structure
from qvec_deploy.tensors import INPUT_SCALE, Float32


class TorchCpu:
    """The backend: made without arguments, and its library is imported when it is used."""

    def missing(self, lowering: str | None = None) -> str | None:
        try:
            import torch  # noqa: F401
        except ImportError as error:
            return f"torch cannot be imported: {error}"
        return None

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[TorchCpuSession]:
        import torch

        from qvec_deploy.models import create

        if lowering not in [row.name for row in TORCH_CPU.lowerings]:
            raise IncompatibleError(f"no lowering `{lowering}`", hint="see the row")
        structure, weights = read_structure(directory), PackedFile.open(directory / WEIGHTS_FILE)
        state = {}
        for name, info in weights.tensors.items():
            value = weights.array(name) if info.scheme is None else unpack(weights.packed(name)).dequantize()
            scale = f"{name.removesuffix('.weight')}{INPUT_SCALE}"  # AWQ's: (x * s) @ W.T = x @ (W * s).T
            factor = weights.array(scale) if scale in weights.tensors else np.float32(1)
            state[name] = torch.from_numpy(np.asarray(value * factor, np.float32))
        model = create(structure.name, structure.classes, structure.args)
        model.load_state_dict({name: value for name, value in state.items() if not name.endswith(INPUT_SCALE)})
        yield TorchCpuSession(model.eval(), structure.input_shape)


class TorchCpuSession:
    """The session: it has no clock."""

    def __init__(self, model: object, input_shape: tuple[int, int, int]) -> None:
        self._model, self.input_shape = model, input_shape

    def run(self, images: Float32) -> Float32:
        import torch

        require_images(images, self.input_shape)
        with torch.inference_mode():
            return self._model(torch.from_numpy(images)).numpy()


TORCH_CPU = Runtime(
    name="torch-cpu",
    backend="example_runtime:TorchCpu",
    device="cpu",
    float_bits=32,
    lowerings=(
        Lowering("float", "float32 weights and arithmetic: the baseline", (32,), 1e-3, "fp32", float32_bits),
        Lowering("dequantized", "unpacked when it is loaded", EVERY_WIDTH, 1e-3, "fp32", float32_bits),
    ),
    packages=("torch",),
    preload=("torch", "timm"),
    remedy="pip install torch",
)
"""The row."""
