"""Before building: what a plan's model can gain on a device from fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvec_deploy.bench.roofline.operations import Operation
from qvec_deploy.bench.roofline.predict import CPU_RUNTIMES, INT8_LOWERINGS, Mode, mode_of, planned_bits, predict
from qvec_deploy.bench.roofline.roofline_values import Device, Prediction
from qvec_deploy.errors import QvecError
from qvec_deploy.plan import LOWERINGS, Plan, check_lowering

LAUNCH_MS = 0.003  # of a kernel, the least that is usual
WORTH = 1.05  # less than this is lost in what the roofline leaves out


@dataclass(frozen=True)
class Column:
    """One way to run the model.

    Attributes:
        title: `fp32`, `int8` or `3 bits`, as on the report's axes.
        runtime: The plan's, or a usual one of the device's kind.
        lowering: What does that on the runtime; None where nothing does.
        mode: How it multiplies.
    """

    title: str
    runtime: str
    lowering: str | None
    mode: Mode


@dataclass(frozen=True)
class Outlook:
    """Predictions for one batch size, in the order of the columns: float, int8, and the plan's bits if it has any.

    Attributes:
        batch_size: Images in a run.
        columns: What was predicted.
        predictions: One per column.
        tokens: Rows that the widest quantized Linear multiplies in a run.
        advice: Why weight-only quantization cannot help, or cannot be seen on a GPU; None where it can, and without it.
    """

    batch_size: int
    columns: tuple[Column, ...]
    predictions: tuple[Prediction, ...]
    tokens: int
    advice: str | None

    @property
    def speed_ups(self) -> tuple[float, ...]:
        """Over float, one per column."""
        return tuple(self.predictions[0].ms / prediction.ms for prediction in self.predictions)


def columns_of(plan: Plan, device: Device) -> tuple[Column, ...]:
    """Float, int8 and the plan's bits as the plan's runtime would run them, or a usual one of the device's kind.

    Args:
        plan: What would be built.
        device: A CPU (which has threads) or a GPU.
    """
    on_cpu, runtime = device.threads is not None, plan.recipe.target.runtime
    if (runtime in CPU_RUNTIMES) != on_cpu:
        runtime = "onnxruntime" if on_cpu else "torch-cuda"
    known = [lowering for of, lowering in LOWERINGS if of == runtime]
    floats = mode_of(runtime, "float", 32.0 if on_cpu else 16.0)
    columns = [Column(floats.floats, runtime, "float", floats)]
    integer = next((lowering for lowering in known if lowering in INT8_LOWERINGS), None)
    if plan.quantized:
        bits = planned_bits(plan, *(("onnxruntime", "int8") if on_cpu else ("tensorrt", "w8a8")))
        columns.append(Column("int8", runtime, integer, mode_of(runtime, "int8", bits)))
        columns.append(_weight_only(plan, runtime, [each for each in known if each in ("packed", "int4")]))
    return tuple(columns)


def _weight_only(plan: Plan, runtime: str, known: Sequence[str]) -> Column:
    """The plan's own lowering, or that of fewest bits; the file's width where the runtime has none."""
    grid, own = plan.recipe.quantize, plan.recipe.target.lowering
    bits = {}
    for lowering in known:
        try:
            check_lowering(runtime, lowering, grid.bits, grid.granularity, grid.group_size)
        except QvecError:
            continue
        bits[lowering] = planned_bits(plan, runtime, lowering)
    chosen = own if own in bits else min(bits, key=lambda lowering: bits[lowering], default=None)
    width = plan.stored_bits_per_weight if chosen is None else bits[chosen]
    return Column(f"{grid.bits} bits", runtime, chosen, mode_of(runtime, "packed", width))


def look_ahead(plan: Plan, operations: Sequence[Operation], device: Device, batch_size: int) -> Outlook:
    """Predict a plan's model on a device.

    Args:
        plan: What would be built.
        operations: Of its model.
        device: Where it would run.
        batch_size: Images in a run.
    """
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


def _advice(last: Column, full: Prediction, narrow: Prediction, quantized: set[str], tokens: int) -> str | None:
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
