"""What can be measured: anything that turns images into logits, and what a session on a GPU may offer beside it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from qvec_deploy.tensors import Float32


class Runnable(Protocol):
    """A loaded engine. `qvec_deploy.runtimes.registry.Session` is one; so is a test's fake. It has no clock."""

    def run(self, images: Float32) -> Float32:
        """Logits (batch, classes) of `images` (batch, channels, height, width)."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A session that may take images in another form than normalised ones."""

    def prepare(self, images: Float32) -> Any:
        """What `run` is timed with, of `images` (batch, channels, height, width)."""


class Stages(Protocol):
    """One run, part by part. `put`, `enqueue` and `get` hand work to the GPU's stream and return at once.

    A mark goes into the stream too; the GPU stamps it when it gets there. What lies between two marks is device
    time, which no clock of the host can see. Marks are good until the next `bring`.
    """

    def bring(self, images: Float32) -> None:
        """Bring the images where the GPU can fetch them; host work, part of no stage."""

    def put(self) -> None:
        """Copy them to the GPU."""

    def enqueue(self) -> None:
        """Run the engine."""

    def get(self) -> None:
        """Copy the logits back."""

    def finish(self) -> Float32:
        """Wait for all of it, and give the logits."""

    def mark(self) -> Any:
        """Have the GPU note the time when everything before is done."""

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks, after `finish`."""


@runtime_checkable
class Staged(Protocol):
    """A session whose runs can be taken apart.

    Sessions of PyTorch and TensorRT are: copies and kernels are calls of ours there. ONNX Runtime makes all of them
    inside one call, on a stream of its own; marks around that call would measure the host.
    """

    def stages(self, batch: int) -> Stages | None:
        """The parts of a run of so many images; None where such a run has none."""


@runtime_checkable
class Flushable(Protocol):
    """A session that can empty its GPU's L2 cache."""

    def flush_l2(self) -> None:
        """Overwrite the whole cache, and wait for that."""
