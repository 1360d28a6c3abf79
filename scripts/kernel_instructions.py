"""The static table: instructions per MMA in the main loop of the compiled kernels, counted in their machine code.

A count is no time. It says how much the unpacking costs beside the tensor cores, on any machine and without a GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BITS = 3
_MMA = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA)\b")
_LABEL = re.compile(r"^\.(L_\w+):")
_CODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;?\s*$")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\b.*`\(\.(L_\w+)\)")


@dataclass(frozen=True)
class Loop:
    """A loop of machine code.

    Attributes:
        instructions: Of one pass.
        mma: Of those, tensor core instructions.
    """

    instructions: int
    mma: int

    @property
    def others_per_mma(self) -> float:
        """Instructions that are none, per tensor core instruction."""
        return (self.instructions - self.mma) / self.mma


def main_loop(sass: str) -> Loop | None:
    """The smallest loop with the most tensor core instructions; None where no loop has any.

    Args:
        sass: What `nvdisasm -c` prints.
    """
    code: list[str] = []
    labels: dict[str, int] = {}
    loops: list[Loop] = []
    for line in sass.splitlines():
        label, instruction = _LABEL.match(line), _CODE.match(line)
        if label:
            labels[label[1]] = len(code)
        elif instruction:
            code.append(instruction[1])
            branch = _BRANCH.search(instruction[1])
            if branch and branch[1] in labels:
                body = code[labels[branch[1]] :]
                loops.append(Loop(len(body), sum(bool(_MMA.search(each)) for each in body)))
    return max((loop for loop in loops if loop.mma), key=lambda loop: (loop.mma, -loop.instructions), default=None)


def static_table() -> list[dict[str, Any]]:
    """One entry per layout, tile and architecture: the engines' sm_80 PTX, assembled for each.

    Raises:
        IncompatibleError: Triton or its assembler is missing.
    """
    from qvec_deploy.runtimes.kernels.ahead import ARCHITECTURES, TILES, assemble, compile_ahead
    from qvec_deploy.runtimes.kernels.layouts import LAYOUTS

    table = []
    for layout in ("fp16", *LAYOUTS):
        for tile in TILES:
            if layout == "fp16":
                ptx, shared_bytes = dense_ptx(tile)
            else:
                compiled = compile_ahead(layout=layout, bits=BITS, rows=768, columns=768, tile=tile)
                ptx, shared_bytes = compiled.ptx, compiled.shared_bytes
            for sm in ARCHITECTURES:
                assembly = assemble(ptx, sm)
                loop = main_loop(disassemble(assembly.cubin))
                table.append(
                    {
                        "layout": layout,
                        "tile": str(tile),
                        "sm": sm,
                        "instructions": loop.instructions if loop else None,
                        "mma": loop.mma if loop else None,
                        "others_per_mma": round(loop.others_per_mma, 2) if loop else None,
                        "registers": assembly.registers,
                        "spill_bytes": assembly.spill_bytes,
                        "shared_bytes": shared_bytes,
                    }
                )
    return table


def dense_ptx(tile: Any) -> tuple[bytes, int]:
    """The floor: a float16 product without any unpacking, from the same compiler with the same tile.

    Returns:
        PTX for sm_80, and bytes of shared memory.
    """
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    @triton.jit
    def dense(x, weight, m, n, k, y, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
        rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inner = tl.arange(0, 32)
        x_at = x + (rows % m)[:, None] * k + inner[None, :]
        weight_at = weight + (columns % n)[None, :] * k + inner[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, k, 32):
            acc = tl.dot(tl.load(x_at + start), tl.load(weight_at + start), acc)
        inside = (rows < m)[:, None] & (columns < n)[None, :]
        tl.store(y + rows[:, None] * n + columns[None, :], acc.to(tl.float16), mask=inside)

    constants = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
    types = dict.fromkeys(("x", "weight", "y"), "*fp16") | dict.fromkeys(("m", "n", "k"), "i32")
    signature = {name: types.get(name, "constexpr") for name in dense.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(signature) if name in (*types,)}
    del aligned[(dense.arg_names.index("m"),)]
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    built = triton.compile(
        ASTSource(dense, signature, constants, aligned), target=GPUTarget("cuda", 80, 32), options=options
    )
    return built.asm["ptx"].encode("ascii"), built.metadata.shared


def disassemble(cubin: bytes) -> str:
    """Machine code as text, by the disassembler that Triton brings.

    Raises:
        SystemExit: It is missing or refuses.
    """
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run([program, "-c", file.name], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"the machine code cannot be disassembled: {error}") from error
    return done.stdout


def print_static(table: list[dict[str, Any]], *, has_gpu: bool) -> None:
    """The table as text, called what it is."""
    reason = "as asked" if has_gpu else "no GPU here"
    print(f"STATIC TABLE ({reason}): counted in machine code, nothing was timed.")
    print(f"Instructions other than MMA, per MMA, in the main loop of `linear` at {BITS} bits; (registers), * spills;")
    print("fp16: the floor, a product of float16 weights by the same compiler. Shared memory must be 48 K at most.\n")
    architectures = sorted({entry["sm"] for entry in table})
    print(f"{'layout':<8}{'tile':<14}{'shared':>8}" + "".join(f"{f'sm_{sm}':>13}" for sm in architectures))
    cells = {(entry["layout"], entry["tile"], entry["sm"]): entry for entry in table}
    for layout, tile in dict.fromkeys((entry["layout"], entry["tile"]) for entry in table):
        line = f"{layout:<8}{tile:<14}{cells[layout, tile, architectures[0]]['shared_bytes'] / 1024:>7.1f}K"
        for sm in architectures:
            entry = cells[layout, tile, sm]
            ratio = "-" if entry["others_per_mma"] is None else f"{entry['others_per_mma']:.2f}"
            line += f"{ratio:>7} ({entry['registers']:>3}){'*' if entry['spill_bytes'] else ''}".rjust(13)
        print(line)
