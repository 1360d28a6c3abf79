"""The seam to TensorRT: the one place that imports it, what it must be able to do, and what it says while it works."""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.cuda_driver import Cuda, Gpu
from qvec_deploy.runtimes.kernels.ahead import BASELINE_SM
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from qvec_deploy.visible import visible

_REMEDIES = {row.name: row.remedy for row in (TENSORRT, TENSORRT_RTX)}


@dataclass(frozen=True)
class Library:
    """One of NVIDIA's two products that build engines through the same interface.

    Attributes:
        runtime: Name of its row.
        since: The first release that can be used.
        before: The first that nobody has looked at.
        plugin_since: The first that takes our plugin from Python.
        runs_python: Whether that plugin runs in Python; else its compiled kernels go into engines.
        compiles_at_start: Whether it compiles kernels when an engine first runs, and can keep them.
        stores_deltas: Whether engines are kept as deltas to their graphs; the builder must copy the constants for that.
    """

    runtime: str
    title: str
    module: str
    since: tuple[int, int]
    before: tuple[int, int]
    plugin_since: tuple[int, int]
    runs_python: bool = False
    compiles_at_start: bool = False
    stores_deltas: bool = False


FULL = Library("tensorrt", "TensorRT", "tensorrt", (10, 3), (12, 0), plugin_since=(10, 9))
RTX = Library(
    "tensorrt-rtx",
    "TensorRT for RTX",
    "tensorrt_rtx_bindings",
    (1, 7),
    (1, 8),
    plugin_since=(1, 7),
    runs_python=True,
    compiles_at_start=True,
    stores_deltas=True,
)


@dataclass(frozen=True)
class Machine:
    """What an engine is tied to.

    Attributes:
        sm: Its compute capability, 80 for 8.0.
    """

    tensorrt: str
    gpu: str
    sm: int
    driver: str


def load_tensorrt(library: Library = FULL) -> Any:
    """The module of a library."""
    hint = _REMEDIES[library.runtime]
    try:
        trt = importlib.import_module(library.module)
    except (ImportError, OSError) as error:  # the bindings import without their libraries only to fail then
        raise IncompatibleError(f"{library.title} cannot be imported: {error}", hint=hint) from error
    if not library.since <= release(trt.__version__) < library.before:
        wanted = f"{_dotted(library.since)} and later, below {_dotted(library.before)}"
        raise IncompatibleError(f"{library.title} {trt.__version__} is installed; {wanted}, can be used", hint=hint)
    return trt


def library_of(trt: Any) -> Library:
    """The library whose module it is."""
    return RTX if trt.__name__ == RTX.module else FULL


def describe_tensorrt() -> dict[str, Any]:
    """TensorRT as it is installed: `version`, `aot` (it takes compiled plugins), `missing` (why it is of no use)."""
    try:
        trt = load_tensorrt()
    except IncompatibleError as error:
        return {"version": None, "aot": False, "missing": error.message}
    try:
        takes = hasattr(importlib.import_module("tensorrt.plugin"), "aot_impl")
    except ImportError:
        takes = False
    return {"version": str(trt.__version__), "aot": takes, "missing": None}


def release(version: str) -> tuple[int, int]:
    """Major and minor number of a version; (0, 0) where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def machine(trt: Any, gpu: Gpu) -> Machine:
    """What engines built here are tied to."""
    return Machine(str(trt.__version__), gpu.name, gpu.sm, gpu.driver)


def require(lowering: str | None, *, library: Library = FULL, plugin: bool = False) -> tuple[Any, Cuda]:
    """TensorRT and the GPU, if they can do what is asked.

    Args:
        lowering: What is to be built or run; None for whatever does not need the plugin.
        plugin: Our plugin comes as a compiled library, which older releases and GPUs take, too.
    """
    trt = load_tensorrt(library)
    from_python = lowering == "packed" and not plugin
    if from_python and release(trt.__version__) < library.plugin_since:
        wanted = f"{library.title} {_dotted(library.plugin_since)} or later"
        raise IncompatibleError(
            f"lowering `packed` needs {wanted}; {trt.__version__} is installed",
            hint="give `qvec-deploy compile --plugin` our plugin as a library, or use the lowering `int4`, which keeps "
            "the same codes in 4 bits",
        )
    cuda = Cuda()
    if from_python and cuda.gpu.sm < BASELINE_SM:
        raise IncompatibleError(
            f"the kernel of lowering `packed` needs compute capability {BASELINE_SM / 10:.1f}; "
            f"{cuda.gpu.name} has {cuda.gpu.sm / 10:.1f}",
            hint="use the lowering `w8a8` or `float`",
        )
    return trt, cuda


def make_logger(trt: Any, *, verbose: bool = False) -> Any:
    """A logger that keeps what went wrong; its `last_error()` is for messages of ours.

    Args:
        verbose: Print and keep everything; without, nothing is printed.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.lines: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg.strip())
            if verbose:
                self.lines.append(msg)
                sys.stdout.write(visible(msg, keep="\n") + "\n")
                sys.stdout.flush()

        def last_error(self) -> str:
            return self.errors[-1].splitlines()[0] if self.errors else "TensorRT does not say why"

        def out_of_memory(self) -> bool:
            return any(re.search(r"out.?of.?memory", message, re.IGNORECASE) for message in self.errors)

    return Logger()


@contextlib.contextmanager
def starting(logger: Any) -> Iterator[None]:
    """Create a `trt.Builder` or a `trt.Runtime` inside.

    TensorRT holds a lock meanwhile, and may log. Were garbage collected just then, what is left of an earlier builder
    would wait for that lock for ever.

    Raises:
        IncompatibleError: TensorRT cannot start, as with a driver that is too old for it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    except TypeError as error:  # the bindings' way to say that they got nothing
        hint = "`qvec-deploy doctor` says what is there: GPU, driver and library"
        raise IncompatibleError(f"TensorRT cannot start: {logger.last_error()}", hint=hint) from error
    finally:
        if collecting:
            gc.enable()


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
