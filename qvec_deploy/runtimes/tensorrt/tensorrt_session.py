"""Engines at work: one context and one CUDA graph per batch size, images in, logits out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.cuda_driver import Cuda, Graph, OutOfDeviceMemory
from qvec_deploy.runtimes.graph import INPUT, OUTPUT
from qvec_deploy.runtimes.session import require_images
from qvec_deploy.runtimes.tensorrt.runtime_cache import RuntimeCache
from qvec_deploy.runtimes.tensorrt.sidecar import REBUILD, Sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_library import make_logger, starting
from qvec_deploy.tensors import Float32

_FLOAT_BYTES = 4
_FLUSH = "flush"  # beside the names of input and output


class TensorrtSession:
    """The engines of a bundle, loaded."""

    def __init__(self, engines: Sequence[LoadedEngine]) -> None:
        self._engines = sorted(engines, key=lambda engine: engine.sidecar.batches.largest)
        self.input_shape = self._engines[0].sidecar.input_shape

    @property
    def captured(self) -> bool:
        """Whether every engine runs as a CUDA graph."""
        return all(engine.captured for engine in self._engines)

    def stages(self, batch: int) -> LoadedEngine | None:
        """The engine that runs a batch in one piece, part by part (`measure.runnable.Stages`); None if none does."""
        engine = self._engine_for(batch)
        return engine if batch <= engine.sidecar.batches.largest else None

    def flush_l2(self) -> None:
        """Overwrite the GPU's L2 cache."""
        self._engines[0].flush_l2()

    def run(self, images: Float32) -> Float32:
        """As `Session.run`; a batch that no engine takes is cut into pieces, the last filled up with zeros."""
        require_images(images, self.input_shape)
        pieces, start = [], 0
        while start < len(images):
            left = len(images) - start
            engine = self._engine_for(left)
            count = min(left, engine.sidecar.batches.largest)
            pieces.append(engine.run(images[start : start + count]))
            start += count
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _engine_for(self, left: int) -> LoadedEngine:
        """The engine that takes the most of so many images."""
        fitting = [engine for engine in self._engines if engine.sidecar.batches.smallest <= left]
        return fitting[-1] if fitting else self._engines[0]


class LoadedEngine:
    """One engine with its context, buffers and graph; ready to run after `prepare`."""

    def __init__(self, sidecar: Sidecar, cuda: Cuda, context: Any, classes: int) -> None:
        self.sidecar = sidecar
        self._cuda, self._context = cuda, context
        largest = sidecar.batches.largest
        self._shapes = {INPUT: (largest, *sidecar.input_shape), OUTPUT: (largest, classes)}
        self._device: dict[str, int] = {}
        self._host: dict[str, Float32] = {}
        self._stream = 0
        self._graph: Graph | None = None
        self._batch = 0
        self._count = 0
        self._events: list[int] = []
        self._marks = 0

    @property
    def captured(self) -> bool:
        """Whether it runs as a CUDA graph."""
        return self._graph is not None

    def prepare(self) -> None:
        """Allocate, run once, and record the run where the engine is static and the sidecar says so."""
        self._stream = self._cuda.new_stream()
        for name, shape in self._shapes.items():
            self._host[name] = self._cuda.pinned(shape)
            self._host[name][...] = 0
            self._device[name] = self._cuda.allocate(_FLOAT_BYTES * int(np.prod(shape)))
            if not self._context.set_tensor_address(name, self._device[name]):
                raise IncompatibleError(f"TensorRT refuses the address of `{name}`", hint=REBUILD)
        self.run(self._host[INPUT])  # TensorRT finishes its own preparations in the first run of a shape
        if self.sidecar.cuda_graph and self.sidecar.batches.static:
            self._capture()

    def _capture(self) -> None:
        try:
            with self._cuda.capture(self._stream) as graph:
                self._enqueue()
        except IncompatibleError as error:
            raise IncompatibleError(
                f"the engine cannot be recorded as a CUDA graph: {error.message}",
                hint="compile it again with cuda_graph off, and report it with your TensorRT version",
            ) from error
        self._graph = graph

    def run(self, images: Float32) -> Float32:
        """Logits of at most as many images as the engine takes; fewer are filled up to the least it takes."""
        self.bring(images)
        self.put()
        self.enqueue()
        self.get()
        return self.finish()

    def bring(self, images: Float32) -> None:
        """Bring the images into pinned memory, filled up with zeros to the least the engine takes."""
        self._cuda.enter()
        self._count = count = len(images)
        batch = max(count, self.sidecar.batches.smallest)
        inputs = self._host[INPUT][:batch]
        inputs[:count] = images
        inputs[count:] = 0
        self._set_batch(batch)
        self._marks = 0

    def put(self) -> None:
        """Start the copy to the GPU."""
        self._cuda.upload(self._device[INPUT], self._host[INPUT][: self._batch], self._stream)

    def enqueue(self) -> None:
        """Put the engine's work into the stream."""
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()

    def get(self) -> None:
        """Start the copy back."""
        self._cuda.download(self._host[OUTPUT][: self._batch], self._device[OUTPUT], self._stream)

    def finish(self) -> Float32:
        """Wait for the stream; the logits."""
        self._cuda.wait(self._stream)
        return self._host[OUTPUT][: self._count].copy()

    def mark(self) -> int:
        """An event that the stream is to pass next."""
        if self._marks == len(self._events):
            self._events.append(self._cuda.new_event())
        event = self._events[self._marks]
        self._marks += 1
        self._cuda.record(event, self._stream)
        return event

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two marks."""
        return self._cuda.elapsed_ms(start, end)

    def flush_l2(self) -> None:
        """Overwrite twice as much memory as the L2 cache holds, and wait for that."""
        self._cuda.enter()
        size = 2 * self._cuda.l2_bytes()
        if _FLUSH not in self._device:
            self._device[_FLUSH] = self._cuda.allocate(size)
        self._cuda.fill(self._device[_FLUSH], size, self._stream)
        self._cuda.wait(self._stream)

    def _set_batch(self, batch: int) -> None:
        if batch == self._batch:
            return
        if not self._context.set_input_shape(INPUT, (batch, *self.sidecar.input_shape)):
            raise IncompatibleError(f"the engine refuses a batch of {batch}", hint=REBUILD)
        self._batch = batch

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream):  # it says so, and is silent otherwise
            raise IncompatibleError("TensorRT could not run the engine", hint=REBUILD)

    def close(self) -> None:
        """Give everything back."""
        if self._graph is not None:
            self._graph.destroy()
        self._graph = self._context = None  # TensorRT's own, gone before the buffers that it points to
        for address in self._device.values():
            self._cuda.free(address)
        for array in self._host.values():
            self._cuda.free_pinned(array)
        for event in self._events:
            self._cuda.end_event(event)
        if self._stream:
            self._cuda.end_stream(self._stream)


@contextlib.contextmanager
def load_engines(
    trt: Any, cuda: Cuda, plans: Sequence[tuple[Sidecar, bytes]], caches: Mapping[str, RuntimeCache] | None = None
) -> Iterator[TensorrtSession]:
    """Load engines that have been checked.

    Args:
        caches: Kernels that the library has compiled for them, by the engine's SHA-256; none where it compiles none.

    Raises:
        OutOfDeviceMemory: They do not fit; the message says which ones did.
    """
    logger = make_logger(trt)
    with starting(logger):
        runtime = trt.Runtime(logger)
    # An engine for several releases carries the runtime it needs, and others our plugin; its hash has been checked.
    runtime.engine_host_code_allowed = any(sidecar.version_compatible or sidecar.plugin_carried for sidecar, _ in plans)
    cuda.enter()
    with contextlib.ExitStack() as stack:
        loaded: list[LoadedEngine] = []
        for sidecar, plan in sorted(plans, key=lambda each: each[0].batches.largest):
            try:
                cache = caches.get(sidecar.sha256) if caches else None
                loaded.append(_load(trt, runtime, cuda, logger, sidecar, plan, cache, stack))
            except OutOfDeviceMemory as error:
                raise out_of_memory(sidecar, loaded) from error
        yield TensorrtSession(loaded)


def out_of_memory(sidecar: Sidecar, loaded: Sequence[LoadedEngine]) -> OutOfDeviceMemory:
    """What to say when an engine does not fit."""
    fits = ", ".join(str(engine.sidecar.batches) for engine in loaded)
    return OutOfDeviceMemory(
        f"`{sidecar.lowering}` at batch {sidecar.batches} does not fit the memory of {sidecar.machine.gpu}",
        hint=f"batch {fits} fits: compile without the larger ones"
        if fits
        else "free GPU memory, or use a smaller batch",
    )


def _load(
    trt: Any,
    runtime: Any,
    cuda: Cuda,
    logger: Any,
    sidecar: Sidecar,
    plan: bytes,
    cache: RuntimeCache | None,
    stack: contextlib.ExitStack,
) -> LoadedEngine:
    engine = runtime.deserialize_cuda_engine(plan)
    context = None
    if engine is not None:
        context = cache.create_context(trt, engine, sidecar) if cache else engine.create_execution_context()
    if engine is None or context is None:
        if logger.out_of_memory():
            raise OutOfDeviceMemory("TensorRT ran out of GPU memory", hint="free some")
        raise IncompatibleError(f"TensorRT cannot open the engine: {logger.last_error()}", hint=REBUILD)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
    if set(names) != {INPUT, OUTPUT} or shapes[INPUT][1:] != sidecar.input_shape or len(shapes[OUTPUT]) != 2:
        raise IncompatibleError(f"the engine has inputs and outputs {shapes}", hint=REBUILD)
    loaded = LoadedEngine(sidecar, cuda, context, shapes[OUTPUT][1])
    stack.callback(loaded.close)
    loaded.prepare()
    if cache is not None:
        cache.keep()
    return loaded
