"""ONNX Runtime on the CPU: the embedded default. The engine is model.onnx as any ONNX Runtime opens it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import require_file
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME, is_written_as
from qvec_deploy.runtimes.onnxruntime.ort_loading import PROVIDER, as_taken, open_model, takes_pixels
from qvec_deploy.runtimes.session import require_images
from qvec_deploy.tensors import Float32

if TYPE_CHECKING:
    from qvec_deploy.datasets import DataConfig
    from qvec_deploy.runtimes.session import Session


class OnnxRuntime:
    """The `onnxruntime` runtime."""

    def missing(self, lowering: str | None = None) -> str | None:
        """Why ONNX Runtime cannot be used here; None if it can."""
        try:
            import onnxruntime
        except ImportError as error:
            return f"onnxruntime cannot be imported: {error}"
        if PROVIDER not in onnxruntime.get_available_providers():
            return f"onnxruntime {onnxruntime.__version__} has no {PROVIDER}"
        return None

    def write_model(
        self,
        directory: Path,
        lowering: str,
        batches: Sequence[Float32],
        threads: int,
        metadata: Mapping[str, str],
        pixels: DataConfig | None,
    ) -> None:
        """As `ModelWriter.write_model`."""
        from qvec_deploy.runtimes.onnxruntime.ort_model import write_model

        write_model(directory, lowering, batches, threads, metadata, pixels)

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[Session]:
        """Load the engine from model.onnx and the packed weights.

        Raises:
            IncompatibleError: ONNX Runtime is missing, refuses the model, or runs it on another provider.
            IntegrityError: The model or the weight file is damaged.
        """
        reason = self.missing()
        if reason is not None:
            raise IncompatibleError(reason, hint="install onnxruntime; `qvec-deploy doctor` says what is there")
        _return_freed_memory()  # what came before: engines are large, and often opened after larger things
        session = load_session(directory, lowering, threads)
        _return_freed_memory()
        yield OnnxSession(session)

    def arithmetic_error(self, lowering: str) -> float:
        """As `ArithmeticProbe.arithmetic_error`."""
        from qvec_deploy.runtimes.onnxruntime.ort_arithmetic import largest_error
        from qvec_deploy.runtimes.registry import find_lowering

        row = find_lowering(ONNXRUNTIME.name, lowering)
        return largest_error(lowering) if row.arithmetic == "int8" and row.implementation is not None else 0.0

    def profile(self, directory: Path, lowering: str, threads: int, images: Float32, runs: int) -> dict[str, float]:
        """As `Profiler.profile`, by ONNX Runtime's own profiler, which slows the session down; `rest` comes last."""
        from qvec_deploy.runtimes.onnxruntime.ort_profile import layer_times

        with scratch_folder("profile") as folder:
            session = load_session(directory, lowering, threads, profile=folder / "profile")
            engine = OnnxSession(session)
            for _ in range(runs):
                engine.run(images)
            trace = Path(session.end_profiling())
            return layer_times(directory, trace, runs)


class OnnxSession:
    """A loaded ONNX Runtime session.

    Where the model normalises images itself, it takes pixels (B, H, W, C) uint8 too, which is what it is timed with.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._input = session.get_inputs()[0]
        self._output = session.get_outputs()[0].name
        self._takes_pixels = takes_pixels(session)
        sides = self._input.shape[1:]
        self._shape = tuple(sides)
        self.input_shape: tuple[int, int, int] = (sides[2], *sides[:2]) if self._takes_pixels else tuple(sides)

    def prepare(self, images: Float32) -> NDArray[Any]:
        """As `Prepares.prepare`."""
        return as_taken(self._session, images)

    def run(self, images: NDArray[Any]) -> Float32:
        """As `Session.run`."""
        if self._takes_pixels and images.dtype != np.uint8:
            require_images(images, self.input_shape)
            images = self.prepare(images)
        require_images(images, self._shape, "uint8" if self._takes_pixels else "float32")
        logits: Float32 = self._session.run([self._output], {self._input.name: images})[0]
        return logits


def load_session(directory: Path, lowering: str, threads: int, *, profile: Path | None = None) -> Any:
    """ONNX Runtime's own session of a bundle directory; with `profile`, which begins a file's name, it keeps times."""
    model, weights = require_file(directory / MODEL_FILE, what="model"), directory / WEIGHTS_FILE
    source = str(model) if is_written_as(model, lowering) else _lowered(directory, lowering)
    if model.is_symlink() or weights.is_symlink():  # ONNX Runtime reads weights in one folder, by their real name
        weights = weights.resolve()
        source = _with_weights_in(source, weights.name)
    return open_model(source, weights.parent, threads, profile=profile)


def _with_weights_in(source: str | bytes, name: str) -> bytes:
    """A model, given as a file or as its bytes, whose weights are in a file of another name."""
    from qvec_deploy.runtimes.graph.model_file import parse_model, read_model

    model = read_model(Path(source)) if isinstance(source, str) else parse_model(source)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    data: bytes = model.SerializeToString()
    return data


def _lowered(directory: Path, lowering: str) -> bytes:
    """Another lowering of a bundle than the one in its file."""
    from qvec_deploy.runtimes.onnxruntime.ort_model import lowered_model

    model: bytes = lowered_model(directory, lowering).SerializeToString()
    return model


def _return_freed_memory() -> None:
    """Give freed pages back to the system; glibc keeps gigabytes of them otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
