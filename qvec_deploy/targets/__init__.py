"""One file per runtime: `compile` makes an engine of a bundle's files, `open` runs it. Sessions have no clock."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "weights.qvec.safetensors"


class Session(Protocol):
    """A loaded engine."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    def run(self, images: Float32) -> Float32:
        """Logits (batch, classes) float32 of images (batch, C, H, W) float32."""


class Target(Protocol):
    """A runtime."""

    def missing(self, lowering: str | None = None) -> str | None:
        """What this machine lacks to compile and run engines of this runtime; None if nothing.

        Args:
            lowering: For this lowering; without one, for at least one of them.
        """

    def open(self, directory: Path, lowering: str, threads: int) -> AbstractContextManager[Session]:
        """The engine of the model and weight file in `directory`; loaded on entering the context.

        Raises:
            IncompatibleError: The runtime is missing, too old, or ran elsewhere than asked.
        """


def find_target(runtime: str) -> Target:
    """The target of a runtime; its vendor's library is imported when it is used.

    Raises:
        IncompatibleError: There is no such runtime.
    """
    if runtime not in TARGETS:
        raise IncompatibleError(f"there is no runtime `{runtime}`", hint=f"use {', '.join(TARGETS)}")
    return TARGETS[runtime]


def open_engine(runtime: str, directory: str, lowering: str, threads: int) -> AbstractContextManager[Session]:
    """`Target.open` with plain arguments, for a fresh process."""
    return find_target(runtime).open(Path(directory), lowering, threads)


from qvec_deploy.targets.onnxruntime import OnnxRuntime  # noqa: E402 - they implement the protocols above
from qvec_deploy.targets.onnxruntime_cuda import OnnxRuntimeCuda  # noqa: E402
from qvec_deploy.targets.tensorrt import TensorRT  # noqa: E402
from qvec_deploy.targets.torch_cuda import TorchCuda  # noqa: E402

TARGETS: Mapping[str, Target] = {
    "onnxruntime": OnnxRuntime(),
    "torch-cuda": TorchCuda(),
    "onnxruntime-cuda": OnnxRuntimeCuda(),
    "tensorrt": TensorRT(),
}
