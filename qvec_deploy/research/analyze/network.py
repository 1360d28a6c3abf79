"""A network as a function of its weights on fixed images: logits, their change along a vector, Hessian products."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

State = Mapping[str, Tensor]


@cache
def _prepare_forward_mode() -> None:
    """Take two seconds for what the first forward-mode pass does: torch.jit.script, which torch 2.15 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.neg, (torch.zeros(()),), (torch.zeros(()),))


class Network:
    """Logits on the same images for any weights, and what these logits do along a direction in weight space.

    Args:
        model: Any network, put in evaluation mode. Its attention is computed step by step from here on: the fused
            kernels have no forward-mode derivative.
        batches: Images (B, C, H, W), in the model's dtype.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        _prepare_forward_mode()
        self._model = model.eval().requires_grad_(False)
        self._batches = batches
        modules: Iterable[Any] = model.modules()
        for module in modules:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False

    def logits(self, state: State) -> Tensor:
        """Logits (N, classes) of all images, float64."""
        with torch.no_grad():
            return torch.cat([functional_call(self._model, dict(state), (batch,)).double() for batch in self._batches])

    def along(self, state: State, rho: State) -> tuple[Tensor, Tensor]:
        """Logits, and their first-order change along a vector.

        Args:
            state: All weights, by name: the point.
            rho: The direction, by names of `state`; all other weights stand still.

        Returns:
            Logits and J rho, (N, classes) float64 each, from one forward-mode pass a batch.
        """
        fixed, start = _split(state, rho)
        pairs = [jvp(self._function(fixed, batch), (start,), (dict(rho),)) for batch in self._batches]
        values, changes = zip(*pairs, strict=True)
        return torch.cat(values).double(), torch.cat(changes).double()

    def hessian_product(self, state: State, rho: State, targets: Tensor) -> dict[str, Tensor]:
        """H rho, with H the Hessian of the mean `divergence` over all images: forward mode over reverse mode.

        Args:
            state: All weights, by name: the point.
            rho: The direction, by names of `state`; H is that of these weights alone.

        Returns:
            Tensors shaped as those of `rho`, in the model's dtype.
        """
        fixed, start = _split(state, rho)
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        wanted = torch.split(targets, [len(batch) for batch in self._batches])
        for batch, target in zip(self._batches, wanted, strict=True):
            function = self._function(fixed, batch)

            def loss(moving: State, function: _Function = function, target: Tensor = target) -> Tensor:
                return divergence(function(moving), target).sum() / len(targets)

            product = jvp(grad(loss), (start,), (dict(rho),))[1]
            for name, value in product.items():
                total[name] += value
        return total

    def _function(self, fixed: State, batch: Tensor) -> _Function:
        def logits(moving: State) -> Tensor:
            values: Tensor = functional_call(self._model, {**fixed, **moving}, (batch,))
            return values

        return logits


_Function = Callable[[State], Tensor]


def divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """KL(targets || softmax(logits)) per image, in nats; for one-hot targets this is the cross-entropy.

    Args:
        targets: Class probabilities (N, classes): a teacher's, or one-hot labels.
    """
    expected = targets.to(logits.dtype)
    entropy: Tensor = torch.special.xlogy(expected, expected)
    return (entropy - expected * logits.log_softmax(dim=1)).sum(dim=1)


def gauss_newton_form(logits: Tensor, first: Tensor, second: Tensor) -> float:
    """The form u' G v of two vectors in weight space, from what they do to the logits.

    G = mean over images of J' (diag(p) - p p') J: the Gauss-Newton matrix of any cross-entropy, whose Hessian in
    logit space does not depend on the targets. It is positive semidefinite.

    Args:
        logits: (N, classes), p = softmax of them.
        first: J u, (N, classes).
        second: J v, (N, classes).
    """
    p = logits.softmax(dim=1)
    centred = first - (p * first).sum(dim=1, keepdim=True)
    return float((p * centred * (second - (p * second).sum(dim=1, keepdim=True))).sum(dim=1).mean())


def inner(first: State, second: State) -> float:
    """Euclidean inner product of two vectors in weight space, summed in float64."""
    return sum(float((first[name].double() * second[name].double()).sum()) for name in first)


def _split(state: State, rho: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that stand still, and those that move."""
    return {name: value for name, value in state.items() if name not in rho}, {name: state[name] for name in rho}
