"""PyTorch on an NVIDIA GPU: packed weights through our kernel, one CUDA graph a batch size. No TensorRT needed."""

from __future__ import annotations

import contextlib
import importlib.util
import runpy
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import require_file
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.cuda_driver import Cuda
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.kernels.ahead import BASELINE_SM
from qvec_deploy.runtimes.session import largest_batch, require_images
from qvec_deploy.runtimes.torch_cuda.torch_structure import read_structure
from qvec_deploy.tensors import Float32

if TYPE_CHECKING:
    import torch

    from qvec_deploy.runtimes.session import Session
    from qvec_deploy.runtimes.torch_cuda.torch_module import HalfEngine


_FULL = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDNN_STATUS_ALLOC_FAILED")
GRAPHS = 8  # batch sizes kept captured; the least recently used goes first
_HINT_DEVICE = "`qvec-deploy doctor` says what each runtime needs; the runtime `onnxruntime` runs on the CPU"


def cuda_of_torch() -> str | None:
    """The CUDA that PyTorch was built with, found without importing PyTorch, which takes seconds; None without."""
    if "torch" in sys.modules:
        import torch

        return torch.version.cuda
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    found: str | None = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    return found


def _lacking_without_torch() -> str | None:
    """What can be told without importing PyTorch; None where only PyTorch knows."""
    if "torch" in sys.modules:
        return None
    try:
        Cuda()
    except IncompatibleError as error:
        return error.message
    return None


class TorchCuda:
    """The `torch-cuda` runtime.

    Args:
        device: `cuda`; `cpu` runs the same session on the operator's reference, for tests and for a look.
    """

    def __init__(self, device: str = "cuda") -> None:
        self._device = device

    def missing(self, lowering: str | None = None) -> str | None:
        """Why the GPU cannot be used here; `float` needs nothing but PyTorch."""
        if self._device == "cuda" and (lacking := _lacking_without_torch()) is not None:
            return lacking
        try:
            import torch
        except ImportError as error:
            return f"torch cannot be imported: {error}"
        if self._device == "cpu":
            return None
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} finds no NVIDIA GPU with a driver for CUDA {torch.version.cuda}"
        if lowering != "packed":
            return None
        if importlib.util.find_spec("triton") is None:
            return "triton, which compiles the kernels, is not installed"
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < BASELINE_SM:
            name = torch.cuda.get_device_name()
            return f"{name} is sm_{major}{minor}; the kernels need sm_{BASELINE_SM} (Ampere) or later"
        return None

    @contextlib.contextmanager
    def open(self, directory: Path, lowering: str, threads: int) -> Iterator[Session]:
        """Load the engine from structure.json and the packed weights; threads are not used."""
        import torch

        from qvec_deploy.runtimes.torch_cuda.torch_module import load_engine

        reason = self.missing(lowering)
        if reason is not None:
            raise IncompatibleError(reason, hint=_HINT_DEVICE)
        structure = read_structure(directory)
        weights = PackedFile.open(require_file(directory / WEIGHTS_FILE, what="weights"))
        try:
            engine = load_engine(structure, weights, lowering, torch.device(self._device))
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise IncompatibleError(
                f"lowering `{lowering}` of `{structure.name}` does not fit the GPU's memory at any batch size",
                hint="free GPU memory" + ("; `packed` needs a fifth of it" if lowering == "float" else ""),
            ) from error
        session = TorchSession(engine, structure.input_shape, lowering, torch.device(self._device))
        try:
            yield session
        finally:
            session.close()


class TorchSession:
    """A loaded engine; on a GPU every batch size is captured as a CUDA graph when it first comes."""

    def __init__(
        self, engine: HalfEngine, input_shape: tuple[int, int, int], lowering: str, device: torch.device
    ) -> None:
        self.engine, self.input_shape = engine, input_shape
        self._lowering, self._device = lowering, device
        self._graphs: OrderedDict[int, _Graph] = OrderedDict()
        self._flushed: torch.Tensor | None = None  # what is overwritten to empty the L2 cache
        self._pool: Any = None  # one memory pool for all graphs: they never run at the same time

    def run(self, images: Float32) -> Float32:
        """As `Session.run`; images that the GPU's memory does not take are refused with a batch that it does."""
        require_images(images, self.input_shape)
        logits = self._try(np.ascontiguousarray(images))
        if logits is not None:
            return logits
        fits = largest_batch(len(images), lambda batch: self._try(self._zeros(batch)) is not None)
        raise IncompatibleError(
            f"lowering `{self._lowering}` does not fit the GPU's memory at batch {len(images)}"
            + (f"; batch {fits} does" if fits else ", and at no smaller batch either"),
            hint=f"use batches of {fits}" if fits else "free GPU memory, or use a smaller model",
        )

    def stages(self, batch: int) -> _Graph | None:
        """A run of so many images, part by part (`measure.runnable.Stages`); None on the CPU, which has no parts."""
        if self._device.type != "cuda":
            return None
        self.run(self._zeros(batch))  # refuses what does not fit, and says what does
        return self._graphs[batch]

    def flush_l2(self) -> None:
        """Overwrite twice as much memory as the GPU's L2 cache holds, and wait for that."""
        import torch

        if self._device.type != "cuda":
            raise IncompatibleError("there is no L2 cache to empty on the CPU", hint="set measure.l2 to warm")
        if self._flushed is None:
            size = 2 * torch.cuda.get_device_properties(self._device).L2_cache_size
            self._flushed = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._flushed.zero_()
        torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Let the graphs and their memory go."""
        import torch

        self._graphs.clear()
        self._pool = self._flushed = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    def _zeros(self, batch: int) -> Float32:
        return np.zeros((batch, *self.input_shape), np.float32)

    def _try(self, images: Float32) -> Float32 | None:
        """Logits; None where the memory does not suffice. Then nothing of the run is left, nor of any before it."""
        try:
            return self._run(images)
        except RuntimeError as error:  # its traceback holds the run's tensors, and goes with this block
            if not out_of_memory(error):
                raise
        self.close()
        return None

    def _run(self, images: Float32) -> Float32:
        import torch

        if self._device.type != "cuda":
            with torch.inference_mode():
                logits: Float32 = self.engine(torch.tensor(images, device=self._device)).cpu().numpy()
            return logits
        batch = len(images)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        if batch not in self._graphs:
            if len(self._graphs) == GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[batch] = _Graph(self.engine, (batch, *self.input_shape), self._device, self._pool)
        self._graphs.move_to_end(batch)
        return self._graphs[batch].run(images)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, says that the GPU's memory is full: PyTorch's, or a library's."""
    import torch

    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _FULL):
            return True
        error = error.__context__  # a recording that is broken off raises an error of its own
    return False


class _Graph:
    """The engine at one batch size, recorded: a run is two copies and one launch."""

    def __init__(self, engine: Any, shape: tuple[int, ...], device: torch.device, pool: Any) -> None:
        import torch

        self._sent = torch.zeros(shape, pin_memory=True)
        self._images = torch.zeros(shape, device=device)
        # cuBLAS keeps a workspace for every stream. One that this recording found would lie in another recording's
        # memory, and one that it left would be found by the next: each has its own, which goes when it goes.
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):  # compiles and tunes kernels before the recording
                engine(self._images)
        torch.cuda.current_stream(device).wait_stream(stream)
        torch._C._cuda_clearCublasWorkspaces()
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph, pool=pool):
            self._logits = engine(self._images)
        torch._C._cuda_clearCublasWorkspaces()
        self._received = torch.empty(self._logits.shape, pin_memory=True)
        self._device = device

    def run(self, images: Float32) -> Float32:
        """Copy in, replay, copy out; the arrays are the caller's own."""
        self.bring(images)
        self.put()
        self.enqueue()
        self.get()
        return self.finish()

    def bring(self, images: Float32) -> None:
        """Copy the images into pinned memory."""
        import torch

        self._sent.copy_(torch.from_numpy(images))

    def put(self) -> None:
        """Start the copy to the GPU."""
        self._images.copy_(self._sent, non_blocking=True)

    def enqueue(self) -> None:
        """Launch the graph."""
        self._graph.replay()

    def get(self) -> None:
        """Start the copy back."""
        self._received.copy_(self._logits, non_blocking=True)

    def finish(self) -> Float32:
        """Wait for the stream; the logits."""
        import torch

        torch.cuda.current_stream(self._device).synchronize()
        return self._received.numpy().copy()

    def mark(self) -> Any:
        """An event that the stream is to pass next."""
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks."""
        elapsed: float = start.elapsed_time(end)
        return elapsed
