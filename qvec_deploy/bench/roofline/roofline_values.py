"""What a roofline is drawn from, operations counted from shapes alone and a device, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "convolution", "attention", "rest"]
Bound = Literal["memory", "compute"]

REST = "rest"
"""Name of what is counted beside Linears, convolutions and attention: norms and pooling. See `trace_operations`."""


@dataclass(frozen=True)
class MatrixProduct:
    """`count` matrix products (m, k) x (k, n) for each image."""

    m: int
    k: int
    n: int
    count: int = 1

    @property
    def flops(self) -> int:
        """Operations; a multiplication and its addition are two."""
        return 2 * self.count * self.m * self.k * self.n


@dataclass(frozen=True)
class Operation:
    """One layer's share of a forward pass.

    Attributes:
        layer: Module name; of an attention's two products and softmax, the attention's; `rest` for all the rest.
        weights: Weights it reads, once for all images of a run.
        values: Activations it reads and writes, for each image. Attention that is computed in one piece keeps its
            scores on the chip: they are not counted.
    """

    layer: str
    kind: Kind
    products: tuple[MatrixProduct, ...]
    weights: int
    values: int

    @property
    def flops(self) -> int:
        """Operations of its products for each image; those of norms and the like are not counted."""
        return sum(product.flops for product in self.products)

    @property
    def tokens(self) -> int:
        """Rows of its products for each image."""
        return sum(product.count * product.m for product in self.products)


def layer_kind(layer: str) -> str:
    """A layer's name without the numbers of its block: `attn.qkv` of `blocks.11.attn.qkv`."""
    parts = layer.split(".")
    numbers = [index for index, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts)


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
