"""The backend of `scripts/check_tensorrt`: this machine's library and GPU, asked through the product's own code."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from checked_items import NotRun
from tensorrt_graphs import (
    BATCH,
    COLUMNS,
    ROWS,
    expected_logits,
    layer_graph,
    layer_images,
    write_model,
)

from qvec_deploy.bench.environment import capture_environment
from qvec_deploy.bench.latency import measure_latency
from qvec_deploy.bench.parity import PARITY_FILE, parity_images, read_reference
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.cuda_driver import Cuda
from qvec_deploy.runtimes.engine_options import Batches, EngineOptions
from qvec_deploy.runtimes.registry import find_lowering, find_runtime
from qvec_deploy.runtimes.session import Session
from qvec_deploy.runtimes.tensorrt import TENSORRT
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_builder import Built, build_engine, save_graph, sidecar_of
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph
from qvec_deploy.runtimes.tensorrt.tensorrt_library import FULL, RTX, machine, make_logger, require
from qvec_deploy.runtimes.tensorrt.tensorrt_runtime import TensorRT
from qvec_deploy.runtimes.tensorrt.tensorrt_session import TensorrtSession, load_engines

SHAPE = (1, 1, COLUMNS)
RUNS, WARMUP = 200, 20
FRESH = """
import json, sys
from qvec_deploy.runtimes.registry import open_engine
from qvec_deploy.runtimes.tensorrt import TENSORRT
import numpy as np
from qvec_deploy.bench.parity import parity_images, read_reference
from pathlib import Path
with open_engine(TENSORRT.backend, sys.argv[1], "packed", 1) as session:
    logits = session.run(parity_images(session.input_shape))
reference = read_reference(Path(sys.argv[1]))
print(json.dumps({
    "error": float(np.linalg.norm(logits - reference) / np.linalg.norm(reference)),
    "plugins_loaded": "qvec_deploy.runtimes.kernels.plugins" in sys.modules or "triton" in sys.modules,
}))
"""


class Machine:
    """This machine.

    Args:
        work: Where models and engines are kept, for the items that follow.
        library: One of the two, by the name of its runtime.
    """

    def __init__(self, work: Path, library: str = TENSORRT.name) -> None:
        self._work, self._row = work, find_runtime(library)
        self._library = FULL if library == TENSORRT.name else RTX

    def _ready(self, lowering: str = "packed") -> tuple[Any, Cuda]:
        """TensorRT and the GPU, able to build a lowering.

        Raises:
            NotRun: This machine has not got them.
        """
        try:
            return require(lowering, library=self._library)
        except IncompatibleError as error:
            raise NotRun(error.message) from error

    def environment(self) -> dict[str, Any]:
        """Versions and devices; what is missing is said, not left out."""
        found: dict[str, Any] = asdict(capture_environment(1))
        try:
            trt, cuda = require(None, library=self._library)
            found["machine"] = machine(trt, cuda.gpu).as_dict()
        except IncompatibleError as error:
            found["missing"] = error.message
        smi = shutil.which("nvidia-smi")
        if smi is not None:
            found["nvidia_smi"] = subprocess.run([smi, "-q"], capture_output=True, text=True, check=False).stdout
        return found

    def layer(self, code: str) -> dict[str, Any]:
        """See `tensorrt_items.Backend.layer`."""
        graph = layer_graph()
        with _handed_over(code, self._ready()[1].gpu.sm):
            return self._build_and_run(graph)

    def trtexec(self) -> dict[str, Any]:
        """See `tensorrt_items.Backend.trtexec`."""
        program = shutil.which("trtexec")
        if program is None:
            raise NotRun("trtexec is not installed")
        built = self._build(layer_graph())
        path = self._path("layer.plan")
        path.write_bytes(built.plan)
        command = [program, f"--loadEngine={path}", "--iterations=10", "--warmUp=0", "--duration=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        return {"returncode": done.returncode, "output": (done.stdout + done.stderr)[-4000:]}

    def fresh_process(self) -> dict[str, Any]:
        """See `tensorrt_items.Backend.fresh_process`."""
        self._ready()
        folder = self._folder("demo")
        if not TensorRT().describe(folder, "packed"):
            TensorRT().compile(folder, "packed", EngineOptions(), caches=self._work)
        command = [sys.executable, "-P", "-c", FRESH, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-2000:])
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def precedence(self, namespace: bool) -> dict[str, Any]:
        """See `tensorrt_items.Backend.precedence`."""
        trt, _ = self._ready()
        from qvec_deploy.runtimes.kernels.plugins import plugin_errors, register_plugins

        register_plugins()
        logger = make_logger(trt)
        builder = trt.Builder(logger)
        flags = trt.NetworkDefinitionCreationFlag
        network = builder.create_network(1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS))
        parser = trt.OnnxParser(network, logger)
        path = self._path("both.onnx")
        save_graph(layer_graph(portable=True, namespace=namespace), path)
        with plugin_errors():
            parsed = parser.parse_from_file(str(path))
        layers = [network.get_layer(index).type for index in range(network.num_layers)]
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        return {"plugin_layers": layers.count(trt.LayerType.PLUGIN_V3), "parsed": parsed, "errors": errors}

    def flag(self, name: str) -> dict[str, Any]:
        """See `tensorrt_items.Backend.flag`."""
        options, flags = EngineOptions(), [name]
        if name == "AMPERE_PLUS":
            options, flags = EngineOptions(hardware="ampere_plus"), []
        elif name == "VERSION_COMPATIBLE":
            options, flags = EngineOptions(version_compatible=True), []
        graph = layer_graph()
        built = self._build(graph, options, flags)
        try:
            return self._run(built, graph, options)
        except (IncompatibleError, RuntimeError) as error:  # a stripped engine cannot; that it builds is an answer
            return {"plan_bytes": len(built.plan), "does_not_run": str(error)}

    def copies(self) -> dict[str, Any]:
        """See `tensorrt_items.Backend.copies`."""
        from qvec_deploy.runtimes.kernels.ahead import compile_ahead
        from qvec_deploy.runtimes.kernels.layouts import choose_layout

        one, many = layer_graph(), layer_graph(layers=8)
        sizes = [len(self._build(graph).plan) - graph.weight_bytes for graph in (one, many)]
        kernel = compile_ahead(layout=choose_layout(ROWS, COLUMNS, 3), bits=3, rows=ROWS, columns=COLUMNS)
        return {"overhead_bytes": (sizes[1] - sizes[0]) // 7, "ptx_bytes": len(kernel.ptx)}

    def switches(self, count: int) -> dict[str, Any]:
        """See `tensorrt_items.Backend.switches`."""
        trt, cuda = self._ready()
        graph = layer_graph(batch=None)
        batches = Batches(1, 8, 8)
        built = build_engine(trt, graph, batches, SHAPE, EngineOptions())
        with load_engines(trt, cuda, [(self._sidecar(built, graph, batches, EngineOptions()), built.plan)]) as session:
            images = layer_images(8)
            for size in (1, 8):
                session.run(images[:size])
            before = cuda.free_bytes()
            for index in range(count):
                session.run(images[: 1 + index % 8])
            return {"lost_bytes": before - cuda.free_bytes(), "count": count}

    def build(self, name: str, lowering: str) -> dict[str, Any]:
        """See `tensorrt_items.Backend.build`."""
        reason = self._row.cannot_build(lowering)
        if reason is not None:
            raise NotRun(reason)
        self._require_arithmetic(lowering)
        folder, compiler = self._folder(name), self._row.load_compiler()
        compiler.compile(folder, lowering, self._options(), caches=self._work)
        return compiler.describe(folder, lowering)[0]

    def run(self, name: str, lowering: str) -> dict[str, Any]:
        """See `tensorrt_items.Backend.run`."""
        with self._opened(name, lowering) as session:
            logits = session.run(parity_images(session.input_shape))
            captured = isinstance(session, TensorrtSession) and session.captured
        reference = read_reference(self._folder(name))
        error = float(np.linalg.norm(logits - reference) / np.linalg.norm(reference))
        return {
            "error": error,
            "tolerance": find_lowering(self._row.name, lowering).tolerance,
            "captured": captured,
        }

    def latency(self, name: str, lowerings: Sequence[str], batch_size: int) -> dict[str, list[float]]:
        """See `tensorrt_items.Backend.latency`."""
        self._can_run("float")
        built = [lowering for lowering in lowerings if self._has(name, lowering)]
        with contextlib.ExitStack() as stack:
            sessions = {each: stack.enter_context(self._opened(name, each)) for each in built}
            if not sessions:
                return {}
            shape = next(iter(sessions.values())).input_shape
            images = np.resize(parity_images(shape), (batch_size, *shape))
            samples = measure_latency(sessions, images, blocks=RUNS, warmup=WARMUP, seed=0)
        return {each: list(taken.samples_ms) for each, taken in samples.items()}

    def opening(self, name: str, lowering: str) -> dict[str, Any]:
        """See `tensorrt_items.Backend.opening`."""
        seconds = []
        for kept in self._work.glob("*.runtime"):
            kept.unlink()
        for _ in range(2):
            start = time.monotonic()
            with self._opened(name, lowering) as session:
                session.run(parity_images(session.input_shape))
            seconds.append(time.monotonic() - start)
        return {"without": seconds[0], "with": seconds[1]}

    def _options(self) -> EngineOptions:
        """Engines for the GPU that is here, if it is one of those that a list can name; else for the usual ones."""
        options = EngineOptions(batch_sizes=(1, 8))
        if not self._row.compute_capabilities:
            return options
        with contextlib.suppress(IncompatibleError):
            here = Cuda().gpu.sm / 10
            if here in self._row.compute_capabilities:
                return replace(options, compute_capabilities=(here,))
        return options

    def _require_arithmetic(self, lowering: str) -> None:
        """Refuse a lowering whose arithmetic the GPU that is here has not."""
        least = find_lowering(self._row.name, lowering).least_capability
        with contextlib.suppress(IncompatibleError):  # without a GPU engines are built for those that have it
            gpu = Cuda().gpu
            if gpu.sm / 10 < least:
                raise NotRun(f"{gpu.name} has no arithmetic for `{lowering}`, which begins with {least}")

    def _can_run(self, lowering: str) -> None:
        reason = self._row.missing(lowering)
        if reason is not None:
            raise NotRun(reason)

    def _has(self, name: str, lowering: str) -> bool:
        folder = self._work / name
        return folder.is_dir() and bool(self._row.load_compiler().describe(folder, lowering))

    @contextlib.contextmanager
    def _opened(self, name: str, lowering: str) -> Iterator[Session]:
        self._can_run(lowering)
        if not self._has(name, lowering):
            raise NotRun("no engine was built for it")
        with self._row.load().open(self._folder(name), lowering, 1) as session:
            yield session

    def _build(self, graph: TensorrtGraph, options: EngineOptions | None = None, flags: Sequence[str] = ()) -> Built:
        trt, _ = self._ready()  # no timing cache: it would hide what another kernel does
        return build_engine(trt, graph, Batches.of(BATCH), SHAPE, options or EngineOptions(), flags=flags)

    def _build_and_run(self, graph: TensorrtGraph) -> dict[str, Any]:
        return self._run(self._build(graph), graph, EngineOptions())

    def _run(self, built: Built, graph: TensorrtGraph, options: EngineOptions) -> dict[str, Any]:
        sidecar = self._sidecar(built, graph, Batches.of(BATCH), options)
        trt, cuda = self._ready()
        images = layer_images(BATCH)
        with load_engines(trt, cuda, [(sidecar, built.plan)]) as session:
            logits, expected, captured = session.run(images), expected_logits(images), session.captured
        return {
            "error": float(np.linalg.norm(logits - expected) / np.linalg.norm(expected)),
            "weights_bytes": built.weights_bytes,
            "given_bytes": graph.weight_bytes,
            "allowed_bytes": graph.allowed_bytes,
            "packed_bytes": graph.packed_bytes,
            "plan_bytes": len(built.plan),
            "captured": captured,
        }

    def _sidecar(self, built: Built, graph: TensorrtGraph, batches: Batches, options: EngineOptions) -> Sidecar:
        trt, cuda = self._ready()
        here, none = machine(trt, cuda.gpu), {"model": "", "weights": ""}
        return sidecar_of(built, graph, here, "packed", batches, SHAPE, options, hashes=none)

    def _folder(self, name: str) -> Path:
        folder = self._path(name)
        return folder if (folder / PARITY_FILE).is_file() else write_model(name, folder)

    def _path(self, name: str) -> Path:
        self._work.mkdir(parents=True, exist_ok=True)
        return self._work / name


@contextlib.contextmanager
def _handed_over(code: str, sm: int) -> Iterator[None]:
    """Within the block the plugin hands its kernel over in another way."""
    if code == "stripped":
        yield
        return
    from qvec_deploy.runtimes.kernels import plugins

    real = plugins.compile_ahead
    variants: dict[str, Callable[..., Any]] = {
        "unstripped": lambda *a, **k: _unstripped(real(*a, **k)),
        "cubin": lambda *a, **k: _cubin(real(*a, **k), sm),
        "native": lambda *a, **k: real(*a, **(k | {"sm": sm})),
        "shared": lambda *a, **k: replace(real(*a, **k), shared_bytes=64 * 1024),
    }
    plugins.compile_ahead = variants[code]
    try:
        yield
    finally:
        plugins.compile_ahead = real


def _unstripped(kernel: Any) -> Any:
    """Two pointers more, that nothing reads: what Triton itself writes."""
    head, end, rest = kernel.ptx.partition(b"\n)")
    extra = b"".join(b",\n.param .u64 .ptr .global .align 1 hidden_%d" % index for index in range(2))
    return replace(kernel, ptx=head + extra + end + rest)


def _cubin(kernel: Any, sm: int) -> Any:
    from qvec_deploy.runtimes.kernels.ahead import assemble

    return replace(kernel, ptx=assemble(kernel.ptx, sm).cubin)
