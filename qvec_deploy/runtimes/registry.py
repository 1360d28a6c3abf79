"""One file per runtime: `compile` makes an engine of a bundle's files, `open` runs it. Sessions have no clock."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Protocol

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32


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


_CLASSES = {
    "onnxruntime": "onnxruntime.ort_session:OnnxRuntime",
    "torch-cuda": "torch_cuda.torch_session:TorchCuda",
    "onnxruntime-cuda": "onnxruntime_cuda.ort_cuda_session:OnnxRuntimeCuda",
    "tensorrt": "tensorrt.tensorrt_runtime:TensorRT",
}
RUNTIMES = tuple(_CLASSES)


def find_target(runtime: str) -> Target:
    """The target of a runtime; only its own module is imported, and its vendor's library when it is used.

    Raises:
        IncompatibleError: There is no such runtime.
    """
    if runtime not in _CLASSES:
        raise IncompatibleError(f"there is no runtime `{runtime}`", hint=f"use {', '.join(RUNTIMES)}")
    module, name = _CLASSES[runtime].split(":")
    target: Target = getattr(import_module(f"qvec_deploy.runtimes.{module}"), name)()
    return target


def require_images(images: Float32, shape: tuple[int, int, int]) -> None:
    """Refuse what is no batch of an engine's images.

    Args:
        images: What was given.
        shape: (C, H, W) of an image that the engine takes.

    Raises:
        IncompatibleError: Another shape or type, or no image.
    """
    if images.shape[1:] != shape or images.dtype != "float32" or not len(images):
        raise IncompatibleError(
            f"the engine takes float32 images (batch, {', '.join(map(str, shape))}), got {images.dtype} {images.shape}",
            hint="preprocess images as the manifest's data_config says",
        )


def open_engine(runtime: str, directory: str, lowering: str, threads: int) -> AbstractContextManager[Session]:
    """`Target.open` with plain arguments, for a fresh process."""
    return find_target(runtime).open(Path(directory), lowering, threads)
