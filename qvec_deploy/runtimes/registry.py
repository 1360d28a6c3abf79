"""RUNTIMES: the one table of runtimes and their lowerings. What differs by runtime is asked of its row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME
from qvec_deploy.runtimes.onnxruntime_cuda import ONNXRUNTIME_CUDA
from qvec_deploy.runtimes.runtime import Lowering, Runtime, load_backend
from qvec_deploy.runtimes.session import Compiler, LinearProduct, Session
from qvec_deploy.runtimes.tensorrt import TENSORRT, TENSORRT_RTX
from qvec_deploy.runtimes.torch_cuda import TORCH_CUDA
from qvec_deploy.tensors import Scheme, matrix_shape

RUNTIMES: dict[str, Runtime] = {
    row.name: row for row in (ONNXRUNTIME, TORCH_CUDA, ONNXRUNTIME_CUDA, TENSORRT, TENSORRT_RTX)
}
"""Every runtime by name. The first of a device is the usual one there."""

RUNTIME_PACKAGES = frozenset(package for row in RUNTIMES.values() for package in row.packages)
"""Distributions that any engine runs on."""


class WeightInfo(Protocol):
    """A tensor of a plan or of a packed file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""

    @property
    def scheme(self) -> Scheme | None:
        """The grid it is on; None for floats."""


def find_runtime(name: str) -> Runtime:
    """The row of a runtime.

    Raises:
        IncompatibleError: There is no such runtime.
    """
    if name not in RUNTIMES:
        raise IncompatibleError(f"there is no runtime `{name}`", hint=f"use {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def find_lowering(runtime: str, name: str) -> Lowering:
    """The row of a runtime's lowering.

    Raises:
        IncompatibleError: There is no such runtime, or it has no such lowering.
    """
    known = {lowering.name: lowering for lowering in find_runtime(runtime).lowerings}
    if name not in known:
        raise IncompatibleError(f"runtime `{runtime}` has no lowering `{name}`", hint=f"it has {', '.join(known)}")
    return known[name]


def lowering_names() -> list[str]:
    """Every lowering of any runtime, once."""
    return list(dict.fromkeys(lowering.name for row in RUNTIMES.values() for lowering in row.lowerings))


def check_lowering(runtime: str, lowering: str, bits: int, granularity: str, group_size: int) -> None:
    """Refuse a combination that is not in the table.

    Raises:
        IncompatibleError: No such lowering, or one that cannot take these bits, this granularity or these groups.
    """
    row = find_lowering(runtime, lowering)
    what = f"lowering `{lowering}` on `{runtime}`"
    if bits not in row.bits:
        takers = [other.name for other in find_runtime(runtime).lowerings if bits in other.bits]
        raise IncompatibleError(
            f"{what} cannot take {bits} bits",
            hint=f"it takes {', '.join(map(str, row.bits))}; for {bits}: {', '.join(takers) or 'none'}",
        )
    if granularity not in row.granularities:
        raise IncompatibleError(
            f"{what} cannot take granularity `{granularity}`", hint=f"it takes {', '.join(row.granularities)}"
        )
    if not row.takes_groups(group_size):
        least = row.group_multiple
        hint = f"use a power of two of at least {least}" if row.power_of_two_groups else f"use a multiple of {least}"
        raise IncompatibleError(f"{what} cannot take groups of {group_size}", hint=hint)


def usual_capabilities(runtime: str, lowering: str) -> tuple[float, ...]:
    """GPUs that a lowering's engines are built for where nobody says; none where they are built for the GPU here."""
    least = find_lowering(runtime, lowering).least_capability
    return tuple(each for each in find_runtime(runtime).usual_capabilities if each >= least)


def check_engine(runtime: str, lowering: str, wanted: Sequence[float], *, others: bool) -> None:
    """Refuse engines that the runtime cannot be asked for.

    Args:
        wanted: Compute capabilities; none are the runtime's usual.
        others: Whether they are to run on other GPUs, or releases of the library, than they are built with.

    Raises:
        IncompatibleError: GPUs that it does not build for, that lack the lowering's arithmetic, or that are named
            twice; or settings that it lacks.
    """
    row = find_runtime(runtime)
    if not row.compute_capabilities:
        if wanted:
            raise IncompatibleError(
                f"`{runtime}` does not build engines for compute capabilities",
                hint="leave out target.engine.compute_capabilities, or use a runtime that builds without a GPU",
            )
        return
    unknown = [capability for capability in wanted if capability not in row.compute_capabilities]
    twice = sorted({capability for capability in wanted if wanted.count(capability) > 1})
    known = ", ".join(map(str, row.compute_capabilities))
    if unknown or twice:
        what = f"does not build for compute capability {unknown[0]}" if unknown else f"was given {twice[0]} twice"
        raise IncompatibleError(f"`{runtime}` {what}", hint=f"target.engine.compute_capabilities takes {known}")
    least = find_lowering(runtime, lowering).least_capability
    if wanted and min(wanted) < least:
        able = ", ".join(str(capability) for capability in row.compute_capabilities if capability >= least)
        raise IncompatibleError(
            f"GPUs of compute capability {min(wanted)} lack the arithmetic of lowering `{lowering}`",
            hint=f"`{lowering}` on `{runtime}` takes target.engine.compute_capabilities of {able}; or use another one",
        )
    if others:
        raise IncompatibleError(
            f"`{runtime}` knows neither `hardware` nor `version_compatible`",
            hint="leave them out: target.engine.compute_capabilities names the GPUs",
        )


def runtime_bits_per_weight(tensors: Iterable[WeightInfo], runtime: str, lowering: str) -> float:
    """Bits a quantized weight takes where it is multiplied, its share of the scales included: the mean of all.

    The width of the runtime's floats where nothing is quantized.
    """
    row, bits, count = find_lowering(runtime, lowering), 0.0, 0
    width = float(find_runtime(runtime).float_bits)
    for tensor in tensors:
        if tensor.scheme is not None:
            rows, columns = matrix_shape(tensor.shape)
            count += rows * columns
            linear = len(tensor.shape) == 2  # filters are unpacked to floats
            bits += row.weight_bits(rows, columns, tensor.scheme) if linear else width * rows * columns
    return bits / count if count else width


def products_of(runtime: str, directory: Path, lowering: str) -> tuple[LinearProduct, ...]:
    """How the engine in a directory multiplies, as far as its compiler says; empty for runtimes without one."""
    backend = find_runtime(runtime).load()
    return backend.products(directory, lowering) if isinstance(backend, Compiler) else ()


def open_engine(backend: str, directory: str, lowering: str, threads: int) -> AbstractContextManager[Session]:
    """`Backend.open` with plain arguments, for a fresh process; `backend` is as in the row."""
    return load_backend(backend).open(Path(directory), lowering, threads)
