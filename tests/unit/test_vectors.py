"""Vector files say what they fit, and damaged or foreign ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from safetensors.numpy import load_file, save_file

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import describe
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.patch import mix
from qvec_deploy.vectors.vector_file import QuantizationVector
from qvec_deploy.vectors.vector_sources import DonorPair, PairHeader, random_like

States = dict[str, dict[str, np.ndarray]]


def _extract(states: States, path: Path, **changes: Any) -> Path:
    settings = {"scheme": Scheme(3, "channel"), "skip": ("head",), "task": "pico", "seed": 7} | changes
    extract_vector(states["fp"], states["qat"], path, **settings)
    return path


def test_header_and_tensors(tmp_path: Path, pico_states: States) -> None:
    vector = QuantizationVector.open(_extract(pico_states, tmp_path / "v.safetensors"))
    assert vector.header.scheme == Scheme(3, "channel")
    assert (vector.header.skip, vector.header.task, vector.header.seed) == (("head",), "pico", 7)
    assert not any(name.startswith("head.") for name in vector.tensors)
    name = "blocks.0.mlp.fc1.weight"
    np.testing.assert_array_equal(vector.read(name), pico_states["qat"][name] - pico_states["fp"][name])
    total = sum(float(np.square(vector.read(n), dtype=np.float64).sum()) for n in vector.tensors)
    assert vector.header.norm == pytest.approx(total**0.5)


def test_the_same_vector_is_the_same_file(tmp_path: Path, pico_states: States) -> None:
    paths = [_extract(pico_states, tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_float16_is_half_the_size_and_half_an_ulp_off(tmp_path: Path, pico_states: States) -> None:
    full = QuantizationVector.open(_extract(pico_states, tmp_path / "full.safetensors"))
    half = QuantizationVector.open(_extract(pico_states, tmp_path / "half.safetensors", dtype="float16"))
    assert half.checkpoint.path.stat().st_size < 0.7 * full.checkpoint.path.stat().st_size
    for name in full.tensors:
        rho = full.read(name)
        np.testing.assert_array_equal(half.read(name), rho.astype(np.float16).astype(np.float32))


def test_donors_that_differ_are_refused(tmp_path: Path, pico_states: States) -> None:
    for change in ({"extra": np.zeros(1, np.float32)}, {"pos_embed": np.zeros((1, 2, 32), np.float32)}):
        with pytest.raises(IncompatibleError, match="differ in"):
            _extract({**pico_states, "qat": pico_states["qat"] | change}, tmp_path / "v.safetensors")
        save_file(pico_states["qat"] | change, tmp_path / "qat.safetensors")
        save_file(pico_states["fp"], tmp_path / "fp.safetensors")
        fp, qat = (Checkpoint.open(tmp_path / f"{name}.safetensors") for name in ("fp", "qat"))
        with pytest.raises(IncompatibleError, match="differ in"):
            DonorPair(fp, qat, PairHeader(Scheme(3, "channel"), ("head",)), ("head",))


def test_two_tasks_are_no_donor(tmp_path: Path, pico_states: States) -> None:
    head = {"head.weight": np.zeros((7, 32), np.float32), "head.bias": np.zeros(7, np.float32)}
    with pytest.raises(IncompatibleError, match=r"not fine-tuned on the same task: head\.weight is \(10, 32\)"):
        _extract({**pico_states, "qat": pico_states["qat"] | head}, tmp_path / "v.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_vector_of_zeros_is_refused(tmp_path: Path, pico_states: States, dtype: str) -> None:
    bias = "blocks.0.attn.qkv.bias"
    fp = pico_states["fp"] | {bias: np.zeros(96, np.float32)}
    qat = fp | {bias: np.full(96, 0 if dtype == "float32" else 1e-9, np.float32)}  # which float16 rounds to 0
    with pytest.raises(IncompatibleError, match=f"zero everywhere as {dtype}"):
        _extract({"fp": fp, "qat": qat}, tmp_path / "v.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_is_not_known_stays_out_of_rho(tmp_path: Path, pico_states: States) -> None:
    headless = {
        part: {name: value for name, value in pico_states[part].items() if not name.startswith("head.")}
        for part in ("fp", "qat")
    }
    renamed = {part: headless[part] | {"fc.weight": pico_states[part]["head.weight"]} for part in ("fp", "qat")}
    for states in (headless, renamed):
        with pytest.raises(IncompatibleError, match=r"no tensor under `head\.`") as caught:
            _extract(states, tmp_path / "v.safetensors")
        assert "--model" in caught.value.hint
    with pytest.raises(IncompatibleError, match=r"not a `vit_tiny_patch16_224`: it holds fc\.weight"):
        _extract(renamed, tmp_path / "v.safetensors", architecture=describe(PICO_MODEL, 1, PICO_ARGS))
    assert list(tmp_path.iterdir()) == []
    vector = _extract(headless, tmp_path / "v.safetensors", architecture=describe(PICO_MODEL, 1, PICO_ARGS))
    whole = _extract(pico_states, tmp_path / "w.safetensors")
    assert vector.read_bytes() == whole.read_bytes()


def test_a_donor_of_another_architecture(tmp_path: Path, pico_states: States) -> None:
    for args, words in [
        ({"depth": 3}, r"it lacks blocks\.2\.attn\.proj\.bias"),
        ({"depth": 1}, r"it holds blocks\.1\.attn\.proj\.bias"),
        ({"patch_size": 16}, r"its pos_embed is \(1, 17, 32\) and not \(1, 5, 32\)"),
    ]:
        architecture = describe(PICO_MODEL, PICO_CLASSES, {**PICO_ARGS, **args})
        with pytest.raises(IncompatibleError, match=words):
            _extract(pico_states, tmp_path / "v.safetensors", architecture=architecture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("skip", ["nosuch", "bloc", "patch_embed", "weight"])
def test_a_skip_entry_that_matches_no_linear(tmp_path: Path, pico_states: States, skip: str) -> None:
    with pytest.raises(RecipeError, match=f"`{skip}` matches no Linear of the donor"):
        _extract(pico_states, tmp_path / "v.safetensors", skip=("head", skip))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": "other"}, IntegrityError),
        ({"version": "2.0.0"}, IncompatibleError),
        ({"unknown": 1}, IntegrityError),
        ({"scheme": {"bits": 3}}, IntegrityError),
        ({"seed": "x"}, IntegrityError),
        ({"skip": None}, IntegrityError),
        ({"skip": "head"}, IntegrityError),
        ({"seed": "7"}, IntegrityError),
        ({"seed": 7.5}, IntegrityError),
        ({"task": 3}, IntegrityError),
        ({"norm": float("nan")}, IntegrityError),
        ({"norm": "1.0"}, IntegrityError),
        ({"version": None}, IncompatibleError),
    ],
)
def test_damaged_headers(tmp_path: Path, pico_states: States, change: dict[str, Any], error: type[Exception]) -> None:
    path = _extract(pico_states, tmp_path / "v.safetensors")
    header = json.loads(Checkpoint.open(path).metadata["qvec"])
    save_file(load_file(path), path, {"qvec": json.dumps(header | change)})
    with pytest.raises(error):
        QuantizationVector.open(path)


@pytest.mark.parametrize("text", ["{", "[]", "1", "{}", "[" * 100_000])
def test_headers_that_are_no_headers(tmp_path: Path, text: str) -> None:
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "v.safetensors", {"qvec": text})
    with pytest.raises(IntegrityError):
        QuantizationVector.open(tmp_path / "v.safetensors")


def test_a_checkpoint_is_no_vector(pico_folder: Path) -> None:
    with pytest.raises(IntegrityError, match="not a quantization vector"):
        QuantizationVector.open(pico_folder / "receiver.safetensors")


def test_two_checkpoints_are_the_same_vector_as_their_file(tmp_path: Path, pico_states: States) -> None:
    vector = QuantizationVector.open(_extract(pico_states, tmp_path / "v.safetensors"))
    for name in ("fp", "qat"):
        save_file(pico_states[name], tmp_path / f"{name}.safetensors")
    fp, qat = (Checkpoint.open(tmp_path / f"{name}.safetensors", label=name) for name in ("fp", "qat"))
    pair = DonorPair(fp, qat, PairHeader(Scheme(3, "channel"), ("head",)), ("head",))
    assert set(pair.tensors) == set(vector.tensors)
    for name in vector.tensors:
        np.testing.assert_array_equal(pair.read(name), vector.read(name))
    assert pair.control() is None and vector.control() is None
    assert pair.fingerprints() == {"fp": fp.fingerprint(), "qat": qat.fingerprint()}


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (np.inf, "float16"), (1e5, "float16")])
def test_what_no_reader_would_take_is_not_written(
    tmp_path: Path, pico_states: States, value: float, dtype: str
) -> None:
    qat = {name: array.copy() for name, array in pico_states["qat"].items()}
    qat["pos_embed"].flat[5] = value
    with pytest.raises(IntegrityError, match="pos_embed"):
        _extract({**pico_states, "qat": qat}, tmp_path / "v.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_random_control_has_the_norm_and_not_the_direction() -> None:
    rho = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    draws = [random_like(rho, name, seed) for name, seed in (("a", 1), ("a", 1), ("a", 2), ("b", 1))]
    for draw in draws:
        assert np.linalg.norm(draw) == pytest.approx(np.linalg.norm(rho), rel=1e-5)
        assert abs(float((draw * rho).sum())) < 0.1 * float((rho * rho).sum())
        assert draw.dtype == np.float32
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any() and (draws[0] != draws[3]).any()


def test_mix_is_the_weighted_sum() -> None:
    a, b = np.float32([1, 2]), np.float32([10, 20])
    np.testing.assert_array_equal(mix([(a, 0.5), (b, 0.5)]), np.float32([5.5, 11]))
    np.testing.assert_array_equal(mix([(a, 1.0)]), a)
