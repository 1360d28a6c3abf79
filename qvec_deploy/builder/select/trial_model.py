"""The receiver in PyTorch with one candidate's weights at a time: exactly the numbers that the engine multiplies with.

The structure is built once and weights are swapped in place, so that trying a lambda costs a patch, a quantization
and a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qvec_deploy.builder.weights import load_model, make_weights
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.planner import Plan
from qvec_deploy.tensors import INPUT_SCALE, Float32, QuantizedTensor
from qvec_deploy.vectors.vector_sources import Source


class TrialModel:
    """One receiver, one method, any lambda and mixing weights.

    Args:
        plan: The recipe's plan; its lambda does not matter.
        images: Batches (B, C, H, W) on which candidates are compared.
        calibration: Batches for a method that looks at activations.
    """

    def __init__(
        self,
        plan: Plan,
        receiver: Checkpoint,
        sources: Mapping[str, Source],
        images: Sequence[Float32],
        calibration: Sequence[Float32] = (),
    ) -> None:
        self.plan = plan
        self.sources = sources
        self.images = images
        self._receiver = receiver
        self._calibration = calibration
        self.model = load_model(plan, ((tensor.name, receiver.read(tensor.name)) for tensor in plan.tensors))
        self._state: dict[str, Any] = self.model.state_dict()

    def float_logits(self) -> Float32:
        """Logits (images, classes) of the receiver itself."""
        for tensor in self.plan.tensors:
            self._put(tensor.name, self._receiver.read(tensor.name))
        return self.run()

    def logits(self, lam: float, weights: Sequence[float] | None = None) -> Float32:
        """Logits (images, classes) of the quantized candidate at a lambda, with mixing weights of its own."""
        self.load(lam, weights)
        return self.run()

    def load(self, lam: float, weights: Sequence[float] | None = None) -> None:
        """Put a candidate's dequantized weights into the model."""
        made = make_weights(at(self.plan, lam, weights), self._receiver, self.sources, self._calibration)
        factors = {}
        for name, value in made.tensors:
            if name.endswith(INPUT_SCALE):
                factors[f"{name.removesuffix(INPUT_SCALE)}.weight"] = value
            else:
                dense = value.dequantize() if isinstance(value, QuantizedTensor) else value
                self._put(name, dense.reshape(self._state[name].shape))  # a convolution's codes are a matrix
        for name, factor in factors.items():  # (x * factor) @ w.T = x @ (w * factor).T, up to rounding
            self._state[name].mul_(_tensor(factor))

    def run(self, images: Sequence[Float32] | None = None) -> Float32:
        """Logits (images, classes) of the weights as they are, on the trial's images or on others."""
        import torch

        with torch.inference_mode():
            outputs = [self.model(_tensor(batch)).numpy() for batch in images or self.images]
        return np.concatenate(outputs)

    def _put(self, name: str, value: Float32) -> None:
        self._state[name].copy_(_tensor(value))


def at(plan: Plan, lam: float, weights: Sequence[float] | None = None) -> Plan:
    """The plan of the same recipe with lambda and mixing weights given."""
    recipe = plan.recipe.model_copy(update={"lam": lam, "select": None})
    if lam == 0:
        return replace(plan, recipe=recipe, sources=(), tensors=tuple(replace(t, patched=False) for t in plan.tensors))
    if weights is None:
        return replace(plan, recipe=recipe)
    shares = zip((label for label, _ in plan.sources), weights, strict=True)
    return replace(plan, recipe=recipe, sources=tuple((label, float(share)) for label, share in shares))


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(value))
