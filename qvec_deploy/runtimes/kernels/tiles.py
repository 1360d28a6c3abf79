"""Tiles: what one program of the `linear` kernel computes, and how."""

from __future__ import annotations

from dataclasses import dataclass


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

DEEP_TILES: tuple[Tile, ...] = (
    Tile(16, 32, 1, 6),
    Tile(16, 64, 4, 6),
    Tile(16, 64, 4, 4, split=2),
    Tile(16, 64, 4, 4, split=4),
    Tile(64, 64, 4, 3),
    Tile(128, 64, 4, 2),
)
"""More, for kernels compiled for the GPU at hand: deeper pipelines, which take more shared memory, and split sums."""
