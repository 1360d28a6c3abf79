"""The kernels compiled ahead of time, on a machine that need not have a GPU: Triton makes PTX, ptxas checks it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.layouts import DeviceLayout, layout_named
from qvec_deploy.runtimes.kernels.tiles import TILES, Tile

__all__ = [
    "ARCHITECTURES",
    "BASELINE_SM",
    "SHARED_LIMIT",
    "TILES",
    "Assembly",
    "Compiled",
    "Tile",
    "assemble",
    "compile_ahead",
]

Kind = Literal["linear", "dequantize"]
Float = Literal["float16", "bfloat16"]

BASELINE_SM = 80
"""PTX for this architecture is assembled, by ptxas or by a driver, for every later one."""

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""What `linear` is compiled for; `dequantize` is compiled for sm_75, too, where it leaves the product to others."""

SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that a launch may have without asking the driver for more, which TensorRT does not."""

_PTX_VERSIONS = tuple((major, minor) for major in (7, 8, 9) for minor in range(9 if major < 9 else 100))
_POINTER = {"float16": "*fp16", "bfloat16": "*bf16"}
_ARGUMENTS = {
    "linear": ("x", "words", "scale", "bias", "m", "n", "k", "y"),
    "dequantize": ("x", "words", "scale", "n", "k", "y"),
}


@dataclass(frozen=True)
class Assembly:
    """What ptxas says of a kernel.

    Attributes:
        spill_bytes: Bytes of a thread that did not fit them, stores and loads together.
    """

    registers: int
    spill_bytes: int
    cubin: bytes


@dataclass(frozen=True)
class Compiled:
    """A kernel as PTX, and how to launch it.

    Attributes:
        ptx: The text, without parameters other than `arguments`.
        arguments: Its parameters in order. Pointers, and int32 for `m`, `n`, `k`: rows of x, shape of the weight.
        shared_bytes: Dynamic shared memory of a launch.
        warps: A block has 32 threads for each.
        sm: Architecture it was compiled for; sm_80 code runs on every later one.
        block_rows: Rows of x that a block takes, along the grid's first axis; 0 if the grid does not depend on m.
        grid_fixed: Blocks that depend on the weight alone: along the grid's second axis, or both for `dequantize`.
    """

    ptx: bytes
    name: str
    arguments: tuple[str, ...]
    shared_bytes: int
    warps: int
    registers: int
    spill_bytes: int
    sm: int
    block_rows: int
    grid_fixed: tuple[int, ...]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps

    def grid(self, m: int) -> tuple[int, int, int]:
        """Blocks of a launch on m rows of x."""
        first = (-(-m // self.block_rows),) if self.block_rows else ()
        x, y = first + self.grid_fixed
        return x, y, 1


def compile_ahead(
    kind: Kind,
    *,
    layout: DeviceLayout | str,
    bits: int,
    rows: int,
    columns: int,
    group_size: int = 0,
    dtype: Float = "float16",
    tile: Tile = TILES[2],
    sm: int = BASELINE_SM,
    asm: bool = True,
) -> Compiled:
    """Compile a kernel for a weight.

    Sizes are run-time arguments: weights whose sizes are alike divisible by 16 share one compilation and one PTX.

    Args:
        group_size: Columns that share a scale; 0 for one scale a row.
        dtype: Type of x, bias and the output. Scales are float32.
        sm: Compute capability, without the dot.
    """
    layout = layout_named(layout) if isinstance(layout, str) else layout
    if not layout.takes(rows, columns, bits, group_size):
        raise IncompatibleError(
            f"layout {layout.id} does not take a weight of shape ({rows}, {columns}) at {bits} bits in groups of "
            f"{group_size}",
            hint="kernels.layouts.choose_layout says which layout does",
        )
    known = ARCHITECTURES if kind == "linear" else (75, *ARCHITECTURES)
    if sm not in known or (sm < BASELINE_SM and dtype == "bfloat16"):
        raise IncompatibleError(
            f"{kind} in {dtype} is not compiled for sm_{sm}",
            hint=f"it is for {', '.join(f'sm_{each}' for each in known)}; the lowering `int4` needs no kernel of ours",
        )
    constants: dict[str, Any] = {"BITS": bits, "GROUP": group_size}
    block_rows, warps, stages = 0, 4, 1
    if kind == "linear":
        constants |= {"ASM": asm, "BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "SPLIT": 1}
        block_rows, warps, stages = tile.rows, tile.warps, tile.stages
        grid_fixed: tuple[int, ...] = (-(-rows // tile.columns),)
    else:
        grid_fixed = _dequantize_grid(layout.id, rows, columns)
    aligned = tuple(name for name, size in (("n", rows), ("k", columns)) if size % 16 == 0)
    ptx, name, shared = _ptx(kind, layout.id, dtype, tuple(constants.items()), aligned, warps, stages, sm)
    assembly = assemble(ptx, sm)
    return Compiled(
        ptx,
        name,
        _ARGUMENTS[kind],
        shared,
        warps,
        assembly.registers,
        assembly.spill_bytes,
        sm,
        block_rows,
        grid_fixed,
    )


@functools.cache
def assemble(ptx: bytes, sm: int) -> Assembly:
    """Assemble PTX with the ptxas that Triton brings.

    Args:
        ptx: PTX for `sm` or an earlier architecture.
    """
    _require_triton()
    exact = re.search(rb"^\.target sm_(\d+a?)", ptx, re.MULTILINE)
    arch = exact[1].decode() if exact and exact[1].endswith(b"a") else str(sm)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_bytes(ptx)
        command = [_ptxas(sm), "-v", f"-arch=sm_{arch}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise IncompatibleError(
                f"ptxas does not assemble the kernel for sm_{arch}: {done.stderr.strip()[:500]}",
                hint="install the version of triton that this version was tested with",
            )
        registers = re.search(r"Used (\d+) registers", done.stderr + done.stdout)
        spills = re.findall(r"(\d+) bytes spill", done.stderr + done.stdout)
        if registers is None:
            raise IncompatibleError("ptxas does not say how many registers it used", hint="see `ptxas --version`")
        return Assembly(int(registers[1]), sum(map(int, spills)), cubin.read_bytes())


@functools.cache
def _ptx(
    kind: Kind,
    layout: str,
    dtype: Float,
    constants: tuple[tuple[str, Any], ...],
    aligned: tuple[str, ...],
    warps: int,
    stages: int,
    sm: int,
) -> tuple[bytes, str, int]:
    """PTX, the kernel's name, and bytes of shared memory; pointers and the sizes `aligned` are multiples of 16."""
    _require_triton()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qvec_deploy.runtimes.kernels import triton_kernels

    kernel = (triton_kernels.LINEAR if kind == "linear" else triton_kernels.DEQUANTIZE)[layout]
    types = dict.fromkeys(("x", "bias", "y"), _POINTER[dtype]) | {"words": "*i32", "scale": "*fp32"}
    types |= dict.fromkeys(("m", "n", "k"), "i32") | {name: "constexpr" for name, _ in constants}
    signature = {name: types[name] for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(signature)
        if signature[name].startswith("*") or name in aligned
    }
    source = ASTSource(kernel, signature, dict(constants), attributes)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    data = built.metadata
    if data.global_scratch_size or data.profile_scratch_size:
        raise IncompatibleError("the compiled kernel asks for scratch memory", hint="use another version of triton")
    text = _strip(built.asm["ptx"], data.name, len(_ARGUMENTS[kind]))
    return _with_least_version(text, sm).encode("ascii"), data.name, data.shared


def _with_least_version(ptx: str, sm: int) -> str:
    """The PTX declared as the oldest version of the language that has all it says: older drivers read it, too.

    Triton declares the newest version that its assembler knows, whatever the code needs. Which one that is differs by
    Triton's version and by kernel, so the assembler is asked. It refuses within 0.1 s what a version does not have.
    """
    declared = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    if declared is None:
        raise IncompatibleError("the compiled PTX declares no version", hint="use another version of triton")
    own = (int(declared[1]), int(declared[2]))
    for major, minor in [version for version in _PTX_VERSIONS if version < own]:
        older = f"{ptx[: declared.start()]}.version {major}.{minor}{ptx[declared.end() :]}"
        with contextlib.suppress(IncompatibleError):
            assemble(older.encode("ascii"), sm)
            return older
    return ptx


def _strip(ptx: str, name: str, arguments: int) -> str:
    """Leave out comments, and the parameters behind `arguments` that Triton adds for its own launcher."""
    ptx = re.sub(r"/\*.*?\*/", "", ptx, flags=re.DOTALL)
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"[ \t]*\n\s*", "\n", ptx).lstrip()
    head = re.search(rf"\.visible \.entry {re.escape(name)}\(([^)]*)\)", ptx)
    if head is None:
        raise IncompatibleError(f"the compiled PTX has no kernel {name}", hint="use another version of triton")
    declared = [parameter.strip() for parameter in head[1].split(",")]
    hidden = declared[arguments:]
    rest = ptx[: head.start()] + ptx[head.end() :]
    used = [line for line in hidden if re.search(rf"\b{re.escape(line.split()[-1])}\b", rest)]
    if len(declared) < arguments or used:
        raise IncompatibleError(
            f"the compiled kernel has {len(declared)} parameters, and uses {len(used)} of those behind the "
            f"{arguments} of its source",
            hint="use the version of triton that this version was tested with",
        )
    return ptx[: head.start(1)] + "\n" + ",\n".join(declared[:arguments]) + "\n" + ptx[head.end(1) :]


def _dequantize_grid(layout: str, rows: int, columns: int) -> tuple[int, int]:
    from qvec_deploy.runtimes.kernels.triton_kernels import DEQUANTIZE_BLOCK

    block = DEQUANTIZE_BLOCK[layout]
    return -(-rows // block[0]), -(-columns // block[1])


def _ptxas(sm: int) -> str:
    """Path of the assembler; before Triton 3.6 there is one for all architectures."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(sm) if inspect.signature(get_ptxas).parameters else get_ptxas()
    return str(tool.path)


def _require_triton() -> None:
    try:
        import triton.backends.nvidia  # noqa: F401
    except ImportError as error:
        raise IncompatibleError(
            f"kernels cannot be compiled: {error}", hint="install triton, which PyTorch for Linux brings"
        ) from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise IncompatibleError("kernels are interpreted here, not compiled", hint="unset TRITON_INTERPRET")
