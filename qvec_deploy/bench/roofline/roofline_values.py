"""What a roofline is drawn from, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["memory", "compute"]


@dataclass(frozen=True)
class Device:
    """What a device can do at best.

    Attributes:
        source: `measured` here, or `listed` in the vendor's data sheet.
        bandwidth_gb_s: Main memory's bandwidth, 1e9 bytes a second.
        gflops: 1e9 operations a second by arithmetic, such as `fp32`, `fp16`, `int8`; a multiplication and its
            addition are two.
        threads: Of the CPU that were used; None for a GPU.
    """

    name: str
    source: Literal["measured", "listed"]
    bandwidth_gb_s: float
    gflops: dict[str, float]
    threads: int | None = None


@dataclass(frozen=True)
class LayerPrediction:
    """The shortest time of a layer, in milliseconds, and what bounds it."""

    layer: str
    ms: float
    bound: Bound


@dataclass(frozen=True)
class TimePrediction:
    """The shortest time of a run at one batch size: no launch cost, no overhead, every layer at its bound."""

    batch_size: int
    layers: tuple[LayerPrediction, ...]

    @property
    def ms(self) -> float:
        """Of the whole model."""
        return sum(layer.ms for layer in self.layers)
