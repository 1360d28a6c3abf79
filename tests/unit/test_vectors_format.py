"""What came with vector format 1.1: the sketch, norms by tensor, the base, moments; and 1.0 is still read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from older import write_format_1_0
from safetensors.numpy import load_file, save_file

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.quantize.reference import quantize
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector, on_grid, require_reproduction
from qvec_deploy.vectors.sketch import PROJECTIONS, make_sketch, projection
from qvec_deploy.vectors.vector_file import QuantizationVector, VectorHeader, write_vector
from qvec_deploy.vectors.vector_sources import DonorPair, PairHeader
from qvec_deploy.vectors.vector_summary import share_warning, summarize

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
FC1 = "blocks.0.mlp.fc1"

State = dict[str, np.ndarray]
States = dict[str, State]


def _extract(states: States, path: Path, **changes: Any) -> QuantizationVector:
    settings = {"scheme": Scheme(3, "channel"), "skip": ("head",), "task": "pico", "seed": 7} | changes
    extract_vector(states["fp"], states["qat"], path, **settings)
    return QuantizationVector.open(path)


def test_the_header_tells_norms_dtype_and_base(tmp_path: Path, pico_states: States) -> None:
    fp, qat = pico_states["fp"], pico_states["qat"]
    base = (pico_states["receiver"], "ab" * 32)
    vector = _extract(pico_states, tmp_path / "v.safetensors", base=base, dtype="float16")
    header = vector.header
    assert (header.base, header.dtype, header.seeds, header.parts, header.control) == (
        "ab" * 32,
        "float16",
        (7,),
        (),
        None,
    )
    assert set(header.norms) == set(vector.tensors)
    rho, weight = header.norms[f"{FC1}.weight"]
    assert rho == pytest.approx(np.linalg.norm(qat[f"{FC1}.weight"] - fp[f"{FC1}.weight"]))
    assert weight == pytest.approx(np.linalg.norm(fp[f"{FC1}.weight"]))
    assert header.norm == pytest.approx(sum(rho**2 for rho, _ in header.norms.values()) ** 0.5)


def test_the_sketch_is_of_the_donors_float_weights(tmp_path: Path, pico_states: States) -> None:
    vector = _extract(pico_states, tmp_path / "v.safetensors")
    sketch, fp = vector.sketch(), pico_states["fp"]
    assert sketch is not None
    linears = {name.removesuffix(".weight") for name, w in fp.items() if w.ndim == 2 and not name.startswith("head.")}
    assert set(sketch.linears) == linears
    assert set(sketch.gains) == {name.removesuffix(".weight") for name in fp if "norm" in name and "weight" in name}
    weight, linear = fp[f"{FC1}.weight"], sketch.linears[FC1]
    half = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(linear.rows, weight @ projection(weight.shape[1], sketch.seed), **half)
    np.testing.assert_allclose(linear.columns, weight.T @ projection(weight.shape[0], sketch.seed), **half)
    np.testing.assert_allclose(linear.row_norms, np.linalg.norm(weight, axis=1), **half)
    np.testing.assert_allclose(linear.column_norms, np.linalg.norm(weight, axis=0), **half)
    np.testing.assert_allclose(sketch.gains["blocks.0.norm1"], fp["blocks.0.norm1.weight"], **half)
    assert not any(":" in name for name in vector.tensors)


def test_a_donor_of_two_checkpoints_has_the_same_sketch(tmp_path: Path, pico_states: States) -> None:
    for name in ("fp", "qat"):
        save_file(pico_states[name], tmp_path / f"{name}.safetensors")
    fp, qat = (Checkpoint.open(tmp_path / f"{name}.safetensors") for name in ("fp", "qat"))
    pair = DonorPair(fp, qat, PairHeader(Scheme(3, "channel"), ("head",)), ("head",))
    from_file = _extract(pico_states, tmp_path / "v.safetensors").sketch()
    assert from_file is not None and pair.moment(FC1) is None
    for name, linear in pair.sketch().linears.items():
        np.testing.assert_allclose(linear.rows, from_file.linears[name].rows, rtol=1e-3, atol=1e-3)


def test_projections_keep_lengths_and_are_what_they_were() -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 96)).astype(np.float32)
    projected = rows @ projection(96, 1)
    assert np.linalg.norm(projected) == pytest.approx(np.linalg.norm(rows), rel=0.05)
    signs = projection(4, 2604) * PROJECTIONS**0.5
    assert ["".join("+" if sign > 0 else "-" for sign in row) for row in signs] == SIGNS


# Written down once: files of all versions depend on them.
SIGNS = ["-+-+-++-+-+-+--+", "--+++++---+++--+", "--+---+++-++++++", "-++++++--+-++-++"]


def test_files_of_format_1_0_are_read(tmp_path: Path) -> None:
    older = write_format_1_0(DEMO / "vector_symbols.safetensors", tmp_path / "older.safetensors")
    vector = QuantizationVector.open(older)
    assert vector.sketch() is None and vector.moments() is None and vector.header.norms == {}
    assert set(vector.tensors) == set(vector.checkpoint.tensors)
    summary = summarize(vector)
    assert summary["sketch"] is False and summary["warning"] is None
    norms = [layer["norm"] for layer in summary["layers"]]
    assert sum(norm**2 for norm in norms) ** 0.5 == pytest.approx(vector.header.norm)
    assert {layer["share"] for layer in summary["layers"]} == {None}


def test_a_1_0_header_with_fields_of_1_1_is_damaged(tmp_path: Path, pico_states: States) -> None:
    path = tmp_path / "v.safetensors"
    header = json.loads(_extract(pico_states, path).checkpoint.metadata["qvec"])
    save_file(load_file(path), path, {"qvec": json.dumps(header | {"version": "1.0.0"})})
    with pytest.raises(IntegrityError, match="header fields"):
        QuantizationVector.open(path)


def test_what_was_assumed_is_in_the_header_and_came_with_1_2(tmp_path: Path, pico_states: States) -> None:
    plain = _extract(pico_states, tmp_path / "plain.safetensors")
    assert json.loads(plain.checkpoint.metadata["qvec"])["version"] == "1.1.0"
    assert plain.header.assumed == ()
    said = _extract(pico_states, tmp_path / "said.safetensors", assumed=("base: none was given",))
    assert json.loads(said.checkpoint.metadata["qvec"])["version"] == "1.2.0"
    assert said.header.assumed == ("base: none was given",)
    header = json.loads(said.checkpoint.metadata["qvec"])
    save_file(
        load_file(tmp_path / "said.safetensors"), tmp_path / "old", {"qvec": json.dumps(header | {"version": "1.1.0"})}
    )
    with pytest.raises(IntegrityError, match="header fields"):
        QuantizationVector.open(tmp_path / "old")


@pytest.mark.parametrize(
    "change",
    [
        {"norms": [1]},
        {"norms": {"a": [1.0]}},
        {"base": 3},
        {"dtype": None},
        {"sketch_seed": "1"},
        {"sketch_seed": 1.5},
        {"parts": [{"task": "a"}]},
        {"parts": [{"task": "a", "seed": 0, "weight": "1", "sha256": "x"}]},
        {"control": 1},
    ],
)
def test_damaged_fields_of_1_1(tmp_path: Path, pico_states: States, change: dict[str, Any]) -> None:
    path = tmp_path / "v.safetensors"
    header = json.loads(_extract(pico_states, path).checkpoint.metadata["qvec"])
    save_file(load_file(path), path, {"qvec": json.dumps(header | change)})
    with pytest.raises(IntegrityError, match="vector header is damaged"):
        QuantizationVector.open(path)


@pytest.mark.parametrize("name", [f"sketch:rows:{FC1}", f"sketch:column_norms:{FC1}"])
def test_a_damaged_sketch(tmp_path: Path, pico_states: States, name: str) -> None:
    path = tmp_path / "v.safetensors"
    metadata = dict(_extract(pico_states, path).checkpoint.metadata)
    arrays = load_file(path)
    for change in (None, arrays[name][1:]):
        damaged = {key: value for key, value in arrays.items() if key != name}
        if change is not None:
            damaged[name] = np.ascontiguousarray(change)
        save_file(damaged, path, metadata)
        with pytest.raises(IntegrityError, match=f"the sketch of {FC1} is damaged"):
            QuantizationVector.open(path).sketch()


def test_moments_travel_along(tmp_path: Path, pico_states: States) -> None:
    factor = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    moments = {FC1: factor @ factor.T}
    vector = _extract(pico_states, tmp_path / "v.safetensors", moments=moments)
    found = vector.moments()
    assert found is not None and set(found) == {FC1} and vector.has_moments
    np.testing.assert_array_equal(found[FC1], moments[FC1])
    np.testing.assert_array_equal(vector.moment(FC1), moments[FC1])  # type: ignore[arg-type]
    assert vector.moment("head") is None
    assert f"moments:{FC1}" not in vector.tensors and summarize(vector)["moments"] is True
    half = _extract(pico_states, tmp_path / "h.safetensors", moments={FC1: moments[FC1].astype(np.float16)}).moments()
    assert half is not None
    np.testing.assert_array_equal(half[FC1], moments[FC1].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("module", "matrix", "error", "message"),
    [
        (FC1, np.eye(31, dtype=np.float32), IncompatibleError, "do not fit"),
        ("blocks.0.norm1", np.eye(32, dtype=np.float32), IncompatibleError, "do not fit"),
        ("other", np.eye(32, dtype=np.float32), IncompatibleError, "do not fit"),
        (FC1, np.triu(np.ones((32, 32), np.float32)), IntegrityError, "not symmetric"),
        (FC1, np.full((32, 32), np.nan, np.float32), IntegrityError, "not finite"),
        (FC1, np.full((32, 32), np.inf, np.float32), IntegrityError, "not finite"),
    ],
)
def test_moments_that_do_not_fit(
    tmp_path: Path, pico_states: States, module: str, matrix: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        _extract(pico_states, tmp_path / "v.safetensors", moments={module: matrix})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rho_that_does_not_reproduce_qat_is_refused(dtype: str) -> None:
    generator = np.random.default_rng(0)
    fp, rho = (generator.normal(0, size, 100).astype(np.float32) for size in (1, 0.02))
    assert require_reproduction("a", fp, rho, fp + rho, dtype) is None
    ulp = float(np.spacing(np.float16(0.02))) if dtype == "float16" else float(np.spacing(np.float32(1)))
    for wrong in (rho + np.float32(8 * ulp), np.where(np.arange(100) == 3, np.nan, rho).astype(np.float32)):
        with pytest.raises(IntegrityError, match=r"a: FP \+ rho does not give QAT back"):
            require_reproduction("a", fp, wrong, fp + rho, dtype)


def test_dtypes_that_vectors_do_not_have(tmp_path: Path, pico_states: States) -> None:
    with pytest.raises(RecipeError, match="not stored as bfloat16"):
        _extract(pico_states, tmp_path / "v.safetensors", dtype="bfloat16")


GRIDS = [
    Scheme(bits, granularity, 16 if granularity == "group" else 0, method=method)  # type: ignore[arg-type]
    for bits in (2, 3, 4, 8)
    for granularity in ("tensor", "channel", "group")
    for method in ("rtn", "mse")
]


@pytest.mark.parametrize("scheme", GRIDS, ids=str)
def test_settled_weights_are_told_from_latent_ones(scheme: Scheme) -> None:
    latent = np.random.default_rng(0).standard_normal((48, 96)).astype(np.float32)
    settled = quantize(latent, scheme).dequantize()
    assert not on_grid(latent, scheme)
    assert on_grid(settled, scheme)
    assert on_grid(settled.astype(np.float16).astype(np.float32), scheme)
    assert not on_grid(latent.astype(np.float16).astype(np.float32), scheme)
    assert not on_grid(np.zeros_like(latent), scheme)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_settled_qat_checkpoint_is_refused(tmp_path: Path, pico_states: States, granularity: Any) -> None:
    scheme = Scheme(3, granularity)

    def settle(name: str, weight: np.ndarray) -> np.ndarray:
        linear = weight.ndim == 2 and not name.startswith("head.")
        return quantize(weight, scheme).dequantize() if linear else weight

    qat = {name: settle(name, weight) for name, weight in pico_states["qat"].items()}
    with pytest.raises(IncompatibleError, match=r"settled: blocks\.0\.attn\.qkv\.weight") as caught:
        _extract({**pico_states, "qat": qat}, tmp_path / "v.safetensors", scheme=scheme)
    assert "latent" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    # What the QAT left float may look as it likes.
    _extract({**pico_states, "qat": qat}, tmp_path / "v.safetensors", scheme=scheme, skip=("head", "attn", "mlp"))


def test_another_base_is_refused(tmp_path: Path, pico_states: States) -> None:
    generator = np.random.default_rng(0)
    other = {
        name: generator.normal(0, 0.2, value.shape).astype(np.float32) for name, value in pico_states["fp"].items()
    }
    with pytest.raises(IncompatibleError, match="another base"):
        _extract(pico_states, tmp_path / "v.safetensors", base=(other, "0" * 64))
    smaller = {name: value for name, value in pico_states["receiver"].items() if name != "pos_embed"}
    with pytest.raises(IncompatibleError, match="the base has another pos_embed"):
        _extract(pico_states, tmp_path / "v.safetensors", base=(smaller, "0" * 64))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("share", "words"), [(0.001, "hardly trained"), (0.2, "diverged"), (0.016, None)])
def test_unusual_norms_raise_a_doubt(share: float, words: str | None) -> None:
    warning = share_warning(share)
    assert warning is None if words is None else words in str(warning)


def test_a_sketch_that_float16_cannot_hold(tmp_path: Path) -> None:
    state = {"a.weight": np.full((32, 32), 1e6, np.float32)}
    header = VectorHeader(Scheme(3, "channel"), (), "t", 0, 1.0, 1.0, "test")
    with pytest.raises(IntegrityError, match=r"sketch:.* would not be finite in float16"):
        write_vector(tmp_path / "v.safetensors", header, state.items(), sketch=make_sketch(state, state.__getitem__))
