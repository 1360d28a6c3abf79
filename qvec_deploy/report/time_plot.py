"""Where the time goes: by kind of layer, measured beside predicted; and how it is spread over the samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.roofline.roofline_values import layer_kind
from qvec_deploy.report import svg
from qvec_deploy.report.accuracy_section import described
from qvec_deploy.report.svg import Figure

ROW, TOP, BOTTOM, RIGHT, GAP = 26.0, 30.0, 40.0, 14.0, 8.0  # units
LOG_FROM = 6.0  # ratio of largest to smallest sample from which a logarithmic axis shows more
TICK = 0.11  # height of a sample's mark, in rows


def layer_times(report: Report) -> Figure | None:
    """Of the described candidate and of the baseline; None where neither was profiled."""
    both = {one.name: one for one in (report[report.baseline], described(report)) if one is not None}
    candidates = [one for one in both.values() if one.layer_times]
    if not candidates:
        return None
    bounds = [_bounds(candidate) for candidate in candidates]
    samples = tuple(
        (candidate.name, entry.layer, entry.ms, bound.get(entry.layer))
        for candidate, bound in zip(candidates, bounds, strict=True)
        for entry in candidate.layer_times
    )
    tick = " Thin line: the roofline, which reads everything from memory." if any(bounds) else ""
    caption = (
        "One run by the runtime's own profiler, whose bookkeeping costs time too; a part of a bar is a layer, in "
        f"network order.{tick}"
    )
    drawn = _draw_layers(candidates, bounds)
    return Figure("layer-times", "Time by layer", caption, drawn, ("candidate", "layer", "ms", "predicted ms"), samples)


def _bounds(candidate: Candidate) -> dict[str, float]:
    """Predicted milliseconds by layer, at the batch size that was profiled."""
    first = candidate.latency[0].batch_size if candidate.latency else None
    entries = [entry for entry in candidate.predictions if first is None or entry.batch_size == first][:1]
    return {layer.layer: layer.ms for entry in entries for layer in entry.layers}


@svg.drawn
def _draw_layers(candidates: Sequence[Candidate], bounds: Sequence[dict[str, float]]) -> str:
    from matplotlib.ticker import MaxNLocator

    kinds = list(dict.fromkeys(layer_kind(entry.layer) for one in candidates for entry in one.layer_times))
    names, thick = [svg.shorten(kind) for kind in kinds], 0.8 / len(candidates)
    with svg.drawing(TOP + ROW * len(kinds) + BOTTOM) as drawing:
        axes = drawing.axes(svg.CHARACTER * max(map(len, names)) + 12, RIGHT, TOP, BOTTOM)
        for index, (candidate, bound) in enumerate(zip(candidates, bounds, strict=True)):
            offset = (index - (len(candidates) - 1) / 2) * thick
            _bars(axes, candidate, bound, kinds, offset, 0.88 * thick)
        svg.name_rows(axes, names)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("ms a run, all blocks")
        svg.legend(axes)
        totals = (f"{one.name}: {sum(entry.ms for entry in one.layer_times):.3g} ms" for one in candidates)
        return drawing.svg("layer-times", f"all layers: {'; '.join(totals)}")


def _bars(
    axes: Any, candidate: Candidate, bound: dict[str, float], kinds: list[str], offset: float, thick: float
) -> None:
    color, labelled = svg.COLORS[candidate.role], svg.shorten(candidate.name)
    for place, group in enumerate(kinds):
        start = 0.0
        entries = [entry for entry in candidate.layer_times if layer_kind(entry.layer) == group]
        for entry in entries:
            style = {"edgecolor": svg.COLORS["surface"], "linewidth": 0.6, "zorder": 3}
            axes.barh(place + offset, entry.ms, thick, start, color=color, label=labelled, **style)
            labelled, start = "_nolegend_", start + entry.ms
        if entries and all(entry.layer in bound for entry in entries):
            least, reach = sum(bound[entry.layer] for entry in entries), thick / 2 + 0.04
            ends = [place + offset - reach, place + offset + reach]
            axes.plot([least, least], ends, color=svg.COLORS["ink"], linewidth=1.6, zorder=5)


def distributions(report: Report) -> tuple[Figure, ...]:
    """Every latency sample, a figure per batch size."""
    batches = [entry.batch_size for entry in report[report.baseline].latency]
    return tuple(_distribution(report, batch) for batch in batches)


def _distribution(report: Report, batch: int) -> Figure:
    taken = {
        candidate.name: entry.samples_ms
        for candidate in report.candidates
        for entry in candidate.latency
        if entry.batch_size == batch
    }
    samples = tuple((name, block, value) for name, values in taken.items() for block, value in enumerate(values))
    count = len(next(iter(taken.values())))
    caption = f"All {count:,} samples of each; in a row the first block is on top. Long mark: the median."
    name = f"samples-{batch}"
    columns = ("candidate", "block", "host latency, ms")
    drawn = _draw_distribution(name, report, taken)
    return Figure(name, f"Latency samples, batch {batch}", caption, drawn, columns, samples)


@svg.drawn
def _draw_distribution(name: str, report: Report, taken: dict[str, tuple[float, ...]]) -> str:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    labels, words = svg.labels(list(taken)), []
    with svg.drawing(GAP + 0.85 * ROW * len(taken) + BOTTOM) as drawing:
        axes = drawing.axes(svg.CHARACTER * max(map(len, labels)) + 12, RIGHT, GAP, BOTTOM)
        for place, (candidate, values) in enumerate(taken.items()):
            color = svg.COLORS[report[candidate].role]
            middle = place + np.linspace(-0.34, 0.34, len(values))
            # One path for a candidate: every sample is a stroke, and not a number ends it.
            across = np.repeat(np.asarray(values), 3)
            down = np.stack([middle - TICK / 2, middle + TICK / 2, np.full(len(values), np.nan)], axis=1).ravel()
            axes.plot(across, down, color=color, linewidth=1.3, alpha=0.7, zorder=3)
            center = float(np.median(values))
            axes.plot([center] * 2, [place - 0.42, place + 0.42], color=svg.COLORS["ink"], linewidth=1.4, zorder=4)
            words.append(f"{candidate}: {min(values):.3g} to {max(values):.3g} ms, median {center:.3g}")
        _scale(axes, [value for values in taken.values() for value in values])
        svg.name_rows(axes, labels)
        axes.grid(visible=False, axis="y")
        if axes.get_xscale() == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.set_xlabel("host latency, ms")
        return drawing.svg(name, "; ".join(words))


def _scale(axes: Any, values: Sequence[float]) -> None:
    """From the fastest sample to the slowest; logarithmic where a slow one would press the rest together."""
    smallest, largest = min(values), max(values)
    if smallest > 0 and largest > LOG_FROM * smallest:
        svg.scale_logarithmic(axes, "x", smallest / 1.1, largest * 1.1)
    else:
        margin = 0.04 * (largest - smallest) or 0.05 * largest or 1.0
        axes.set_xlim(smallest - margin, largest + margin)
