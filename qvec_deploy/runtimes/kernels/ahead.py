"""The kernels compiled ahead of time, on a machine that need not have a GPU: Triton makes PTX, ptxas checks it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any, Literal

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.kernels.layouts import DeviceLayout, layout_named

Float = Literal["float16", "bfloat16"]

BASELINE_SM = 80
"""PTX for this architecture is assembled, by ptxas or by a driver, for every later one."""

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""What `linear` is compiled for."""

SHARED_LIMIT = 48 * 1024
"""Bytes of shared memory that a launch may have without asking the driver for more, which TensorRT does not."""

_PTX_VERSIONS = tuple((major, minor) for major in (7, 8, 9) for minor in range(9 if major < 9 else 100))
_POINTER = {"float16": "*fp16", "bfloat16": "*bf16"}
ARGUMENTS = ("x", "words", "scale", "bias", "m", "n", "k", "y")
"""Parameters of a compiled kernel, in order: pointers, and int32 for rows of x and the shape of the weight."""


@dataclass(frozen=True)
class Tile:
    """One way to cut y into programs.

    Attributes:
        rows: Rows of y that a program computes, at least 16.
        columns: Columns of y that a program computes, at least 32.
        stages: Depth of the pipeline of loads, in blocks of the weight's columns.
        split: Programs that share the sums of one piece of y; engines compiled ahead of time have 1.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    split: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}w{self.warps}s{self.stages}" + (f"k{self.split}" if self.split > 1 else "")


TILES: tuple[Tile, ...] = (
    Tile(16, 32, 1, 3),
    Tile(16, 64, 4, 3),
    Tile(32, 64, 2, 2),
    Tile(64, 64, 2, 2),
    Tile(64, 64, 4, 2),
    Tile(64, 128, 4, 2),
    Tile(128, 64, 4, 1),
)
"""Tiles of compiled engines: their sm_80 code needs no more than the 48 KiB of shared memory that any launch has."""


def usual_tile(m: int) -> Tile:
    """The tile for m rows of x where none has been timed."""
    return TILES[1] if m <= 16 else TILES[2] if m <= 32 else TILES[4]


DEEP_TILES: tuple[Tile, ...] = (
    Tile(16, 32, 1, 6),
    Tile(16, 64, 4, 6),
    Tile(16, 64, 4, 4, split=2),
    Tile(16, 64, 4, 4, split=4),
    Tile(64, 64, 4, 3),
    Tile(128, 64, 4, 2),
)
"""More, for kernels compiled for the GPU at hand: deeper pipelines, which take more shared memory, and split sums."""


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
        ptx: The text, without parameters other than `ARGUMENTS`.
        shared_bytes: Dynamic shared memory of a launch.
        sm: Architecture that it was compiled for; it runs on every later one.
        tile: What a block computes; a block takes its rows of x, along the grid's first axis.
        column_blocks: Blocks along the grid's second axis.
    """

    ptx: bytes
    name: str
    shared_bytes: int
    sm: int
    tile: Tile
    column_blocks: int

    @property
    def assembly(self) -> Assembly:
        """What ptxas says of it."""
        return assemble(self.ptx, self.sm)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.tile.warps

    def grid(self, m: int) -> tuple[int, int, int]:
        """Blocks of a launch on m rows of x."""
        return -(-m // self.tile.rows), self.column_blocks, 1


def compile_ahead(
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
    """Compile `linear` for a weight.

    Sizes are run-time arguments: weights whose sizes are alike divisible by 16 share one compilation and one PTX.

    Args:
        group_size: Columns that share a scale; 0 for one scale a row.
        dtype: Type of x, bias and the output. Scales are float32.
        sm: Compute capability, without the dot.
    """
    layout = layout_named(layout) if isinstance(layout, str) else layout
    layout.require(rows, columns, bits, group_size)
    if sm not in ARCHITECTURES:
        known = ", ".join(f"sm_{each}" for each in ARCHITECTURES)
        raise IncompatibleError(
            f"linear in {dtype} is not compiled for sm_{sm}",
            hint=f"it is for {known}; the lowering `int4` needs no kernel of ours",
        )
    ptx, name, shared = _ptx(layout.id, dtype, bits, group_size, aligned_sizes(rows, columns), tile, asm, sm)
    assemble(ptx, sm)  # which raises where it does not
    return Compiled(ptx, name, shared, sm, tile, -(-rows // tile.columns))


def aligned_sizes(rows: int, columns: int) -> tuple[str, ...]:
    """Which sizes of a weight are multiples of 16: `n`, `k`; such weights share a compilation."""
    return tuple(name for name, size in (("n", rows), ("k", columns)) if size % 16 == 0)


@functools.cache
def assemble(ptx: bytes, sm: int) -> Assembly:
    """Assemble PTX with the ptxas that Triton brings."""
    require_triton()
    exact = re.search(rb"^\.target sm_(\d+a?)", ptx, re.MULTILINE)
    arch = exact[1].decode() if exact and exact[1].endswith(b"a") else str(sm)
    with scratch_folder("ptxas") as folder:
        source, cubin = folder / "kernel.ptx", folder / "kernel.cubin"
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
    layout: str,
    dtype: Float,
    bits: int,
    group_size: int,
    aligned: tuple[str, ...],
    tile: Tile,
    asm: bool,
    sm: int,
) -> tuple[bytes, str, int]:
    """PTX, the kernel's name, and bytes of shared memory; pointers and the sizes `aligned` are multiples of 16."""
    require_triton()
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qvec_deploy.runtimes.kernels import triton_kernels

    kernel = triton_kernels.LINEAR[layout]
    constants: dict[str, Any] = {"BITS": bits, "GROUP": group_size, "ASM": asm}
    constants |= {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns, "SPLIT": 1}
    types = dict.fromkeys(("x", "bias", "y"), _POINTER[dtype]) | {"words": "*i32", "scale": "*fp32"}
    types |= dict.fromkeys(("m", "n", "k"), "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(signature)
        if signature[name].startswith("*") or name in aligned
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        built = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    data = built.metadata
    if data.global_scratch_size or data.profile_scratch_size:
        raise IncompatibleError("the compiled kernel asks for scratch memory", hint="use another version of triton")
    text = _strip(built.asm["ptx"], data.name, len(ARGUMENTS))
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


def _ptxas(sm: int) -> str:
    """Path of the assembler; before Triton 3.6 there is one for all architectures."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(sm) if inspect.signature(get_ptxas).parameters else get_ptxas()
    return str(tool.path)


def require_triton() -> None:
    """Refuse to compile where that is not possible.

    Raises:
        IncompatibleError: Triton is not installed, or interprets.
    """
    try:
        import triton.backends.nvidia  # noqa: F401
    except ImportError as error:
        raise IncompatibleError(
            f"kernels cannot be compiled: {error}", hint="install triton, which PyTorch for Linux brings"
        ) from error
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise IncompatibleError("kernels are interpreted here, not compiled", hint="unset TRITON_INTERPRET")
