"""Derivatives of a real network along a vector, held to finite differences in float64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import Tensor, nn
from torch.func import functional_call

from qvec_deploy.models import create
from qvec_deploy.quantize.modelopt import insert_fake_quantizers
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.research.analyze.network import Network, divergence, gauss_newton_form, inner
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
Arrays = dict[str, dict[str, np.ndarray]]

COUNT = 7


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(3).normal(size=(COUNT, 3, 32, 32)))


@pytest.fixture(scope="module")
def targets() -> Tensor:
    return torch.from_numpy(np.random.default_rng(4).normal(size=(COUNT, PICO_CLASSES))).softmax(dim=1)


@pytest.fixture(scope="module")
def network(images: Tensor) -> Network:
    return Network(create(PICO_MODEL, PICO_CLASSES, PICO_ARGS).double(), torch.split(images, 3))


@pytest.fixture(scope="module")
def point(pico_states: Arrays) -> State:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in pico_states["receiver"].items()}


def _direction(pico_states: Arrays, seed: int) -> State:
    rng = np.random.default_rng(seed)
    backbone = {name: value for name, value in pico_states["receiver"].items() if not name.startswith("head.")}
    return {name: torch.from_numpy(rng.normal(0, 0.02, value.shape)) for name, value in backbone.items()}


@pytest.fixture(scope="module")
def rho(pico_states: Arrays) -> State:
    return _direction(pico_states, 5)


@pytest.fixture(scope="module")
def other(pico_states: Arrays) -> State:
    return _direction(pico_states, 6)


def _moved(point: State, rho: State, step: float) -> State:
    return point | {name: point[name] + step * value for name, value in rho.items()}


def test_the_change_of_logits_is_their_finite_difference(network: Network, point: State, rho: State) -> None:
    logits, change = network.along(point, rho)
    step = 1e-4
    difference = (network.logits(_moved(point, rho, step)) - network.logits(_moved(point, rho, -step))) / (2 * step)
    torch.testing.assert_close(change, difference, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(logits, network.logits(point), rtol=1e-12, atol=1e-12)
    assert change.abs().max() > 1e-2


@pytest.mark.parametrize("one_hot", [False, True], ids=["teacher", "labels"])
def test_the_hessian_along_a_vector_is_a_second_difference(
    network: Network, point: State, rho: State, targets: Tensor, one_hot: bool
) -> None:
    if one_hot:
        targets = nn.functional.one_hot(targets.argmax(dim=1), PICO_CLASSES).double()
    step = 1e-2
    ahead, here, behind = (
        float(divergence(network.logits(_moved(point, rho, by)), targets).mean()) for by in (step, 0.0, -step)
    )
    form = inner(rho, network.hessian_product(point, rho, targets))
    assert form == pytest.approx((ahead - 2 * here + behind) / step**2, rel=1e-3)
    assert abs(form) > 1e-3


def test_the_hessian_is_symmetric_and_of_the_moving_weights_alone(
    network: Network, point: State, rho: State, other: State, targets: Tensor
) -> None:
    product = network.hessian_product(point, rho, targets)
    assert {name: value.shape for name, value in product.items()} == {name: v.shape for name, v in rho.items()}
    assert not any(name.startswith("head.") for name in product)
    assert inner(other, product) == pytest.approx(inner(rho, network.hessian_product(point, other, targets)), rel=1e-9)


def test_a_teachers_hessian_at_its_own_weights_is_the_gauss_newton_matrix(
    network: Network, point: State, rho: State, other: State
) -> None:
    logits, change = network.along(point, rho)
    _, second = network.along(point, other)
    product = network.hessian_product(point, rho, logits.softmax(dim=1))
    assert gauss_newton_form(logits, change, change) == pytest.approx(inner(rho, product), rel=1e-9)
    assert gauss_newton_form(logits, change, second) == pytest.approx(inner(other, product), rel=1e-9)


def test_elsewhere_the_two_differ(network: Network, point: State, rho: State, targets: Tensor) -> None:
    logits, change = network.along(point, rho)
    form = inner(rho, network.hessian_product(point, rho, targets))
    assert abs(gauss_newton_form(logits, change, change) - form) > 0.01 * abs(form)


def test_the_gauss_newton_form_is_the_dense_one() -> None:
    rng = np.random.default_rng(7)
    logits, first, second = (torch.from_numpy(rng.normal(size=(COUNT, 4))) for _ in range(3))
    p = logits.softmax(dim=1)
    dense = [float(u @ (torch.diag(q) - torch.outer(q, q)) @ v) for q, u, v in zip(p, first, second, strict=True)]
    assert gauss_newton_form(logits, first, second) == pytest.approx(np.mean(dense), rel=1e-12)


def test_divergence_is_kl_and_for_one_hot_targets_cross_entropy(targets: Tensor) -> None:
    logits = torch.from_numpy(np.random.default_rng(8).normal(size=(COUNT, PICO_CLASSES)))
    kl = (targets * (targets.log() - logits.log_softmax(dim=1))).sum(dim=1)
    torch.testing.assert_close(divergence(logits, targets), kl)
    labels = targets.argmax(dim=1)
    one_hot = nn.functional.one_hot(labels, PICO_CLASSES).double()
    torch.testing.assert_close(
        divergence(logits, one_hot), nn.functional.cross_entropy(logits, labels, reduction="none")
    )
    torch.testing.assert_close(divergence(targets.log(), targets), torch.zeros(COUNT, dtype=torch.float64))


def test_batches_change_nothing(images: Tensor, point: State, rho: State, targets: Tensor, network: Network) -> None:
    whole = Network(create(PICO_MODEL, PICO_CLASSES, PICO_ARGS).double(), [images])
    for one, many in zip(whole.along(point, rho), network.along(point, rho), strict=True):
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-12)
    one, many = (net.hessian_product(point, rho, targets) for net in (whole, network))
    for name in rho:
        torch.testing.assert_close(one[name], many[name], rtol=1e-9, atol=1e-12)


def test_doubling_the_vector_doubles_the_change(network: Network, point: State, rho: State) -> None:
    changes = [network.along(point, {n: c * v for n, v in rho.items()})[1] for c in (1.0, 2.0, 4.0)]
    for smaller, larger in pairwise(changes):
        torch.testing.assert_close(2 * smaller, larger, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_the_slope_is_that_of_a_straight_through_backward_pass(
    pico_states: Arrays, images: Tensor, targets: Tensor, rho: State, method: str
) -> None:
    """(p - p_T)' J rho at the weights on the grid is what QAT's own backward pass gives for the latent weights."""
    scheme = Scheme(3, "tensor", method=method)  # type: ignore[arg-type]
    state = {name: torch.tensor(value) for name, value in pico_states["receiver"].items()}
    direction = {name: value.float() for name, value in rho.items()}
    linears = [
        name for name in state if name.startswith("blocks.") and name.endswith("weight") and state[name].ndim == 2
    ]
    on_grid = state | {name: torch.from_numpy(quantize(state[name].numpy(), scheme).dequantize()) for name in linears}
    batch = images.float()

    logits, change = Network(create(PICO_MODEL, PICO_CLASSES, PICO_ARGS), [batch]).along(on_grid, direction)
    slope = float(((logits.softmax(dim=1) - targets) * change).sum(dim=1).mean())

    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    model.load_state_dict(state)
    insert_fake_quantizers(model, scheme, ("head",))
    divergence(model(batch), targets).mean().backward()
    latent = dict(model.named_parameters())
    backward = sum(float((latent[name].grad * value).sum()) for name, value in direction.items())  # type: ignore[operator]
    assert slope == pytest.approx(backward, rel=1e-4)
    assert abs(slope) > 1e-3


def test_a_windowed_transformer_has_its_derivatives_too() -> None:
    args = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": (2, 1), "num_heads": (2, 2)}
    torch.manual_seed(0)
    model = create("swin_tiny_patch4_window7_224", 3, args).double()  # type: ignore[arg-type]
    batch = torch.from_numpy(np.random.default_rng(9).normal(size=(2, 3, 32, 32)))
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    rho = {name: torch.full_like(value, 0.1) for name, value in state.items() if name.endswith("qkv.weight")}
    network = Network(model, [batch])
    _, change = network.along(state, rho)
    step = 1e-5
    difference = (network.logits(_moved(state, rho, step)) - network.logits(_moved(state, rho, -step))) / (2 * step)
    torch.testing.assert_close(change, difference, rtol=1e-5, atol=1e-9)
    product = network.hessian_product(state, rho, functional_call(model, state, (batch,)).softmax(dim=1))
    logits, _ = network.along(state, rho)
    assert inner(rho, product) == pytest.approx(gauss_newton_form(logits, change, change), rel=1e-8)
