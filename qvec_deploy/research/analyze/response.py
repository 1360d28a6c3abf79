"""What a receiver with a vector really does: quantized as for an engine, run on the images, compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qvec_deploy.research.analyze.network import divergence
from qvec_deploy.tensors import Float32, Scheme

GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""The lambdas that every vector is measured at."""


@dataclass(frozen=True)
class QuantizedLoss:
    """One quantized receiver on the images.

    Attributes:
        kl: KL(float receiver || quantized one), mean over the images, nats.
        top1: Share of right answers, 0 to 1; None without labels.
    """

    loss: float
    kl: float
    top1: float | None


@dataclass(frozen=True)
class LambdaResponse:
    """The quantized receiver along one vector."""

    plain: QuantizedLoss
    own: QuantizedLoss
    curve: Mapping[float, QuantizedLoss]

    @property
    def best(self) -> float:
        """The lambda of least loss on these images; of equals, the one nearest to 0."""
        return min(self.curve, key=lambda lam: (self.curve[lam].loss, abs(lam)))

    def share(self, lam: float) -> float | None:
        """Share of the gap between plain and own that a measured lambda recovers; None where own is no better."""
        gap = self.plain.loss - self.own.loss
        return (self.plain.loss - self.curve[lam].loss) / gap if gap > 0 else None

    def share_top1(self, lam: float) -> float | None:
        """The same in top-1 accuracy; None without labels, or where own is no better."""
        plain, own, patched = self.plain.top1, self.own.top1, self.curve[lam].top1
        if plain is None or own is None or patched is None or own <= plain:
            return None
        return (patched - plain) / (own - plain)


@dataclass(frozen=True, eq=False)
class LossReference:
    """What logits are measured against.

    Attributes:
        teacher: Class probabilities (N, classes) of the float receiver.
        loss: `teacher` or `labels`: which of the two the loss is of.
    """

    teacher: Tensor
    labels: Tensor | None
    loss: str

    @property
    def targets(self) -> Tensor:
        """Class probabilities (N, classes) that the loss is the divergence from."""
        if self.loss == "teacher" or self.labels is None:
            return self.teacher
        return torch.nn.functional.one_hot(self.labels, self.teacher.shape[1]).to(self.teacher.dtype)

    def measure(self, logits: Tensor) -> QuantizedLoss:
        """Compare logits (N, classes)."""
        top1 = None if self.labels is None else float((logits.argmax(dim=1) == self.labels).double().mean())
        # No divergence is negative; a teacher's from itself is, by rounding.
        loss, kl = (max(0.0, float(divergence(logits, wanted).mean())) for wanted in (self.targets, self.teacher))
        return QuantizedLoss(loss, kl, top1)


def quantized(weights: Mapping[str, Float32], names: list[str], scheme: Scheme) -> dict[str, Tensor]:
    """All weights as tensors, those of `names` put on the grid and taken back to float."""
    from qvec_deploy.quantize.nearest import quantize

    state = {name: torch.from_numpy(value) for name, value in weights.items() if name not in names}
    return state | {name: torch.from_numpy(quantize(weights[name], scheme).dequantize()) for name in names}
