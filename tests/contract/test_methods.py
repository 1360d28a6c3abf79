"""One suite for every row of METHODS, and for the example that shows how to add one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from example_method import STOCHASTIC
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import nn

from qvec_deploy.errors import RecipeError
from qvec_deploy.models import create, quantized_linears
from qvec_deploy.quantize.calibrated import calibrate, calibrate_from_moments, collect_moments
from qvec_deploy.quantize.methods import METHODS, Method, find_method
from qvec_deploy.tensors import GRID_RULES, Float32, Scheme

pytestmark = pytest.mark.slow

SKIP = ("head",)
SCHEME = Scheme(3, "channel", method="mse")
ROWS = (*METHODS.values(), STOCHASTIC)

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _one_thread_and_the_example(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(METHODS, STOCHASTIC.name, STOCHASTIC)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(pico_states: dict[str, dict[str, Float32]]) -> nn.Module:
    network = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    network.load_state_dict({name: torch.tensor(value) for name, value in pico_states["receiver"].items()})
    return network.eval()


def _images() -> list[Float32]:
    return list(np.random.default_rng(0).normal(0, 1, (2, 8, 3, 32, 32)).astype(np.float32))


@every_row
def test_a_row_says_what_a_method_needs(row: Method) -> None:
    assert row.label
    assert row.calibrated == (row.function is not None), "what looks at inputs has a function, the others are grids"
    assert row.calibrated != (row.grid in GRID_RULES)
    assert row.from_moments is None or row.calibrated


@every_row
def test_codes_lie_on_the_grid_and_the_model_stays(row: Method, model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done: list[tuple[int, int]] = []
    given = _images() if row.calibrated else []
    result = calibrate(model, given, SCHEME, SKIP, row.name, on_layer=lambda one, of: done.append((one, of)))
    names = quantized_linears(model, SKIP)
    assert set(result.codes) == {f"{name}.weight" for name in names}
    for name, tensor in result.codes.items():
        assert tensor.scheme == SCHEME and tensor.codes.shape == tuple(before[name].shape)
        assert tensor.codes.min() >= SCHEME.qmin and tensor.codes.max() <= SCHEME.qmax
        assert (tensor.scale > 0).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(result.floats) <= set(before) and set(result.input_scales) <= set(names)
    assert not done or done[-1] == (len(names), len(names))


@every_row
def test_the_same_twice(row: Method, model: nn.Module) -> None:
    first, second = (calibrate(model, _images(), SCHEME, SKIP, row.name) for _ in range(2))
    assert all(np.array_equal(first.codes[name].codes, second.codes[name].codes) for name in first.codes)


@every_row
def test_a_method_that_looks_at_inputs_asks_for_images(row: Method, model: nn.Module) -> None:
    if not row.calibrated:
        assert calibrate(model, [], SCHEME, SKIP, row.name).codes
        return
    for wrong in ([], [_images()[0] * np.nan]):
        with pytest.raises(RecipeError) as caught:
            calibrate(model, wrong, SCHEME, SKIP, row.name)
        assert caught.value.hint


@every_row
def test_moments_serve_the_methods_that_say_so(row: Method, model: nn.Module) -> None:
    moments = collect_moments(model, _images(), SKIP)
    if row.from_moments is not None:
        assert len(calibrate_from_moments(model, moments, SCHEME, SKIP, row.name).codes) == len(moments)
    else:
        with pytest.raises(RecipeError, match=f"method `{row.name}`"):
            calibrate_from_moments(model, moments, SCHEME, SKIP, row.name)


def test_what_is_in_no_row_is_refused() -> None:
    with pytest.raises(RecipeError, match="no method `best`") as caught:
        find_method("best")
    assert all(name in caught.value.hint for name in METHODS)
