"""What a runtime's code must have: a backend opens engines, a session runs one. Neither has a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32

if TYPE_CHECKING:
    import onnx

    from qvec_deploy.datasets import DataConfig
    from qvec_deploy.runtimes.engine_options import Batches, EngineOptions

Advance = Callable[[int, int], None]
Stage = Callable[[str], AbstractContextManager[Advance]]
"""Shows one engine's build under a name; the block may call what it yields with (done, total)."""


class Session(Protocol):
    """A loaded engine."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    def run(self, images: Float32) -> Float32:
        """Logits (batch, classes) float32 of images (batch, C, H, W) float32.

        Raises:
            IncompatibleError: Other images than the engine takes, or more than the device's memory does.
        """


class Backend(Protocol):
    """A runtime's code."""

    def missing(self, lowering: str | None = None) -> str | None:
        """What this machine lacks to compile and run engines of this runtime; None if nothing.

        Args:
            lowering: Without one, what is asked is whether any lowering runs.
        """

    def open(self, directory: Path, lowering: str, threads: int) -> AbstractContextManager[Session]:
        """The engine of the model and weight file in `directory`; loaded on entering the context.

        Raises:
            IncompatibleError: The runtime is missing, too old, or ran elsewhere than asked.
        """


@dataclass(frozen=True)
class LinearProduct:
    """How an engine multiplies with a quantized Linear.

    Attributes:
        layer: The engine's layer that multiplies.
        inputs: Types that flow into it.
        constants: Types of the weights and scales that it reads.
        fused: Whether it reads the codes themselves; else they are expanded at every run.
    """

    linear: str
    layer: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    fused: bool


@runtime_checkable
class Compiler(Backend, Protocol):
    """The code of a runtime whose engines are built before they are opened."""

    def cannot_build(self, lowering: str) -> str | None:
        """What this machine lacks to compile engines, whether or not they run here; None if nothing."""

    def compile(
        self, directory: Path, lowering: str, options: EngineOptions, *, caches: Path, stage: Stage | None = None
    ) -> list[str]:
        """Build a lowering's engines beside the model and weights they are built from, in place of earlier ones.

        Args:
            caches: Folder of what the compiler has measured, which later builds read.

        Returns:
            Names of the files written.

        Raises:
            IncompatibleError: Something is missing here, or the compiler refuses.
        """

    def describe(self, directory: Path, lowering: str) -> list[dict[str, Any]]:
        """What the engines of a lowering are, for people and records."""

    def read(self, directory: Path, lowering: str, batches: Batches) -> bytes:
        """The bytes of an engine as the vendor's library reads it, in whatever form it is stored.

        Raises:
            IncompatibleError: It was built from other files than those beside it.
            IntegrityError: It is damaged or was altered.
        """

    def graph(self, directory: Path, lowering: str) -> onnx.ModelProto:
        """The ONNX graph that engines of a lowering are built from, its weights inside, for any batch size."""

    def products(self, directory: Path, lowering: str) -> tuple[LinearProduct, ...]:
        """How the first engine of a lowering multiplies, as far as its compiler says; empty without one."""


@runtime_checkable
class Emulator(Backend, Protocol):
    """The code of a runtime whose engines can be computed on the CPU where they cannot be run."""

    def emulate(self, directory: Path, lowering: str, threads: int) -> AbstractContextManager[Session]:
        """What the engine of `directory` computes, its number formats exactly, on so many threads of the CPU.

        Raises:
            IncompatibleError: A scheme that the lowering cannot take.
        """


@runtime_checkable
class ModelWriter(Backend, Protocol):
    """The code of a runtime that reads model.onnx as it is: every lowering is a file of its own."""

    def write_model(
        self,
        directory: Path,
        lowering: str,
        batches: Sequence[Float32],
        threads: int,
        metadata: Mapping[str, str],
        pixels: DataConfig | None,
    ) -> None:
        """Put a lowering's model in the place of the stored one.

        Args:
            batches: Images (B, C, H, W) that activations are calibrated on, where the lowering needs that.
            metadata: What the file says about itself.
            pixels: The preprocessing whose normalisation goes into the graph; None leaves it outside.

        Raises:
            IncompatibleError: A scheme that the lowering cannot take.
        """


@runtime_checkable
class ArithmeticProbe(Backend, Protocol):
    """The code of a runtime whose integer kernels may differ by CPU, and are tried before an engine is believed."""

    def arithmetic_error(self, lowering: str) -> float:
        """The largest relative error of a lowering's products at its extremes, here; 0 where none is tried."""


@runtime_checkable
class Profiler(Backend, Protocol):
    """The code of a runtime that can tell its layers' times apart."""

    def profile(self, directory: Path, lowering: str, threads: int, images: Float32, runs: int) -> dict[str, float]:
        """Milliseconds of one run by layer, the median of `runs`, in a session of its own.

        Raises:
            IncompatibleError: As `open`, or the layers cannot be told apart.
        """


def largest_batch(failed: int, runs: Callable[[int], bool]) -> int:
    """The first half, quarter, ... of a batch that runs; 0 if none does."""
    batch = failed // 2
    while batch and not runs(batch):
        batch //= 2
    return batch


def require_images(images: NDArray[np.generic], shape: tuple[int, int, int], dtype: str = "float32") -> None:
    """Refuse what is no batch of an engine's images, of which one has `shape`.

    Raises:
        IncompatibleError: Another shape or type, or no image.
    """
    if images.shape[1:] != shape or images.dtype != dtype or not len(images):
        raise IncompatibleError(
            f"the engine takes {dtype} images (batch, {', '.join(map(str, shape))}), got {images.dtype} {images.shape}",
            hint="preprocess images as the manifest's data_config says",
        )
