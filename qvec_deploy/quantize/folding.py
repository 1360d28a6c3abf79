"""Factors of a Linear's input, absorbed by the norm before it where that changes nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qvec_deploy.quantize.layer_inputs import linear_at, on_device_of
from qvec_deploy.tensors import Float32

_TOLERANCE = 1e-6
"""Of the largest output, in float64: a fold that is exact is off by 1e-13, any other by far more."""


def fold_into_norms(
    model: nn.Module, factors: Mapping[str, Float32], images: Float32
) -> tuple[dict[str, Float32], dict[str, Float32]]:
    """Multiply norms by the factors of the Linears behind them.

    A norm takes a factor if the Linear is the first to be called after it, and if multiplying the norm and
    dividing the Linear's weights by random factors leaves the model's outputs as they were. The second is proof that
    the Linear's input is the norm's output and that nothing else uses it.

    Args:
        model: A model in evaluation mode; it is not changed.
        images: (B, C, H, W), a few, for the proof.

    Returns:
        Changed weights and biases of norms, by state-dict name; and the factors that no norm takes.
    """
    work = copy.deepcopy(model).double()
    batch = on_device_of(work, images).double()
    norms = _norm_before(work, batch)
    state = model.state_dict()
    folded: dict[str, Float32] = {}
    left: dict[str, Float32] = {}
    for name, factor in factors.items():
        norm = norms.get(name)
        if norm is None or not _absorbs(work, norm, name, batch):
            left[name] = factor
            continue
        for part in (f"{norm}.weight", f"{norm}.bias"):
            if part in state:
                folded[part] = state[part].detach().float().cpu().numpy() * factor
    return folded, left


def _norm_before(model: nn.Module, batch: Tensor) -> dict[str, str]:
    """For each Linear that is the first after a norm of its width: the norm's name."""
    found: dict[str, str] = {}
    latest: list[str] = []

    def hook(name: str, module: nn.Module) -> Any:
        def called(*_: Any) -> None:
            if not isinstance(module, nn.Linear):
                latest[:] = [name]
            elif latest:
                norm = latest.pop()
                if model.get_submodule(norm).weight.shape == (module.in_features,):
                    found.setdefault(name, norm)

        return called

    handles = [
        module.register_forward_pre_hook(hook(name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _is_norm(module)
    ]
    try:
        with torch.no_grad():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters())
    return "weight" in own and set(own) <= {"weight", "bias"} and own["weight"].ndim == 1


def _absorbs(model: nn.Module, norm: str, linear: str, batch: Tensor) -> bool:
    """Whether outputs stay when the norm is multiplied and the Linear divided by the same random factors."""
    weight = linear_at(model, linear).weight
    scaled: list[Tensor] = list(model.get_submodule(norm).parameters())
    changed: list[Tensor] = [*scaled, weight]
    generator = torch.Generator().manual_seed(0)
    factor = (torch.rand(weight.shape[1], generator=generator, dtype=torch.float64) + 0.5).to(weight.device)
    with torch.no_grad():
        before = model(batch)
        kept = [tensor.clone() for tensor in changed]
        for tensor in scaled:
            tensor.mul_(factor)
        weight.div_(factor)
        after = model(batch)
        for tensor, value in zip(changed, kept, strict=True):
            tensor.copy_(value)
    return bool((after - before).abs().max() <= _TOLERANCE * before.abs().max())
