"""ModelOpt, the numpy reference and what `build` writes are one quantizer."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.pipeline import build_candidate
from qvec_deploy.io.cache import Cache
from qvec_deploy.models import create
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.quantize import modelopt, nearest, reference
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.tensors import Scheme

GRAINS = [("tensor", 0), ("channel", 0), ("group", 16), ("group", 32)]
METHODS = [("rtn", 1.0), ("rtn", 0.65), ("mse", 1.0)]


def _weights(bits: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(bits)
    plain = generator.normal(0, 0.03, (24, 96)).astype(np.float32)
    ties = (generator.integers(-20, 21, (8, 96)) / 2).astype(np.float32)  # many halves of the scale
    ties[:, 0] = (1 << (bits - 1)) - 1  # absmax equal to qmax: the scale is exactly 1
    zeros = plain.copy()
    zeros[3] = 0
    outlier = plain.copy()
    outlier[5, 7] = 40
    tiny = (plain * np.float32(1e-12)).astype(np.float32)
    return {
        "plain": plain,
        "ties": np.clip(ties, -ties[0, 0], ties[0, 0]),
        "zeros": zeros,
        "outlier": outlier,
        "tiny": tiny,
    }


@pytest.mark.parametrize("bits", range(2, 9))
def test_modelopt_equals_numpy_bit_for_bit(bits: int) -> None:
    for (name, weight), (grain, size), (method, clip) in product(_weights(bits).items(), GRAINS, METHODS):
        scheme = Scheme(bits, grain, size, clip, method)  # type: ignore[arg-type]
        ours = reference.quantize(weight, scheme)
        for theirs in (modelopt.quantize(weight, scheme), nearest.quantize(weight, scheme)):
            np.testing.assert_array_equal(theirs.codes, ours.codes, err_msg=f"{name} {scheme}")
            np.testing.assert_array_equal(theirs.scale, ours.scale, err_msg=f"{name} {scheme}")
            assert theirs.codes.dtype == np.int8 and theirs.scale.dtype == np.float32


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_reference_is_the_papers_formula(bits: int) -> None:
    """An oracle in exact fractions, with float32 rounding only where the formula has it."""
    weight = _weights(bits)["plain"][:4, :20]
    quantized = reference.quantize(weight, Scheme(bits, "channel"))
    high = (1 << (bits - 1)) - 1
    for row, codes, scale in zip(weight, quantized.codes, quantized.scale[:, 0], strict=True):
        assert scale == np.float32(max(abs(row)) / np.float32(high))
        for value, code in zip(row, codes, strict=True):
            quotient = Fraction(float(np.float32(value / scale)))
            nearest = round(quotient)  # Python rounds halves to even, as the formula does
            assert code == max(-high - 1, min(high, nearest))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("grain", "size"), GRAINS)
def test_error_bounds(bits: int, grain: str, size: int) -> None:
    weight = _weights(bits)["plain"]
    absmax = reference.quantize(weight, Scheme(bits, grain, size))  # type: ignore[arg-type]
    error = np.abs(absmax.dequantize() - weight)
    step = absmax.scale.repeat(weight.shape[1] // absmax.scale.shape[1], axis=1)
    assert (error <= step * np.float32(0.5 + 1e-5)).all()
    searched = reference.quantize(weight, Scheme(bits, grain, size, method="mse"))  # type: ignore[arg-type]
    assert reference.relative_error(weight, searched) <= reference.relative_error(weight, absmax)


def test_unclipped_codes_never_reach_the_lowest() -> None:
    weight = _weights(3)["plain"]
    assert reference.quantize(weight, Scheme(3, "channel")).codes.min() == -3
    assert reference.quantize(weight, Scheme(3, "tensor", method="mse")).codes.min() == -4


def test_requantizing_changes_nothing() -> None:
    weight = _weights(3)["plain"]
    once = reference.quantize(weight, Scheme(3, "channel"))
    np.testing.assert_array_equal(reference.quantize(once.dequantize(), Scheme(3, "channel")).codes, once.codes)


def test_read_only_weights_are_left_alone() -> None:
    weight = _weights(3)["plain"]
    weight.flags.writeable = False
    before = weight.copy()
    modelopt.quantize(weight, Scheme(3, "channel", method="mse"))
    nearest.quantize(weight, Scheme(3, "channel", method="mse"))
    np.testing.assert_array_equal(weight, before)


@pytest.mark.usefixtures("shared_work")
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_a_build_writes_what_modelopts_quantizer_gives(
    tmp_path: Path, pico_recipe: Callable[..., Path], method: str
) -> None:
    quantize = {"bits": 3, "granularity": "channel", "method": method}
    recipe = load_recipe(pico_recipe(quantize=quantize, vector=None, **{"lambda": 0}))
    context = BuildContext(cache=Cache(tmp_path))
    artifact = build_candidate(recipe, context)
    packed, receiver = PackedFile.open(artifact.directory / WEIGHTS_FILE), context.receiver(recipe)
    assert artifact.plan.quantized
    for tensor in artifact.plan.quantized:
        assert tensor.scheme is not None
        wanted = modelopt.quantize(receiver.read(tensor.name), tensor.scheme)
        written = unpack(packed.packed(tensor.name))
        np.testing.assert_array_equal(written.codes, wanted.codes)
        np.testing.assert_array_equal(written.scale, wanted.scale)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return create("vit_tiny_patch16_224", 5, args)


@pytest.mark.parametrize(
    "scheme", [Scheme(3, "channel"), Scheme(3, "tensor", method="mse"), Scheme(2, "group", 16)], ids=str
)
def test_qat_sees_the_reference_grid_and_keeps_latent_weights(model: torch.nn.Module, scheme: Scheme) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    modelopt.insert_fake_quantizers(model, scheme, ("head",))
    latent = modelopt.latent_state_dict(model)
    assert list(latent) == list(before) and all(torch.equal(latent[name], before[name]) for name in before)
    seen = model(images)

    plain = create(
        "vit_tiny_patch16_224", 5, {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    )
    rounded = {
        name: torch.from_numpy(reference.quantize(value.numpy(), scheme).dequantize())
        if value.ndim == 2 and name.startswith("blocks.")
        else value
        for name, value in before.items()
    }
    plain.load_state_dict(rounded)
    assert torch.equal(seen, plain(images))


def test_gradients_pass_straight_through_and_the_scale_follows(model: torch.nn.Module) -> None:
    modelopt.insert_fake_quantizers(model, Scheme(3, "channel"), ("head",))
    linear = model.get_submodule("blocks.0.mlp.fc1")
    quantizer = linear.get_submodule("weight_quantizer")
    weight = torch.randn(8, 16, requires_grad=True, generator=torch.Generator().manual_seed(1))
    upstream = torch.randn(8, 16, generator=torch.Generator().manual_seed(2))
    quantizer(weight).backward(upstream)
    assert weight.grad is not None and torch.equal(weight.grad, upstream)
    for factor in (1.0, 0.5, 3.0):  # a running maximum or a frozen scale would not follow
        scaled = (weight * factor).detach()
        expected = reference.quantize(scaled.numpy(), Scheme(3, "channel")).dequantize()
        np.testing.assert_array_equal(quantizer(scaled).numpy(), expected)


def test_clip_ratios_change_only_when_refreshed(model: torch.nn.Module) -> None:
    scheme = Scheme(3, "tensor", method="mse")
    modelopt.insert_fake_quantizers(model, scheme, ("head",))
    linear = model.get_submodule("blocks.0.mlp.fc1")
    quantizer = linear.get_submodule("weight_quantizer")
    before = quantizer._clip.clone()
    with torch.no_grad():
        linear.weight[0, 0] = 10.0  # type: ignore[index]
        linear(torch.zeros(1, 32))
    assert torch.equal(quantizer._clip, before)
    modelopt.refresh_clip(model)
    assert not torch.equal(quantizer._clip, before)
    found = reference.clip_ratios(linear.weight.detach().numpy(), scheme)  # type: ignore[operator, union-attr]
    np.testing.assert_array_equal(quantizer._clip.numpy(), found)
