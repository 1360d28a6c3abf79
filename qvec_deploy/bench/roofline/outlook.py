"""Before building: what a plan's model can gain on a device from fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvec_deploy.bench.roofline.predict import Mode, predict
from qvec_deploy.bench.roofline.roofline_values import Device, Operation, TimePrediction
from qvec_deploy.errors import QvecError
from qvec_deploy.planner import Plan
from qvec_deploy.runtimes.registry import RUNTIMES, check_lowering, runtime_bits_per_weight
from qvec_deploy.runtimes.runtime import Runtime

LAUNCH_MS = 0.003  # of a kernel, the least that is usual
WORTH = 1.05  # less than this is lost in what the roofline leaves out


@dataclass(frozen=True)
class RooflineColumn:
    """One way to run the model.

    Attributes:
        title: `fp32`, `int8` or `3 bits`, as on the report's axes.
        runtime: The plan's, or a usual one of the device's kind.
        lowering: What does that on the runtime; None where nothing does.
    """

    title: str
    runtime: str
    lowering: str | None
    mode: Mode


@dataclass(frozen=True)
class Outlook:
    """Predictions for one batch size, in the order of the columns: float, int8, and the plan's bits if it has any.

    Attributes:
        tokens: Rows that the widest quantized Linear multiplies in a run.
        advice: Why weight-only quantization cannot help, or cannot be seen on a GPU; None where it can, and without it.
    """

    batch_size: int
    columns: tuple[RooflineColumn, ...]
    predictions: tuple[TimePrediction, ...]
    tokens: int
    advice: str | None

    @property
    def speed_ups(self) -> tuple[float, ...]:
        """Over float, one per column."""
        return tuple(self.predictions[0].ms / prediction.ms for prediction in self.predictions)


def columns_of(plan: Plan, device: Device) -> tuple[RooflineColumn, ...]:
    """Float, int8 and the plan's bits as the plan's runtime would run them, or a usual one of the device's kind."""
    kind = "cpu" if device.threads is not None else "cuda"
    there = [row for row in RUNTIMES.values() if row.device == kind]
    runtime = next((row for row in there if row.name == plan.recipe.target.runtime), there[0])
    floats = Mode(runtime.floats, float(runtime.float_bits), runtime.floats)
    columns = [RooflineColumn(floats.floats, runtime.name, runtime.baseline.name, floats)]
    if plan.quantized:
        columns += [_int8(plan, runtime, there), _weight_only(plan, runtime)]
    return tuple(columns)


def _int8(plan: Plan, runtime: Runtime, there: Sequence[Runtime]) -> RooflineColumn:
    """The runtime's own lowering with int8 products; what it would be like where only another of the device has one."""
    own, *_ = [(row, each) for row in (runtime, *there) for each in row.lowerings if each.arithmetic == "int8"]
    row, lowering = own
    mode = Mode(runtime.floats, runtime_bits_per_weight(plan.tensors, row.name, lowering.name), "int8")
    return RooflineColumn("int8", runtime.name, lowering.name if row is runtime else None, mode)


def _weight_only(plan: Plan, runtime: Runtime) -> RooflineColumn:
    """The plan's own lowering, or that of fewest bits; the file's width where the runtime has none."""
    grid, own = plan.recipe.quantize, plan.recipe.target.lowering
    bits = {}
    for lowering in (row for row in runtime.lowerings if row.arithmetic == runtime.floats):
        try:
            check_lowering(runtime.name, lowering.name, grid.bits, grid.granularity, grid.group_size)
        except QvecError:
            continue
        bits[lowering.name] = runtime_bits_per_weight(plan.tensors, runtime.name, lowering.name)
    chosen = own if own in bits else min(bits, key=lambda lowering: bits[lowering], default=None)
    width = plan.stored_bits_per_weight if chosen is None else bits[chosen]
    return RooflineColumn(f"{grid.bits} bits", runtime.name, chosen, Mode(runtime.floats, width, runtime.floats))


def look_ahead(plan: Plan, operations: Sequence[Operation], device: Device, batch_size: int) -> Outlook:
    """Predict a plan's model on a device."""
    quantized = {tensor.name.removesuffix(".weight") for tensor in plan.quantized}
    columns = columns_of(plan, device)
    predictions = tuple(predict(operations, quantized, column.mode, device, batch_size) for column in columns)
    widest = max((each.tokens for each in operations if each.layer in quantized), default=0)
    tokens = batch_size * widest
    advice = None
    if len(columns) > 1:
        advice = _advice(columns[-1], predictions[0], predictions[-1], quantized, tokens)
        launches = len(predictions[0].layers)
        if device.threads is None and predictions[0].ms < LAUNCH_MS * launches:
            advice = f"launching {launches} layers, microseconds each, takes longer: expect little from fewer bits"
    return Outlook(batch_size, columns, predictions, tokens, advice)


def _advice(
    last: RooflineColumn, full: TimePrediction, narrow: TimePrediction, quantized: set[str], tokens: int
) -> str | None:
    gain = full.ms / narrow.ms
    if gain >= WORTH:
        return None
    if last.mode.weight_bits >= last.mode.float_bits:
        return f"lowering `{last.lowering}` multiplies with {last.mode.floats} weights: expect no more than 1.0x"
    linears = [layer for layer in full.layers if layer.layer in quantized]
    busy = sum(layer.ms for layer in linears if layer.bound == "compute")
    if 2 * busy > sum(layer.ms for layer in linears):
        return f"compute-bound at {tokens} tokens: expect no more than {gain:.1f}x from fewer bits per weight alone"
    return f"weights are a small part of what is moved at {tokens} tokens: expect no more than {gain:.1f}x"
