"""How engines that are compiled are built, and the batch sizes that each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qvec_deploy.errors import RecipeError

Hardware = Literal["this", "same_compute_capability", "ampere_plus"]
"""GPUs an engine runs on: this model, all of its compute capability, all from 8.0 on."""


@dataclass(frozen=True)
class Batches:
    """Batch sizes that one engine takes; TensorRT makes it fastest at `best`."""

    smallest: int
    best: int
    largest: int

    @classmethod
    def of(cls, size: int) -> Batches:
        """One size: a static engine."""
        return cls(size, size, size)

    @classmethod
    def parse(cls, text: str) -> Batches:
        """From what `str` gives; `best` is the largest, as engines are built."""
        smallest, *largest = (int(size) for size in text.split("-"))
        return cls(smallest, (largest or [smallest])[0], (largest or [smallest])[0])

    @property
    def static(self) -> bool:
        """Whether there is only one."""
        return self.smallest == self.largest

    def __str__(self) -> str:
        return f"{self.largest}" if self.static else f"{self.smallest}-{self.largest}"


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Attributes:
        dynamic: One engine instead, from the smallest to the largest. It runs without a CUDA graph, and up to
            TensorRT 11.2 at least, engines with our plugin leak a little GPU memory whenever the size changes. None
            leaves it to the runtime.
        compute_capabilities: GPUs that they are built for, where the runtime builds without one; none are its usual.
        hardware: More GPUs, slower engines.
        version_compatible: Run on other releases of the same major version too.
        cuda_graph: Run static engines as CUDA graphs.
        optimization_level: TensorRT's builder optimization level, 0 to 5; None is its default.
        workspace_mib: Memory that tactics may use; None is whatever the GPU has.
        plugin_library: File of our plugin as a compiled library; None takes it from Python.
    """

    batch_sizes: tuple[int, ...] = (1,)
    dynamic: bool | None = None
    compute_capabilities: tuple[float, ...] = ()
    hardware: Hardware = "this"
    version_compatible: bool = False
    cuda_graph: bool = True
    optimization_level: int | None = None
    workspace_mib: int | None = None
    plugin_library: str | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise RecipeError(f"batch sizes {list(self.batch_sizes)}", hint="name at least one, of at least 1")
        if self.hardware not in get_args(Hardware):
            raise RecipeError(f"hardware `{self.hardware}`", hint=f"use {', '.join(get_args(Hardware))}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise RecipeError(f"optimization level {self.optimization_level}", hint="TensorRT has 0 to 5")

    def engines(self) -> tuple[Batches, ...]:
        """What each engine takes, the smallest first."""
        sizes = sorted(set(self.batch_sizes))
        if self.dynamic:
            return (Batches(sizes[0], sizes[-1], sizes[-1]),)
        return tuple(Batches.of(size) for size in sizes)
