"""The roofline of a plan as tables and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.roofline.roofline_values import layer_kind
from qvec_deploy.cli.terminal import print_table, terminal
from qvec_deploy.formatting import three
from qvec_deploy.report.page import Table

if TYPE_CHECKING:
    from qvec_deploy.bench.roofline.outlook import Outlook, RooflineColumn
    from qvec_deploy.bench.roofline.roofline_values import Device, TimePrediction

_ASSUMED = (
    "Shortest times: no launch cost, no overhead, weights and activations from main memory in every run; activation "
    "functions, residuals and copies fused with their neighbours, at no cost. Only what stays in a cache can be faster."
)


def roofline_document(device: Device, source: str, outlooks: Sequence[Outlook]) -> dict[str, Any]:
    """Everything that was predicted, layer by layer."""
    return {
        "device": {**asdict(device), "from": source},
        "batch_sizes": [_outlook_document(outlook) for outlook in outlooks],
    }


def _outlook_document(outlook: Outlook) -> dict[str, Any]:
    columns = zip(outlook.columns, outlook.predictions, outlook.speed_ups, strict=True)
    return {
        "batch_size": outlook.batch_size,
        "tokens": outlook.tokens,
        "advice": outlook.advice,
        "predictions": [
            {
                "title": column.title,
                "lowering": column.lowering,
                "bits_per_weight": column.mode.weight_bits,
                "arithmetic": column.mode.arithmetic,
                "ms": prediction.ms,
                "speed_up": speed_up,
                "layers": [asdict(layer) for layer in prediction.layers],
            }
            for column, prediction, speed_up in columns
        ],
    }


def print_roofline(device: Device, source: str, outlooks: Sequence[Outlook]) -> None:
    """Per batch size a table by kind of layer, its sum, and whether fewer bits can help."""
    console = terminal()
    rates = ", ".join(f"{name} {_tera(rate)}" for name, rate in device.gflops.items())
    threads = "" if device.threads is None else f", {device.threads} thread{'s' * (device.threads != 1)}"
    console.print()
    console.print(f"roofline of {device.name}{threads} ({source}): {device.bandwidth_gb_s:.0f} GB/s; {rates}")
    for column in outlooks[0].columns:
        console.print(f"  {_describe(column, device)}")
    for outlook in outlooks:
        console.print()
        console.print(f"batch size {outlook.batch_size}")
        table = _table(outlook)
        print_table(table, console, {row[0]: "bold" for row in table.rows[-2:]})
        if outlook.advice is not None:
            console.print(outlook.advice, style="yellow")
    console.print()
    console.print(_ASSUMED, style="dim")


def _describe(column: RooflineColumn, device: Device) -> str:
    mode = column.mode
    how = f"{column.runtime}: {'no lowering does that' if column.lowering is None else f'lowering {column.lowering}'}"
    rate = "" if mode.arithmetic in device.gflops else f" (at the rate of {mode.floats}: its own is not known)"
    return f"{column.title}: {mode.weight_bits:.3g} bits per weight, {mode.arithmetic} arithmetic{rate}; {how}"


def _table(outlook: Outlook) -> Table:
    columns = [title for column in outlook.columns for title in (f"{column.title} ms", "bound by")]
    counts = Counter(layer_kind(layer.layer) for layer in outlook.predictions[0].layers)
    sums = [_by_kind(prediction) for prediction in outlook.predictions]
    rows = [(kind, str(count), *(cell for one in sums for cell in one[kind])) for kind, count in counts.items()]
    rows.append(("model", "", *(cell for each in outlook.predictions for cell in (_ms(each.ms), ""))))
    over = (cell for gain in outlook.speed_ups for cell in (f"{gain:.2f}x", ""))
    rows.append((f"over {outlook.columns[0].title}", "", *over))
    return Table("", ("Layers", "Count", *columns), tuple(rows), "lr" + "rl" * len(outlook.columns))


def _by_kind(prediction: TimePrediction) -> dict[str, tuple[str, str]]:
    """Milliseconds and bound of all layers of a kind."""
    times: dict[str, float] = {}
    bounds: dict[str, set[str]] = {}
    for layer in prediction.layers:
        kind = layer_kind(layer.layer)
        times[kind] = times.get(kind, 0.0) + layer.ms
        bounds.setdefault(kind, set()).add(layer.bound)
    return {kind: (_ms(ms), " and ".join(sorted(bounds[kind]))) for kind, ms in times.items()}


def _ms(value: float) -> str:
    return three(value) if value < 100 else f"{value:.0f}"


def _tera(gflops: float) -> str:
    return f"{three(gflops / 1e3)} T/s" if gflops >= 1e3 else f"{gflops:.0f} G/s"
