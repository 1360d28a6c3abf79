"""The two ends of a fine-tune: the model before its first step, and its weights after the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import ModelArgs, create, head_names, in_head, is_running_statistic
from qvec_deploy.quantize.modelopt import insert_fake_quantizers, latent_state_dict
from qvec_deploy.tensors import Float32, Scheme

HEAD_STD = 0.02


@dataclass(frozen=True)
class Base:
    """A pretrained network to fine-tune.

    Attributes:
        state: float32 tensors by name; those of the head are not read.
    """

    model: str
    state: Mapping[str, Float32]
    args: ModelArgs = field(default_factory=dict)


def start(
    base: Base, classes: int, *, scheme: Scheme | None, skip: tuple[str, ...], seed: int, device: str = "cpu"
) -> torch.nn.Module:
    """The model before its first step: the base, a fresh head, and the grid where there is one.

    With one seed, the float run and the QAT run start from the same head: they differ in the grid alone, and that is
    what the vector is to hold.
    """
    model = create(base.model, classes, base.args)
    model.load_state_dict(_initial_state(model, base, heads=head_names(base.model), seed=seed))
    model.to(device)
    if scheme is not None:
        insert_fake_quantizers(model, scheme, skip)
    return model


def weights(model: torch.nn.Module) -> dict[str, Float32]:
    """A copy of the float weights, named and shaped as in a float checkpoint; those of a QAT run are latent."""
    return {name: value.detach().cpu().numpy().copy() for name, value in latent_state_dict(model).items()}


def _initial_state(model: torch.nn.Module, base: Base, *, heads: tuple[str, ...], seed: int) -> dict[str, torch.Tensor]:
    """The base's tensors, and a fresh head: weights N(0, 0.02^2) from the seed, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in model.state_dict().items():
        if is_running_statistic(name):
            raise IncompatibleError(
                f"{base.model} has BatchNorm (`{name}`), whose statistics are no weights",
                hint="train donors of models with LayerNorm",
            )
        if in_head(name, heads):
            fresh = torch.zeros(value.shape)
            state[name] = fresh.normal_(0.0, HEAD_STD, generator=generator) if value.ndim > 1 else fresh
        elif name not in base.state:
            raise IncompatibleError(f"the base has no tensor `{name}`", hint=f"is it a {base.model}?")
        elif tuple(base.state[name].shape) != tuple(value.shape):
            raise IncompatibleError(
                f"{name} is {base.state[name].shape} in the base and {tuple(value.shape)} in {base.model}",
                hint="check the model's name and its arguments",
            )
        else:
            state[name] = torch.tensor(base.state[name])
    return state
