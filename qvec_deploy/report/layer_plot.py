"""Rounding error by layer: one thin panel per kind of layer, blocks from left to right."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.roofline.roofline_values import layer_kind
from qvec_deploy.report import svg
from qvec_deploy.report.svg import Figure

PANEL, GAP = 50.0, 20.0  # units
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 40.0, 38.0

# Open and large below, filled and small above: two equal values are both seen.
LOOKS: tuple[dict[str, Any], ...] = ({"markersize": 7, "markerfacecolor": "none"}, {"markersize": 4})


def layer_errors(report: Report) -> Figure | None:
    """Of plain PTQ and of what was selected, the two that the reader compares; None without data."""
    plain = report.first("ptq")
    chosen = report[report.selected] if report.selected is not None else report.first("patched")
    shown = {entry.name: entry for entry in (plain, chosen) if entry is not None and entry.layer_errors}
    if not shown:
        return None
    samples = tuple((name, entry.layer, entry.error) for name, one in shown.items() for entry in one.layer_errors)
    return Figure(
        "layers",
        "Rounding error by layer",
        "Relative L2 error of the quantized weights. It hardly tells good candidates from bad ones: accuracy can move "
        "by tens of points while it stays. Nothing was selected by it.",
        _draw(tuple(shown.values())),
        ("candidate", "layer", "relative error"),
        samples,
    )


def panels(layers: Iterable[str]) -> dict[str, list[str]]:
    """Layers by `layer_kind`; within a kind by their numbers, for a manifest's sorted keys have block 10 before 2."""
    kinds: dict[str, list[str]] = {}
    for layer in layers:
        kinds.setdefault(layer_kind(layer), []).append(layer)
    return {
        kind: sorted(found, key=lambda layer: [int(number) for number in re.findall(r"(?<=\.)\d+(?=\.)", layer)])
        for kind, found in kinds.items()
    }


@svg.drawn
def _draw(candidates: tuple[Candidate, ...]) -> str:
    kinds = panels(dict.fromkeys(entry.layer for candidate in candidates for entry in candidate.layer_errors))
    blocks = max(len(layers) for layers in kinds.values())
    largest = max(entry.error for candidate in candidates for entry in candidate.layer_errors)
    height = TOP + len(kinds) * PANEL + (len(kinds) - 1) * GAP + BOTTOM
    with svg.drawing(height) as drawing:
        for index, (kind, layers) in enumerate(kinds.items()):
            top = TOP + index * (PANEL + GAP)
            axes = drawing.axes(LEFT, RIGHT, top, height - top - PANEL)
            _panel(axes, kind, layers, candidates)
            axes.set_xlim(-0.6, blocks - 0.4)
            axes.set_ylim(0, 1.1 * largest or 1)
            if index < len(kinds) - 1:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("block, in network order")
        svg.legend(drawing.canvas.axes[0], above=1.34)
        means = {c.name: math.fsum(e.error for e in c.layer_errors) / len(c.layer_errors) for c in candidates}
        words = "; ".join(f"{name} {mean:.3f}" for name, mean in means.items())
        return drawing.svg("layers", f"mean over layers: {words}")


def _panel(axes: Any, kind: str, layers: list[str], candidates: tuple[Candidate, ...]) -> None:
    from matplotlib.ticker import MaxNLocator

    for candidate, look in zip(candidates, LOOKS, strict=False):
        found = [(layers.index(entry.layer), entry.error) for entry in candidate.layer_errors if entry.layer in layers]
        color = svg.COLORS[candidate.role]
        places, values = zip(*found, strict=True) if found else ((), ())
        axes.plot(places, values, "o-", color=color, linewidth=0.6, label=svg.shorten(candidate.name), **look)
    axes.set_title(kind, loc="left", fontsize=9, pad=3, color=svg.COLORS["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=9)
