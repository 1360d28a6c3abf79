"""The kernels from PyTorch: arguments are checked, the fastest way is found by timing, the output is allocated."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.ahead import BASELINE_SM, DEEP_TILES, TILES, Tile, usual_tile
from qvec_deploy.runtimes.kernels.layouts import DeviceLayout

_TYPES = (torch.float16, torch.bfloat16)
_COMBINE_BLOCK = 256
_REDUCED = (
    "allow_fp16_accumulation",
    "allow_fp16_reduced_precision_reduction",
    "allow_bf16_reduced_precision_reduction",
)
_FUSED = {"enable_fp_fusion": True}  # said, because Triton's default changes with 3.10

Way = Tile | None
"""How `linear` runs: in programs of one tile, or (None) dequantized and then multiplied by PyTorch."""

_ways: dict[tuple[Any, ...], Way] = {}


class DeviceWeight(NamedTuple):
    """A weight as the kernels read it.

    Attributes:
        words: int32 codes in `layout`.
        scale: (rows, groups) float32.
        group_size: Columns that share a scale; 0 for one scale a row.
    """

    words: Tensor
    scale: Tensor
    layout: DeviceLayout
    bits: int
    columns: int
    group_size: int


def linear(x: Tensor, weight: DeviceWeight, bias: Tensor | None) -> Tensor:
    """Return x @ dequant(weight).T + bias, calculated on a GPU.

    The first call for a shape times every way to do it and keeps the fastest; under CUDA graph capture, where nothing
    can be timed, a shape not yet seen takes a way chosen by its size. Sizes up to the same power of two are one shape.

    Args:
        x: (..., columns) float16 or bfloat16, contiguous.
        bias: (rows,) of the type of x, or None.

    Returns:
        (..., rows) of the type of x.

    Raises:
        IncompatibleError: Arguments that do not belong together, are not on one GPU, or a GPU that is too old.
    """
    check(x, weight, bias)
    if not x.is_cuda:
        raise IncompatibleError(f"the kernels run on an NVIDIA GPU and the tensors are on {x.device}", hint="move them")
    major, minor = torch.cuda.get_device_capability(x.device)
    if 10 * major + minor < BASELINE_SM:
        raise IncompatibleError(
            f"linear needs compute capability {BASELINE_SM / 10:.1f} and {x.device} has {major}.{minor}",
            hint="use the lowering `float` or `int4` on this GPU",
        )
    rows, m = len(weight.scale), x.numel() // weight.columns
    if not m:
        return x.new_empty((*x.shape[:-1], rows))

    with torch.cuda.device(x.device):
        shape = (weight.layout.id, weight.bits, weight.group_size, rows, weight.columns)
        key = (x.device, x.dtype, *shape, (m - 1).bit_length())
        how = functools.partial(run, x, weight, bias)
        return how(_way_for(key, how, m))


def check(x: Tensor, weight: DeviceWeight, bias: Tensor | None) -> None:
    """Refuse arguments of `linear` that do not belong together, before a kernel reads beyond them."""
    words, scale, layout, bits, columns, group_size = weight
    rows = len(scale) if scale.ndim else 0
    layout.require(rows, columns, bits, group_size)
    if x.dtype not in _TYPES:
        raise IncompatibleError(f"x is {x.dtype}", hint="convert it to torch.float16 or torch.bfloat16")
    if not x.ndim or x.shape[-1] != columns:
        raise IncompatibleError(
            f"x has shape {tuple(x.shape)} and the weight {columns} columns", hint="the last sizes must be the same"
        )
    groups = columns // group_size if group_size else 1
    expected: list[tuple[str, Tensor, tuple[int, ...], torch.dtype]] = [
        ("words", words, layout.words_shape(rows, columns, bits), torch.int32),
        ("scale", scale, (rows, groups), torch.float32),
    ]
    if bias is not None:
        expected.append(("bias", bias, (rows,), x.dtype))
    for name, tensor, shape, dtype in expected:
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise IncompatibleError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {dtype} of shape {shape}",
                hint="lower the bundle again with this version",
            )
        if tensor.device != x.device:
            raise IncompatibleError(f"x is on {x.device} and {name} on {tensor.device}", hint="move one of them")
    for name, tensor in [("x", x), *((name, tensor) for name, tensor, _, _ in expected)]:
        if not tensor.is_contiguous():
            raise IncompatibleError(f"{name} is not contiguous", hint=f"pass {name}.contiguous()")


def ways(m: int) -> list[Way]:
    """Every way worth timing for m rows of x."""
    fitting = [
        tile
        for tile in (*TILES, *DEEP_TILES)
        if tile.rows < 2 * max(m, 16) and (tile.rows > 16 or m <= 64) and (tile.split == 1 or m <= 16)
    ]
    return [*fitting, None]


def run(x: Tensor, weight: DeviceWeight, bias: Tensor | None, way: Way, *, asm: bool = True) -> Tensor:
    """`linear` in a given way, its arguments taken as checked."""
    from qvec_deploy.runtimes.kernels import triton_kernels

    words, scale, layout, bits, k, group = weight
    n, m = len(scale), x.numel() // k
    if way is None:
        with _sums_in_float32():
            return torch.nn.functional.linear(x, dequantize(weight, x.dtype), bias)
    y = x.new_empty((*x.shape[:-1], n))
    parts = y if way.split == 1 else x.new_empty((way.split, m, n), dtype=torch.float32)
    triton_kernels.LINEAR[layout.id][(-(-m // way.rows), -(-n // way.columns), way.split)](
        x, words, scale, bias, m, n, k, parts,
        BITS=bits, GROUP=group, ASM=asm, BLOCK_M=way.rows, BLOCK_N=way.columns, SPLIT=way.split,
        num_warps=way.warps, num_stages=way.stages, **_FUSED,
    )  # fmt: skip
    if way.split > 1:
        triton_kernels.combine[(m, -(-n // _COMBINE_BLOCK))](
            parts, scale, bias, m, n, y, GROUP=group, SPLIT=way.split, BLOCK=_COMBINE_BLOCK, **_FUSED
        )
    return y


def dequantize(weight: DeviceWeight, dtype: torch.dtype) -> Tensor:
    """The weight (rows, columns), taken as checked: each code times its scale in float32, rounded once to `dtype`."""
    from qvec_deploy.runtimes.kernels import triton_kernels

    words, scale, layout, bits, k, group = weight
    n, block = len(scale), triton_kernels.DEQUANTIZE_BLOCK[layout.id]
    dense = torch.empty((n, k), dtype=dtype, device=words.device)
    triton_kernels.DEQUANTIZE[layout.id][(-(-n // block[0]), -(-k // block[1]))](
        words, scale, n, k, dense, BITS=bits, GROUP=group, **_FUSED
    )
    return dense


def _way_for(key: tuple[Any, ...], how: Callable[[Way], Tensor], m: int) -> Way:
    """The way to go for a shape: kept from its first call, timed now, or the usual one where nothing can be timed."""
    if key not in _ways:
        times = {} if torch.cuda.is_current_stream_capturing() else _time_ways(how, m)
        if not times:
            return usual_tile(m)  # and not kept: another call may be able to time
        _ways[key] = min(times, key=lambda way: times[way])
    return _ways[key]


def _time_ways(how: Callable[[Way], Tensor], m: int) -> dict[Way, float]:
    """Milliseconds of every way that runs: median of some runs, each with a cold cache."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    times: dict[Way, float] = {}
    for way in ways(m):
        try:
            times[way] = do_bench(functools.partial(how, way), warmup=2, rep=10, return_mode="median")
        except (OutOfResources, torch.OutOfMemoryError):  # more shared memory, or more memory, than this GPU has
            continue
    return times


@contextlib.contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Within the block cuBLAS adds in float32 to the end, as the kernels do; by default it may add parts in 16 bits."""
    settings = torch.backends.cuda.matmul
    allowed = [name for name in _REDUCED if getattr(settings, name)]
    for name in allowed:
        setattr(settings, name, False)
    try:
        yield
    finally:
        for name in allowed:
            setattr(settings, name, True)
