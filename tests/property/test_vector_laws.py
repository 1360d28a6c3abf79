"""The algebra of quantization vectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qvec_deploy.builder.context import BuildContext
from qvec_deploy.packed import pack
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.recipe import load_recipe
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.controls import shuffled
from qvec_deploy.vectors.extract import extract_vector, require_reproduction
from qvec_deploy.vectors.patch import add_scaled, mix, patch
from qvec_deploy.vectors.sketch import make_sketch
from qvec_deploy.vectors.vector_sources import random_like

SHAPE = (4, 32)
EPS = float(np.finfo(np.float32).eps)
tensors = arrays.arrays(np.float32, SHAPE, elements=st.floats(-4, 4, width=32))
lambdas = st.floats(-2, 2, width=32)
law = settings(derandomize=True, deadline=None, max_examples=60)

Patched = dict[str, np.ndarray]


def _patched(path: Path) -> Patched:
    recipe, context = load_recipe(path), BuildContext()
    return dict(patch(context.receiver(recipe), context.sources(recipe), context.plan(recipe)))


@law
@given(tensors, tensors)
def test_lambda_zero_is_the_receiver(weight: np.ndarray, rho: np.ndarray) -> None:
    np.testing.assert_array_equal(add_scaled(weight, rho, 0.0), weight)


@law
@given(tensors, tensors, lambdas, lambdas)
def test_linear_in_lambda(weight: np.ndarray, rho: np.ndarray, a: float, b: float) -> None:
    twice = add_scaled(add_scaled(weight, rho, a), rho, b)
    once = weight.astype(np.float64) + (a + b) * rho.astype(np.float64)
    np.testing.assert_allclose(twice, once, rtol=0, atol=8 * EPS * 20)


@law
@given(tensors, tensors, tensors, lambdas)
def test_additive_in_vectors(weight: np.ndarray, first: np.ndarray, second: np.ndarray, lam: float) -> None:
    together = add_scaled(weight, mix([(first, 0.5), (second, 0.5)]), lam)
    apart = add_scaled(add_scaled(weight, first, lam / 2), second, lam / 2)
    np.testing.assert_allclose(together, apart, rtol=0, atol=8 * EPS * 20)


@law
@given(tensors, tensors)
def test_a_donor_patched_with_its_own_vector_is_its_qat(fp: np.ndarray, qat: np.ndarray) -> None:
    rho = qat - fp
    np.testing.assert_allclose(add_scaled(fp, rho, 1.0), qat, rtol=0, atol=2 * EPS * 8)
    half = rho.astype(np.float16).astype(np.float32)
    ulp = np.spacing(np.abs(rho).astype(np.float16)).astype(np.float32)
    assert (np.abs(add_scaled(fp, half, 1.0) - qat) <= 0.5 * ulp + 2 * EPS * 8).all()


@law
@given(tensors, tensors, st.sampled_from(["float32", "float16"]))
def test_rho_of_any_pair_reproduces_qat(fp: np.ndarray, qat: np.ndarray, dtype: str) -> None:
    assert require_reproduction("a", fp, qat - fp, qat, dtype) is None


@law
@given(tensors, st.integers(0, 2**32))
def test_controls_keep_the_norm(rho: np.ndarray, seed: int) -> None:
    norm = np.linalg.norm(rho.astype(np.float64))
    assert np.linalg.norm(random_like(rho, "a", seed)) == pytest.approx(norm, rel=1e-4, abs=1e-30)
    np.testing.assert_array_equal(np.sort(shuffled(rho, "a", seed), axis=1), np.sort(rho, axis=1))


@law
@given(tensors, tensors, st.permutations(range(SHAPE[0])))
def test_a_sketch_is_linear_and_moves_with_the_rows(first: np.ndarray, second: np.ndarray, order: list[int]) -> None:
    a, b, both, moved = (
        make_sketch(["a.weight"], lambda _, weight=weight: weight, seed=1).linears["a"]
        for weight in (first, second, first + second, first[order])
    )
    np.testing.assert_allclose(both.rows, a.rows + b.rows, rtol=0, atol=1e-4)
    np.testing.assert_allclose(both.columns, a.columns + b.columns, rtol=0, atol=1e-4)
    np.testing.assert_allclose(moved.rows, a.rows[order], rtol=0, atol=1e-4)
    np.testing.assert_allclose(moved.column_norms, a.column_norms, rtol=1e-5)


@law
@given(tensors, tensors, lambdas)
def test_one_rounded_product_and_one_rounded_sum(weight: np.ndarray, rho: np.ndarray, lam: float) -> None:
    expected = [
        [np.float32(np.float32(w) + np.float32(np.float32(lam) * np.float32(r))) for w, r in zip(ws, rs, strict=True)]
        for ws, rs in zip(weight, rho, strict=True)
    ]
    np.testing.assert_array_equal(add_scaled(weight, rho, lam), np.array(expected, np.float32))


@law
@given(tensors, tensors)
def test_patch_then_pack_is_pack_of_patched(weight: np.ndarray, rho: np.ndarray) -> None:
    scheme = Scheme(3, "channel")
    parts = mix([(rho, 1.0)])
    packed = pack(quantize(add_scaled(weight, parts, 1.0), scheme))
    again = pack(quantize(weight + rho, scheme))
    np.testing.assert_array_equal(packed.payload, again.payload)
    np.testing.assert_array_equal(packed.scale, again.scale)


def test_a_whole_patch(pico_recipe: Callable[..., Path], pico_states: dict[str, Patched]) -> None:
    receiver, fp, qat = (pico_states[name] for name in ("receiver", "fp", "qat"))
    zero = _patched(pico_recipe(**{"lambda": 0}))
    half = _patched(pico_recipe(**{"lambda": 0.5}))
    assert list(zero) == list(receiver)
    for name, weight in receiver.items():
        np.testing.assert_array_equal(zero[name], weight)
        rho = np.zeros_like(weight) if name.startswith("head.") else qat[name] - fp[name]
        np.testing.assert_array_equal(half[name], weight + np.float32(0.5) * rho)


def test_several_vectors_are_averaged_by_default(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_folder: Path
) -> None:
    vector, copy = str(pico_folder / "vector.safetensors"), str(tmp_path / "copy.safetensors")
    shutil.copy(vector, copy)
    name = "blocks.0.mlp.fc1.weight"
    one = _patched(pico_recipe())[name]
    mean = _patched(pico_recipe(vector={"files": [vector, copy]}))[name]
    weighted = _patched(pico_recipe(vector={"files": [vector, copy], "weights": [0.25, 0.75]}))[name]
    np.testing.assert_allclose(mean, one, rtol=0, atol=4 * EPS)
    np.testing.assert_allclose(weighted, one, rtol=0, atol=4 * EPS)


def test_donors_patch_as_their_vector_file_does(pico_recipe: Callable[..., Path], pico_folder: Path) -> None:
    donors = [{"fp": str(pico_folder / "fp.safetensors"), "qat": str(pico_folder / "qat.safetensors")}]
    vector = {"donors": donors, "scheme": {"bits": 3, "granularity": "channel"}}
    from_file, from_donors = _patched(pico_recipe()), _patched(pico_recipe(vector=vector))
    for name, weight in from_file.items():
        np.testing.assert_array_equal(from_donors[name], weight)


def test_a_float16_vector_is_within_half_an_ulp_through_the_whole_patch(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_states: dict[str, Patched], pico_folder: Path
) -> None:
    fp, qat = pico_states["fp"], pico_states["qat"]
    path = tmp_path / "half.safetensors"
    extract_vector(fp, qat, path, scheme=Scheme(3, "channel"), skip=("head",), task="t", seed=0, dtype="float16")
    donor = str(pico_folder / "fp.safetensors")
    patched = _patched(pico_recipe(receiver__checkpoint=donor, vector={"files": [str(path)]}))
    for name, weight in patched.items():
        wanted = fp[name] if name.startswith("head.") else qat[name]
        ulp = np.spacing(np.abs(qat[name] - fp[name]).astype(np.float16)).astype(np.float32)
        assert (np.abs(weight - wanted) <= 0.5 * ulp + 2 * EPS * np.abs(wanted) + EPS).all(), name


@pytest.mark.parametrize("seed", [1, 2])
def test_a_control_keeps_every_tensors_norm(pico_recipe: Callable[..., Path], pico_folder: Path, seed: int) -> None:
    vector = {"files": [str(pico_folder / "vector.safetensors")]}
    zero, real = _patched(pico_recipe(**{"lambda": 0})), _patched(pico_recipe(vector=vector))
    control = _patched(pico_recipe(vector=vector | {"control": {"kind": "random", "seed": seed}}))
    for name, weight in zero.items():
        wanted, got = np.linalg.norm(real[name] - weight), np.linalg.norm(control[name] - weight)
        assert got == pytest.approx(wanted, rel=1e-3)
        if weight.size > 100 and not name.startswith("head."):
            assert (control[name] != real[name]).any()
