"""Mixing weights of several donors, from what each one does to the quantized model's logits.

Ridge regression in logit space: at lambda 1 every donor alone moves the logits by some amount; the weights are those
whose weighted sum of the movements comes nearest to what quantization took away. n + 1 forward passes and an n x n
solve. Descent goes on from there on the divergence itself, over the same few numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qvec_deploy.builder.select.score import Float64, divergences
from qvec_deploy.builder.select.trial_model import TrialModel
from qvec_deploy.tensors import Float32

RIDGE = 0.1
"""Share of the mean diagonal that is added: donors' movements are alike, and 100 images are few."""

STEPS, RATE = 30, 0.05


def ridge_weights(target: Float32, plain: Float32, alone: Sequence[Float32]) -> tuple[float, ...]:
    """Weights w that minimize ||target - plain - sum w_i (alone_i - plain)||^2 + ridge ||w||^2.

    Args:
        target: Logits (images, classes) of the float receiver.
        plain: Logits of the quantized receiver without a patch.
        alone: Logits of the quantized receiver with each donor alone at lambda 1.
    """
    moves = np.stack([_centred(logits) - _centred(plain) for logits in alone]).reshape(len(alone), -1)
    wanted = (_centred(target) - _centred(plain)).reshape(-1)
    gram = moves @ moves.T
    gram += RIDGE * np.trace(gram) / len(alone) * np.eye(len(alone))
    if not gram.any():  # no donor moves anything
        return (0.0,) * len(alone)
    return tuple(float(weight) for weight in np.linalg.solve(gram, moves @ wanted))


def _centred(logits: Float32) -> Float64:
    """Class probabilities do not see a constant added to all logits of an image."""
    values = logits.astype(np.float64)
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def descend(trial: TrialModel, target: Float32, start: Sequence[float]) -> tuple[float, ...]:
    """Adam on the mean divergence over the mixing weights, straight through the rounding; the best weights seen.

    Args:
        trial: With a method that looks at weights alone. Its vectors are held in memory while this runs.
        target: Logits (images, classes) of the float receiver.
    """
    names = [tensor.name for tensor in trial.plan.tensors if tensor.patched]
    rho = {label: {name: source.read(name) for name in names} for label, source in trial.sources.items()}
    weights = np.array(start, np.float64)
    best, least = weights.copy(), np.inf
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, STEPS + 1):
        trial.load(1.0, weights.tolist())
        score, gradients = _gradients(trial, target)
        if score < least:
            best, least = weights.copy(), score
        slope = np.array([sum(float(np.vdot(gradients[name], part[name])) for name in names) for part in rho.values()])
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        weights = weights - RATE * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-12)
    trial.load(1.0, weights.tolist())
    if float(divergences(target, trial.run()).mean()) < least:
        best = weights
    return tuple(float(weight) for weight in best)


def _gradients(trial: TrialModel, target: Float32) -> tuple[float, dict[str, Any]]:
    """Mean divergence, and its gradient with respect to every tensor as it stands in the quantized model."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    trial.model.zero_grad()
    total, start = 0.0, 0
    for batch in trial.images:
        wanted = log_softmax(torch.from_numpy(target[start : start + len(batch)]), dim=1)
        found = log_softmax(trial.model(torch.from_numpy(batch)), dim=1)
        loss = kl_div(found, wanted, reduction="sum", log_target=True) / len(target)
        loss.backward()  # type: ignore[no-untyped-call]
        total, start = total + float(loss.detach()), start + len(batch)
    return total, {
        name: np.zeros(value.shape, np.float32) if value.grad is None else value.grad.numpy()
        for name, value in trial.model.named_parameters()
    }
