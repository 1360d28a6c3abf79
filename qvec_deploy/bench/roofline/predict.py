"""From operations and a device to the shortest time of every layer (Williams et al. 2009)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from qvec_deploy.bench.roofline.roofline_values import Device, LayerPrediction, Operation, TimePrediction
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.registry import find_lowering, find_runtime
from qvec_deploy.runtimes.runtime import Arithmetic

_FLOAT_BITS = {"fp32": 32.0, "fp16": 16.0}


@dataclass(frozen=True)
class Mode:
    """How an engine multiplies.

    Attributes:
        floats: Arithmetic of everything that is not quantized; activations are kept in it.
        weight_bits: Of a quantized weight in memory, its share of the scales included.
    """

    floats: Literal["fp32", "fp16"]
    weight_bits: float
    arithmetic: Arithmetic

    @property
    def float_bits(self) -> float:
        """Of an activation, or of a weight that is not quantized."""
        return _FLOAT_BITS[self.floats]


def mode_of(runtime: str, lowering: str, weight_bits: float) -> Mode:
    """How a lowering multiplies."""
    return Mode(find_runtime(runtime).floats, weight_bits, find_lowering(runtime, lowering).arithmetic)


def predict(
    operations: Sequence[Operation], quantized: Collection[str], mode: Mode, device: Device, batch_size: int
) -> TimePrediction:
    """The shortest time of a run: per layer the longer of moving its bytes and of computing its products.

    Weights are taken to come from main memory in every run, activations to go there and back between layers. What
    stays in a cache is faster than that: a small model, or a small batch on a device with a large cache, can beat its
    prediction where it says `memory`, and never where it says `compute`. Activation functions, residuals and copies are
    taken to be fused with their neighbours, at no cost. Where the device's int8 rate is not known,
    int8 Linears are given its float rate.

    Raises:
        IncompatibleError: The device's rate for this arithmetic is not known.
    """
    if mode.floats not in device.gflops:
        raise IncompatibleError(
            f"no {mode.floats} rate of {device.name} is known", hint=f"it has {', '.join(device.gflops) or 'none'}"
        )
    layers = []
    for operation in operations:
        low = operation.layer in quantized and operation.kind != "convolution"  # filters are unpacked to floats
        bits = mode.weight_bits if low else mode.float_bits
        rate = device.gflops.get(mode.arithmetic if low else mode.floats, device.gflops[mode.floats])
        moved = (operation.weights * bits + batch_size * operation.values * mode.float_bits) / 8
        memory = moved / device.bandwidth_gb_s / 1e6  # bytes / (GB/s) is 1e-9 s
        compute = batch_size * operation.flops / rate / 1e6
        bound: Literal["memory", "compute"] = "compute" if compute > memory else "memory"
        layers.append(LayerPrediction(operation.layer, max(memory, compute), bound))
    return TimePrediction(batch_size, tuple(layers))
