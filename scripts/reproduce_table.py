"""Cells of the reproduction to tables: means, intervals over receivers, seeds and images, win rates, paired tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Cell = dict[str, Any]

RESAMPLES = 2000
ZERO_DATA = ("rtn", "mse", "ptq", "one donor", "mean of donors", "generated images", "donor moments")
GROUPS = {"one donor, lambda 1": "donor ", "label-free lambda": "label-free lambda ", "random control": "random "}
"""Rows that average candidates whose names begin alike: one per donor."""

ORDER = (
    "float",
    "own qat",
    "rtn",
    "mse",
    "ptq",
    "random control",
    "one donor, lambda 1",
    "label-free lambda",
    "label-free donor",
    "mean of donors",
    "label-free mix, ridge",
    "label-free mix",
)


def rows_of(cell: Cell) -> dict[str, list[str]]:
    """Row to the candidates that it averages."""
    names = list(cell["right"])
    rows = {row: [name for name in names if name.startswith(prefix)] for row, prefix in GROUPS.items()}
    grouped = {name for members in rows.values() for name in members}
    rows |= {name: [name] for name in names if name not in grouped}
    known = [row for row in ORDER if row in rows]
    return {row: rows[row] for row in [*known, *(row for row in rows if row not in known)]}


def summarize(cells: list[Cell]) -> dict[str, Any]:
    """Setting to rows and comparisons."""
    settings = dict.fromkeys(cell["setting"] for cell in cells)
    return {name: _setting([cell for cell in cells if cell["setting"] == name]) for name in settings}


def _setting(cells: list[Cell]) -> dict[str, Any]:
    rows = rows_of(cells[0])
    images = {row: [_share(cell, row) for cell in cells] for row in rows}
    mean = {row: float(np.mean([part.mean() for part in parts])) for row, parts in images.items()}
    gap = mean["own qat"] - mean["ptq"]
    table = []
    for row in rows:
        gain = _difference(images[row], images["ptq"])
        table.append(
            {
                "row": row,
                "top1": 100 * mean[row],
                "gain": gain,
                "share_of_gap": 100 * (mean[row] - mean["ptq"]) / gap if gap > 0 else None,
                "wins": _wins(cells, row),
                "p": _wilcoxon(images[row], images["ptq"]),
            }
        )
    patched = {row: row.removesuffix(" + mean") for row in rows if row.endswith(" + mean")}
    return {
        "cells": len(cells),
        "images": int(sum(part.size for part in images["float"])),
        "gap": 100 * gap,
        "rows": table,
        "vector_adds": {plain: _difference(images[row], images[plain]) for row, plain in patched.items()},
        "comparisons": {
            f"{better} over {worse}": _difference(images[better], images[worse])
            for better, worse in (
                ("label-free mix", "one donor, lambda 1"),
                ("mean of donors", "one donor, lambda 1"),
                ("label-free mix", "mean of donors"),
                ("one donor, lambda 1", "random control"),
                ("one donor, lambda 1", "mse"),
                ("mean of donors", "mse"),
                ("gptaq, generated images", "own qat"),
                ("gptaq, receiver images", "own qat"),
            )
        },
        "seconds": {
            fact: float(np.mean([cell["facts"][fact] for cell in cells]))
            for fact in cells[0]["facts"]
            if fact.startswith("seconds ")
        },
    }


def _share(cell: Cell, row: str) -> Array:
    """Per test image, the share of a row's candidates that get it right; donors differ from receiver to receiver."""
    return np.mean([cell["right"][name] for name in rows_of(cell)[row]], axis=0, dtype=np.float64)


def _wins(cells: list[Cell], row: str) -> float:
    """Share of pairs, or of receivers, that are better than plain PTQ; ties count half."""
    scores = []
    for cell in cells:
        plain = np.mean(cell["right"]["ptq"])
        for name in rows_of(cell)[row]:
            scores.append(float(np.sign(np.mean(cell["right"][name]) - plain) + 1) / 2)
    return 100 * float(np.mean(scores))


def _difference(better: list[Array], worse: list[Array]) -> list[float]:
    """Mean difference in points, and its 95 % interval: receivers with their seeds are drawn, then images of each."""
    draw = np.random.default_rng(0)
    pairs = [100 * (a - b) for a, b in zip(better, worse, strict=True)]
    means = np.array([pair.mean() for pair in pairs])
    resampled = np.empty(RESAMPLES)
    # The mean over drawn images of one receiver is normal to a good approximation at hundreds of images.
    errors = np.array([pair.std(ddof=1) / np.sqrt(len(pair)) for pair in pairs])
    for index in range(RESAMPLES):
        chosen = draw.integers(0, len(pairs), len(pairs))
        resampled[index] = (means[chosen] + errors[chosen] * draw.standard_normal(len(pairs))).mean()
    low, high = np.quantile(resampled, [0.025, 0.975])
    return [float(means.mean()), float(low), float(high)]


def _wilcoxon(better: list[Array], worse: list[Array]) -> float | None:
    """Signed-rank test over receivers and seeds; None where all are equal."""
    from scipy import stats

    differences = np.array([a.mean() - b.mean() for a, b in zip(better, worse, strict=True)])
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else None


def unmet(summary: dict[str, Any]) -> list[str]:
    """What the method stands on and these numbers do not show."""
    missing = []
    for name, setting in summary.items():
        on_mse = "MSE" in name
        wanted = ["label-free mix over one donor, lambda 1"] if not on_mse else []
        wanted += ["one donor, lambda 1 over mse", "mean of donors over mse"] if on_mse else []
        for what in wanted:
            value, low, _ = setting["comparisons"][what]
            if low <= 0:
                missing.append(f"{name}: {what}: {value:+.1f} points, interval from {low:+.1f}")
        if not on_mse:
            best = max(
                (row["share_of_gap"] or 0.0, row["row"])
                for row in setting["rows"]
                if any(part in row["row"] for part in ZERO_DATA)
            )
            if best[0] < 90:
                missing.append(f"{name}: the best zero-data candidate, {best[1]}, recovers {best[0]:.0f} % of the gap")
    return missing


def print_tables(summary: dict[str, Any], grids: dict[str, str]) -> None:
    """Every setting as Markdown."""
    for name, setting in summary.items():
        print(f"\n### {name}: {grids[name]}\n")
        print(f"{setting['cells']} receivers with their seeds, {setting['images']:,} test images in all; ", end="")
        print(f"the gap between plain PTQ on this grid and the receiver's own QAT is {setting['gap']:.1f} points.\n")
        print("| candidate | top-1 % | gain over ptq, points | share of gap | wins | p |\n|:--|--:|--:|--:|--:|--:|")
        for row in setting["rows"]:
            share = "" if row["share_of_gap"] is None else f"{row['share_of_gap']:.0f} %"
            p = "" if row["p"] is None else f"{row['p']:.2g}"
            print(f"| {row['row']} | {row['top1']:.1f} | {_text(row['gain'])} | {share} | {row['wins']:.0f} % | {p} |")
        print("\n| comparison | points |\n|:--|--:|")
        for what, value in setting["comparisons"].items():
            print(f"| {what} | {_text(value)} |")
        for method, value in setting["vector_adds"].items():
            print(f"| the vector on top of {method} | {_text(value)} |")


def _text(value: list[float]) -> str:
    middle, low, high = value
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
