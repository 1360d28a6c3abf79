"""Forward passes in step: one pass a batch, all inputs as they are, errors where they belong, nothing left behind."""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref

import numpy as np
import pytest
import torch
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import Tensor, nn

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import create, quantized_linears
from qvec_deploy.quantize.layer_inputs import accumulate_moments, called_linears, in_step, linear_at


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)


def images(seed: int, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 32, 32)).astype(np.float32)


def recorded(model: nn.Module, batch: np.ndarray) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    for name in quantized_linears(model, ()):
        linear_at(model, name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].detach()}))
    with torch.no_grad():
        model(torch.from_numpy(batch))
    return seen


def test_every_linear_in_order_with_its_inputs(model: nn.Module) -> None:
    names = quantized_linears(model, ("head",))
    batches = [images(0), images(1, 2)]
    expected = [recorded(copy.deepcopy(model), batch) for batch in batches]
    visited = []
    for name, inputs in in_step([(model, batch) for batch in batches], names):
        visited.append(name)
        for found, seen in zip(inputs, expected, strict=True):
            assert torch.equal(found, seen[name]) and not found.requires_grad
    assert visited == names  # a ViT defines its Linears in the order it calls them


def test_a_weight_changed_on_the_way_is_what_comes_after_it_sees(model: nn.Module) -> None:
    names = quantized_linears(model, ("head",))
    halved = copy.deepcopy(model)
    with torch.no_grad():
        linear_at(halved, names[1]).weight.mul_(0.5)
    expected = recorded(halved, images(0))
    for name, inputs in in_step([(model, images(0))], names):
        assert torch.equal(inputs[0], expected[name])
        if name == names[1]:
            with torch.no_grad():
                linear_at(model, name).weight.mul_(0.5)


def test_activations_that_have_been_seen_are_not_kept(model: nn.Module) -> None:
    seen: list[weakref.ref[Tensor]] = []
    for _, inputs in in_step([(model, images(0))], ["blocks.0.mlp.fc1", "blocks.1.mlp.fc2"]):
        assert all(each() is None for each in seen)
        seen.append(weakref.ref(inputs[0]))
    assert len(seen) == 2


def test_one_pass_a_batch(model: nn.Module) -> None:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    list(in_step([(model, images(0)), (model, images(1))], quantized_linears(model, ("head",))))
    assert len(calls) == 2


def test_nothing_is_left_behind(model: nn.Module) -> None:
    names = quantized_linears(model, ("head",))
    before = threading.active_count()
    with contextlib.closing(in_step([(model, images(0)), (model, images(1))], names)) as steps:
        next(steps)
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_error_inside_a_pass_is_raised_to_the_caller(model: nn.Module) -> None:
    before = threading.active_count()
    with pytest.raises(AssertionError, match="doesn't match model"):
        list(in_step([(model, images(0)), (model, images(0)[:, :, :16])], quantized_linears(model, ("head",))))
    assert threading.active_count() == before


def test_models_that_differ_are_refused(model: nn.Module) -> None:
    names = ["blocks.0.attn.qkv", "blocks.0.mlp.fc1"]

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = model.blocks

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)[:, :32]
            return self.blocks[0].mlp.fc1(flat)

    with pytest.raises(IncompatibleError, match="different orders"):
        list(in_step([(copy.deepcopy(model), images(0)), (Swapped(), images(0))], names))


def test_moments_are_means_over_all_rows(model: nn.Module) -> None:
    names = quantized_linears(model, ("head",))
    seen = [recorded(copy.deepcopy(model), batch) for batch in (images(0), images(1, 2))]
    moments = accumulate_moments(model, [images(0), images(1, 2)], names)
    assert list(moments) == names
    for name in names:
        rows = torch.cat([part[name].reshape(-1, part[name].shape[-1]) for part in seen]).double()
        torch.testing.assert_close(moments[name], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)


def test_linears_that_images_reach(model: nn.Module) -> None:
    model.blocks[1] = nn.Identity()  # type: ignore[index, operator]
    names = ["blocks.0.attn.qkv", "blocks.0.mlp.fc2", "head"]
    model.unused = nn.Linear(2, 2)
    assert called_linears(model, images(0), [*names, "unused"]) == set(names)
    assert not any(module._forward_pre_hooks for module in model.modules())
