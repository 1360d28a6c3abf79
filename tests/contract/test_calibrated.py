"""Calibrated codes: GPTQ and AWQ are ModelOpt's, gptaq is what its formula says, and nothing is done in silence."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import Tensor, nn

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.models import create, quantized_linears
from qvec_deploy.quantize import calibrators, modelopt, reference
from qvec_deploy.quantize.calibrated import (
    calibrate,
    calibrate_from_moments,
    collect_moments,
)
from qvec_deploy.quantize.folding import fold_into_norms
from qvec_deploy.quantize.layer_inputs import linear_at, weight_at
from qvec_deploy.quantize.methods import METHODS, Calibrated
from qvec_deploy.quantize.solver import round_for_inputs
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme

pytestmark = pytest.mark.slow

SKIP = ("head",)
SCHEMES = [Scheme(3, "tensor", method="mse"), Scheme(2, "channel"), Scheme(3, "group", 16)]


def images(seed: int = 0, count: int = 24) -> list[Float32]:
    smooth = np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return list(np.split(smooth.astype(np.float32), [count // 3]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, and no waiting for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(pico_states: dict[str, dict[str, Float32]]) -> nn.Module:
    network = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    network.load_state_dict({name: torch.tensor(value) for name, value in pico_states["receiver"].items()})
    return network


def outputs(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(torch.from_numpy(batch)) for batch in images(7)])


def assembled(model: nn.Module, calibrated: Calibrated) -> nn.Module:
    """The model as an engine computes it."""
    network = copy.deepcopy(model)
    floats = {name: torch.from_numpy(value) for name, value in calibrated.floats.items()}
    values = {name: torch.from_numpy(tensor.dequantize()) for name, tensor in calibrated.codes.items()}
    network.load_state_dict({**network.state_dict(), **floats, **values})
    for name, factor in calibrated.input_scales.items():
        scale = torch.from_numpy(factor)
        linear_at(network, name).register_forward_pre_hook(lambda _, x, scale=scale: x[0] * scale)
    return network


def assert_same_codes(found: Calibrated, expected: dict[str, QuantizedTensor]) -> None:
    assert list(found.codes) == [f"{name}.weight" for name in expected]
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found.codes[f"{name}.weight"].codes, tensor.codes, err_msg=name)
        np.testing.assert_array_equal(found.codes[f"{name}.weight"].scale, tensor.scale, err_msg=name)


def nearest(model: nn.Module, scheme: Scheme) -> dict[str, QuantizedTensor]:
    return {name: reference.quantize(weight_at(model, name), scheme) for name in quantized_linears(model, SKIP)}


def run_modelopt(model: nn.Module, algorithm: str) -> None:
    import modelopt.torch.quantization as mtq

    def forward_loop(network: nn.Module) -> None:
        for batch in images():
            network(torch.from_numpy(batch))

    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports what it exports with, and misses transformers
        mtq.calibrate(model, {"method": algorithm}, forward_loop=forward_loop)


@pytest.mark.parametrize("method", METHODS)
def test_codes_on_the_grid_for_every_linear_and_the_model_as_it_was(model: nn.Module, method: str) -> None:
    before = copy.deepcopy(model.state_dict())
    modules = [type(module) for module in model.modules()]
    result = calibrate(model, images(), SCHEMES[0], SKIP, method)
    assert list(result.codes) == [f"{name}.weight" for name in quantized_linears(model, SKIP)]
    for name, tensor in result.codes.items():
        assert tensor.codes.shape == before[name].shape and tensor.codes.dtype == np.int8
        assert SCHEMES[0].qmin <= tensor.codes.min() and tensor.codes.max() <= SCHEMES[0].qmax
        assert tensor.scale.dtype == np.float32 and (tensor.scale > 0).all()
    assert [note for note in result.notes if "rounded to nearest" not in note] == []
    assert method == "awq" or result.notes == ()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [type(module) for module in model.modules()] == modules
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_nearest_is_the_reference(model: nn.Module, scheme: Scheme) -> None:
    assert_same_codes(calibrate(model, [], scheme, SKIP, "rtn"), nearest(model, scheme))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_is_modelopts(model: nn.Module, scheme: Scheme) -> None:
    """Against ModelOpt with nothing of ours but the grid: its inverse, its loop, its float32."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.nn import register_quant_backend

    grids = {name: tensor.scale for name, tensor in nearest(model, scheme).items()}

    def frozen(rows: Tensor, quantizer: Any) -> Tensor:
        scale = torch.from_numpy(grids[quantizer.backend_extra_args["name"]])
        groups = rows.reshape(*scale.shape, -1)
        codes = torch.clamp(torch.round(groups / scale[..., None]), scheme.qmin, scheme.qmax)
        return (codes * scale[..., None]).reshape(rows.shape)

    register_quant_backend(f"frozen {scheme}", frozen)
    stock = copy.deepcopy(model)
    entries = [
        {
            "quantizer_name": f"{name}.weight_quantizer",
            "cfg": {"num_bits": scheme.bits, "backend": f"frozen {scheme}", "backend_extra_args": {"name": name}},
        }
        for name in grids
    ]
    config = {"quant_cfg": [{"quantizer_name": "*", "enable": False}, *entries], "algorithm": None}
    with contextlib.redirect_stdout(io.StringIO()):
        mtq.quantize(stock, config)
    run_modelopt(stock, "gptq")

    result = calibrate(model, images(), scheme, SKIP, "gptq")
    for name in grids:
        np.testing.assert_allclose(result.codes[f"{name}.weight"].dequantize(), weight_at(stock, name), atol=1e-7)
    assert outputs_error(model, result) < outputs_error(model, Calibrated(by_tensor(nearest(model, scheme))))


def by_tensor(codes: dict[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
    return {f"{name}.weight": tensor for name, tensor in codes.items()}


def outputs_error(model: nn.Module, calibrated: Calibrated) -> float:
    return float((outputs(assembled(model, calibrated)) - outputs(model)).square().mean())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_own_moments_give_the_codes_that_images_give(model: nn.Module, scheme: Scheme) -> None:
    moments = collect_moments(model, images(), SKIP)
    assert all(value.dtype == np.float32 and value.shape[0] == value.shape[1] for value in moments.values())
    by_moments = calibrate_from_moments(model, moments, scheme, SKIP, "gptq")
    by_images = calibrate(model, images(), scheme, SKIP, "gptq")
    assert_same_codes(by_moments, {name.removesuffix(".weight"): codes for name, codes in by_images.codes.items()})


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_awq_computes_what_modelopt_computes(model: nn.Module, scheme: Scheme) -> None:
    theirs = copy.deepcopy(model)
    modelopt.insert_fake_quantizers(theirs, scheme, SKIP)
    run_modelopt(theirs, "awq_lite")
    _, factors, worse = calibrators.search_factors(model, images(), scheme, SKIP)
    for name in worse:  # those are rounded to nearest
        linear: Any = linear_at(theirs, name)
        linear.input_quantizer.pre_quant_scale.fill_(1)
        linear.weight.data.copy_(linear_at(model, name).weight)
    modelopt.refresh_clip(theirs)
    result = calibrate(model, images(), scheme, SKIP, "awq")
    torch.testing.assert_close(outputs(assembled(model, result)), outputs(theirs), rtol=1e-4, atol=1e-4)
    assert (outputs(theirs) - outputs(model)).abs().max() > 0.1  # the comparison is of something
    assert factors.keys().isdisjoint(worse) and len(factors) + len(worse) == 8 and len(factors) > 2
    norms = {"attn.qkv": "norm1", "mlp.fc1": "norm2"}
    behind = {name for name in factors if name[9:] in norms}  # after `blocks.0.`
    changed = {f"{name[:9]}{norms[name[9:]]}.{part}" for name in behind for part in ("weight", "bias")}
    assert set(result.floats) == changed and changed
    assert set(result.input_scales) == factors.keys() - behind
    assert all((factor > 0).all() and (factor != 1).any() for factor in factors.values())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("count", [1, 4])  # images: of one alone the moments have no full rank
def test_awq_chooses_the_factors_that_modelopt_chooses_on_the_images_themselves(
    model: nn.Module, scheme: Scheme, count: int
) -> None:
    few = [batch[:count] for batch in images()][:2]
    theirs = copy.deepcopy(model)
    modelopt.insert_fake_quantizers(theirs, scheme, SKIP)
    calibrators.run_calibration(theirs, {"method": "awq_lite"}, calibrators.over(few))
    _, factors, _ = calibrators.search_factors(model, few, scheme, SKIP)
    assert factors
    for name, factor in factors.items():
        quantizer: Any = linear_at(theirs, name).input_quantizer
        np.testing.assert_array_equal(factor, quantizer.pre_quant_scale.numpy().reshape(-1), err_msg=name)


def layer_error(model: nn.Module, name: str, values: Float32, moments: Mapping[str, Float32]) -> float:
    """Mean squared error of a Linear's outputs on the calibration images."""
    error = values.astype(np.float64) - weight_at(model, name)
    return float(np.einsum("oi,ij,oj->", error, moments[name].astype(np.float64), error))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_awq_makes_no_linear_worse_than_rounding_to_nearest(
    model: nn.Module, scheme: Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ModelOpt's factors are bad ones: here those of one Linear in two."""
    spoilt = quantized_linears(model, SKIP)[::2]
    calibrate_with_modelopt = calibrators._calibrated

    def spoiling(*arguments: Any) -> nn.Module:
        work = calibrate_with_modelopt(*arguments)
        for name in spoilt:
            linear = linear_at(work, name)
            factor = torch.logspace(-3, 3, linear.in_features)
            old: Any = linear.input_quantizer
            linear.weight.data *= old.pre_quant_scale / factor
            old.pre_quant_scale.copy_(factor)
        return work

    monkeypatch.setattr(calibrators, "_calibrated", spoiling)
    codes, factors, kept = calibrators.search_factors(model, images(), scheme, SKIP)
    moments = collect_moments(model, images(), SKIP)
    plain = nearest(model, scheme)
    assert set(spoilt) <= set(kept) and not set(kept) & set(factors)
    for name, tensor in codes.items():
        error = layer_error(model, name, tensor.dequantize() * factors.get(name, np.float32(1)), moments)
        assert error <= layer_error(model, name, plain[name].dequantize(), moments) * (1 + 1e-5), name
        if name in kept:
            np.testing.assert_array_equal(tensor.codes, plain[name].codes)
            np.testing.assert_array_equal(tensor.scale, plain[name].scale)
    result = calibrate(model, images(), scheme, SKIP, "awq")
    assert result.notes[0] == (
        f"awq makes {len(kept)} of 8 Linears worse on the images than rounding to nearest: those are rounded to nearest"
    )


def test_factors_are_folded_only_where_outputs_stay(model: nn.Module) -> None:
    factors = {
        name: np.random.default_rng(0).uniform(0.5, 2, linear_at(model, name).in_features).astype(np.float32)
        for name in quantized_linears(model, SKIP)
    }

    def undone(network: nn.Module) -> Tensor:
        """Outputs with the factors folded or on the inputs, and the weights divided by them."""
        floats, left = fold_into_norms(network, factors, images()[0][:2])
        work = copy.deepcopy(network)
        work.load_state_dict({**work.state_dict(), **{name: torch.from_numpy(value) for name, value in floats.items()}})
        with torch.no_grad():
            for name, factor in factors.items():
                linear_at(work, name).weight.div_(torch.from_numpy(factor))
                if name in left:
                    scale = torch.from_numpy(factor)
                    linear_at(work, name).register_forward_pre_hook(lambda _, x, scale=scale: x[0] * scale)
        folded.append({name.removesuffix(".weight") for name in floats if name.endswith(".weight")})
        return outputs(work)

    folded: list[set[str]] = []
    torch.testing.assert_close(undone(model), outputs(model), rtol=1e-4, atol=1e-4)

    class Shared(nn.Module):
        """Uses a norm's output twice."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.norm, self.attn = inner.norm1, inner.attn

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attn(self.norm(x)) + 0.01 * self.norm(x)

    shared = copy.deepcopy(model)
    shared.blocks[0] = Shared(copy.deepcopy(model.blocks[0]))  # type: ignore[index, operator]
    factors = {name: factor for name, factor in factors.items() if name in dict(shared.named_modules())}
    torch.testing.assert_close(undone(shared), outputs(shared), rtol=1e-4, atol=1e-4)
    assert folded == [
        {"blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2"},
        {"blocks.1.norm1", "blocks.1.norm2"},
    ]


def naive_gptaq(model: nn.Module, teacher: nn.Module, scheme: Scheme) -> dict[str, QuantizedTensor]:
    """The formula with every row kept: a forward pass of both networks for each Linear, least squares on rows."""
    student, codes = copy.deepcopy(model), {}

    def rows(network: nn.Module, name: str) -> Tensor:
        seen: list[Tensor] = []
        handle = linear_at(network, name).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
        with torch.no_grad():
            for batch in images():
                network(torch.from_numpy(batch))
        handle.remove()
        return torch.cat(seen).double()

    for name in quantized_linears(model, SKIP):
        inputs, float_inputs = rows(student, name), rows(teacher, name)
        linear, wanted = linear_at(student, name), linear_at(teacher, name)
        weight, bias, aim, aim_bias = (
            tensor.detach().double() for tensor in (linear.weight, linear.bias, wanted.weight, wanted.bias)
        )
        gap = float_inputs @ aim.T + aim_bias - inputs @ weight.T - bias
        pull = (0.1 * (inputs**2).sum(0).mean()) ** 0.5 * torch.eye(inputs.shape[1], dtype=torch.float64)
        padded = torch.cat([gap, torch.zeros(len(pull), gap.shape[1], dtype=torch.float64)])
        moved = weight + torch.linalg.lstsq(torch.cat([inputs, pull]), padded).solution.T
        codes[name] = round_for_inputs(moved, inputs.T @ inputs, scheme)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(codes[name].dequantize()))
    return codes


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptaq_is_its_formula(model: nn.Module, scheme: Scheme, patched: bool) -> None:
    start = copy.deepcopy(model)
    if patched:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in start.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    teacher = model if patched else None
    result = calibrate(start, images(), scheme, SKIP, "gptaq", teacher=teacher)
    expected = naive_gptaq(start, model, scheme)
    rows = [(result.codes[f"{name}.weight"].codes != each.codes).any(axis=1) for name, each in expected.items()]
    # Sums in another order may turn a tie, and the rest of its row with it.
    assert np.concatenate(rows).mean() <= 0.005
    worst = Calibrated(by_tensor(nearest(start, scheme)))
    error = float((outputs(assembled(start, result)) - outputs(model)).square().mean())
    assert error < 0.5 * float((outputs(assembled(start, worst)) - outputs(model)).square().mean())


def test_progress_is_told(model: nn.Module) -> None:
    total = len(quantized_linears(model, SKIP))
    calls: list[tuple[int, int]] = []

    def told(done: int, of: int) -> None:
        calls.append((done, of))

    calibrate(model, images(), SCHEMES[1], SKIP, "gptaq", on_layer=told)
    assert calls == [(done, total) for done in range(1, total + 1)]
    calls.clear()
    calibrate(model, images(), SCHEMES[1], SKIP, "gptq", on_layer=told)
    assert calls == [(total, total)]


class Bypassed(nn.Module):
    """One Linear gets independent inputs, the other is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_a_method_that_does_nothing_is_named(method: str) -> None:
    torch.manual_seed(0)
    network = Bypassed().eval()
    one_hot = [np.eye(12, dtype=np.float32).reshape(12, 3, 2, 2)]
    result = calibrate(network, one_hot, SCHEMES[1], (), method)
    assert_same_codes(result, {n: reference.quantize(weight_at(network, n), SCHEMES[1]) for n in ("used", "unused")})
    assert result.notes == (
        "unused is never called with the images: rounded to nearest",
        f"{method} changes nothing on this grid ({SCHEMES[1]}): the codes are those of rounding to nearest",
    )


def test_awq_leaves_a_linear_that_is_never_called() -> None:
    torch.manual_seed(0)
    network = Bypassed().eval()
    loud = images()[0][:, :, :2, :2] * np.float32([100, 1, 1]).reshape(3, 1, 1)
    result = calibrate(network, [loud], SCHEMES[1], (), "awq")
    assert result.notes == ("unused is never called with the images: rounded to nearest",)
    assert set(result.input_scales) == {"used"}


def test_awq_stands_inputs_that_are_all_zero() -> None:
    torch.manual_seed(0)
    result = calibrate(Bypassed().eval(), [images()[0][:, :, :2, :2] * 0], SCHEMES[1], (), "awq")
    assert all((tensor.scale > 0).all() and tensor.codes.any() for tensor in result.codes.values())


REFUSALS: list[tuple[Callable[[nn.Module], object], type[Exception], str]] = [
    (lambda m: calibrate(m, images(), SCHEMES[0], SKIP, "best"), RecipeError, "no method `best`"),
    (lambda m: calibrate(m, [], SCHEMES[0], SKIP, "gptaq"), RecipeError, "method `gptaq` needs images"),
    (lambda m: calibrate(m, [images()[0] * np.nan], SCHEMES[0], SKIP, "awq"), RecipeError, "NaN or infinity"),
    (lambda m: collect_moments(m, [], SKIP), RecipeError, "needs images"),
    (lambda m: calibrate_from_moments(m, {}, SCHEMES[0], SKIP, "gptq"), IncompatibleError, "needs second moments"),
    (
        lambda m: calibrate_from_moments(m, {}, SCHEMES[0], SKIP, "awq"),
        RecipeError,
        "second moments alone",
    ),
    (lambda m: calibrate(m, images(), SCHEMES[0], SKIP, "gptaq", teacher=Bypassed()), IncompatibleError, "missing"),
    (lambda m: calibrate(m, images(), Scheme(3, "group", 24), SKIP, "gptq"), RecipeError, "group_size 24"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSALS)
def test_refusals(model: nn.Module, call: Callable[[nn.Module], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(model)


def test_moments_of_another_width_or_of_nothing_are_refused(model: nn.Module) -> None:
    moments = collect_moments(model, images(), SKIP)
    first = next(iter(moments))
    with pytest.raises(IncompatibleError, match=r"\(32, 32\); there are \(3, 3\)"):
        calibrate_from_moments(model, {**moments, first: np.eye(3, dtype=np.float32)}, SCHEMES[0], SKIP, "gptq")
    with pytest.raises(IncompatibleError, match="cannot be inverted"):
        calibrate_from_moments(model, {**moments, first: moments[first] * np.nan}, SCHEMES[0], SKIP, "gptq")
    with pytest.raises(IncompatibleError, match="never calls unused"):
        collect_moments(Bypassed(), [images()[0][:, :, :2, :2]], ())


def test_overflowing_activations_are_refused(model: nn.Module) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.get_parameter("blocks.0.norm1.weight").fill_(float("inf"))
    for method in ("gptq", "gptaq"):
        with pytest.raises(IncompatibleError, match="cannot be inverted"):
            calibrate(broken, images(), SCHEMES[1], SKIP, method)


def test_gptq_goes_through_modelopt(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    updated = []
    update = calibrators.GPTQHelper.update_weights

    def counted(self: calibrators.GPTQHelper, *args: object) -> None:
        updated.append(self.name)
        update(self, *args)

    monkeypatch.setattr(calibrators.GPTQHelper, "update_weights", counted)
    calibrate(model, images(), SCHEMES[1], SKIP, "gptq")
    assert updated == quantized_linears(model, SKIP)
