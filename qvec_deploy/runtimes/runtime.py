"""What a row of RUNTIMES says: a runtime, and the lowerings it has. Plain values; no vendor's library is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.session import Backend, Compiler
from qvec_deploy.tensors import MAX_BITS, MIN_BITS, Scheme

Arithmetic = Literal["fp32", "fp16", "int8", "fp8", "fp4"]

ANY_GRANULARITY = ("tensor", "channel", "group")
BY_ROW = ("tensor", "channel")
"""Granularities that leave one scale to a row."""
EVERY_WIDTH = tuple(range(MIN_BITS, MAX_BITS + 1))


def float32_bits(rows: int, columns: int, _: Scheme) -> float:
    """`weight_bits` of a lowering whose weights are unpacked to float32."""
    return 32.0 * rows * columns


def float16_bits(rows: int, columns: int, _: Scheme) -> float:
    """`weight_bits` of a lowering whose weights are float16."""
    return 16.0 * rows * columns


@dataclass(frozen=True)
class Lowering:
    """A form of the weights that a runtime multiplies with.

    Attributes:
        name: As recipes say it; the same word means the same form on every runtime.
        summary: What it is, in a phrase.
        bits: Widths of codes it takes; of floats for the baseline.
        tolerance: Largest relative L2 error of the logits against PyTorch's with the same weights. Where activations
            are quantized it only catches a broken engine; what they cost is for accuracy to show.
        weight_bits: Bits that a quantized weight takes at run time, its scales included, from its rows, columns and
            grid.
        group_multiple: What group sizes must be a multiple of.
        power_of_two_groups: Whether they must be powers of two, too.
        calibrates_activations: Whether it needs the ranges of activations, which `build` then measures.
        carries_kernels: Whether its engines run kernels of ours that are compiled ahead, which `build` then puts into
            the bundle.
        least_capability: Compute capability from which on GPUs have such arithmetic; 0 where all have.
        implementation: `module:function` that makes this form of one Linear, in the runtime's own terms; None where the
            runtime has no such functions, or takes the Linear as it is stored.
    """

    name: str
    summary: str
    bits: tuple[int, ...]
    tolerance: float
    arithmetic: Arithmetic
    weight_bits: Callable[[int, int, Scheme], float]
    granularities: tuple[str, ...] = ANY_GRANULARITY
    group_multiple: int = 1
    power_of_two_groups: bool = False
    calibrates_activations: bool = False
    carries_kernels: bool = False
    least_capability: float = 0.0
    implementation: str | None = None

    @property
    def exact(self) -> bool:
        """Whether it computes what any other such lowering of the same weights does, up to float32's rounding."""
        return self.arithmetic == "fp32"

    def load(self) -> Any:
        """Its implementation.

        Raises:
            IncompatibleError: It has none.
        """
        if self.implementation is None:
            raise IncompatibleError(f"lowering `{self.name}` has no implementation", hint="its runtime needs one")
        return load_named(self.implementation)

    def takes_groups(self, size: int) -> bool:
        """Whether it takes groups of so many weights; 0 is one scale a row."""
        return size % self.group_multiple == 0 and not (self.power_of_two_groups and size & (size - 1))


def load_backend(place: str) -> Backend:
    """A runtime's code, by `module:class`; the vendor's library is imported when it is used."""
    backend: Backend = load_named(place)()
    return backend


def load_named(place: str) -> Any:
    """What `module:name` stands for."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class TritonBackend:
    """What serves a runtime's engines in Triton Inference Server.

    Attributes:
        setting: The line of config.pbtxt that names it.
        file: Name of the model in a version's folder.
        threads: Its parameter for the number of threads; None where it has none.
        parameters: Its other parameters, by name.
    """

    setting: str
    file: str
    threads: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Runtime:
    """A runtime: everything that the rest of the package has to know of it.

    Attributes:
        backend: `module:class` of its code, imported on use.
        float_bits: Width of its floats, which everything but quantized Linears is computed in: 32 or 16.
        packages: Distributions whose versions decide how fast its engines are, and what they answer.
        preload: Modules that are in memory before an engine's own memory is counted.
        remedy: How to get what is missing.
        compiles: Whether its engines are built for a machine and kept in the bundle; the others are made when a
            bundle is opened.
        compute_capabilities: GPUs that engines can be built for without one being here; empty where they are built
            for the GPU that is here.
        usual_capabilities: Those of them that engines are built for where nobody says.
        stands_alone: Whether the vendor's library alone opens model.onnx as it is measured, so that pictures can be
            run through a bundle without this package.
        session_options: Numbers of the vendor's session options beside the threads, by name.
        session_config: The vendor's free-form session settings.
        triton: What serves its engines in Triton Inference Server; None where nothing does.
    """

    name: str
    backend: str
    device: Literal["cpu", "cuda"]
    float_bits: Literal[16, 32]
    lowerings: tuple[Lowering, ...]
    packages: tuple[str, ...]
    preload: tuple[str, ...]
    remedy: str
    compiles: bool = False
    compute_capabilities: tuple[float, ...] = ()
    usual_capabilities: tuple[float, ...] = ()
    stands_alone: bool = False
    session_options: tuple[tuple[str, int], ...] = ()
    session_config: tuple[tuple[str, str], ...] = ()
    triton: TritonBackend | None = None

    @property
    def floats(self) -> Literal["fp16", "fp32"]:
        """Arithmetic of its floats."""
        return "fp32" if self.float_bits == 32 else "fp16"

    @property
    def baseline(self) -> Lowering:
        """The lowering of a model that is not quantized."""
        return next(lowering for lowering in self.lowerings if self.float_bits in lowering.bits)

    def load(self) -> Backend:
        """Its code."""
        return load_backend(self.backend)

    def load_compiler(self) -> Compiler:
        """Its code, where it compiles engines.

        Raises:
            IncompatibleError: It makes its engines when a bundle is opened.
        """
        backend = self.load()
        if not isinstance(backend, Compiler):
            raise IncompatibleError(f"runtime `{self.name}` compiles nothing", hint="its bundles are used as they are")
        return backend

    def cannot_build(self, lowering: str) -> str | None:
        """What this machine lacks to make the lowering's engine, run or not; None if nothing."""
        backend = self.load()
        return backend.cannot_build(lowering) if isinstance(backend, Compiler) else backend.missing(lowering)

    def missing(self, lowering: str) -> str | None:
        """What this machine lacks to run the lowering; None if nothing."""
        return self.load().missing(lowering)
