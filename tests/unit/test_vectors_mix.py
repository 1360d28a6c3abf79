"""Means of vectors and controls: what they hold, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from older import write_format_1_0

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.controls import shuffled, write_control
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.mixing import mix_vectors
from qvec_deploy.vectors.vector_file import QuantizationVector, write_vector

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
FC1 = "blocks.0.mlp.fc1.weight"

State = dict[str, np.ndarray]
Make = Callable[..., QuantizationVector]


@pytest.fixture
def make(tmp_path: Path, pico_states: dict[str, State]) -> Make:
    """Write a vector of the pico donor plus noise, in a folder of its own."""

    def call(name: str, *, seed: int = 0, fp: State | None = None, **changes: Any) -> QuantizationVector:
        generator = np.random.default_rng(seed)
        fp = fp or pico_states["fp"]
        qat = {key: value + generator.normal(0, 0.01, value.shape).astype(np.float32) for key, value in fp.items()}
        settings = {"scheme": Scheme(3, "channel"), "skip": ("head",), "task": name, "seed": seed} | changes
        path = tmp_path / "made" / f"{name}.safetensors"
        extract_vector(fp, qat, path, **settings)
        return QuantizationVector.open(path)

    return call


def test_the_plain_mean(tmp_path: Path, make: Make) -> None:
    a, b = make("a", seed=1, base=None), make("b", seed=2)
    written = mix_vectors([a, b], tmp_path / "mix.safetensors")
    vector = QuantizationVector.open(tmp_path / "mix.safetensors")
    assert vector.header == written
    for name in a.tensors:
        np.testing.assert_allclose(vector.read(name), (a.read(name) + b.read(name)) / 2, rtol=0, atol=1e-7)
    header = vector.header
    assert (header.task, header.seeds, header.scheme, header.skip) == ("a + b", (1, 2), a.header.scheme, ("head",))
    assert [(part.task, part.weight, part.sha256) for part in header.parts] == [
        (source.header.task, 0.5, source.checkpoint.fingerprint()) for source in (a, b)
    ]
    # Two independent vectors of one norm: their mean is shorter by the root of two.
    assert header.norm == pytest.approx(a.header.norm / 2**0.5, rel=0.02)
    assert header.norms[FC1][0] == pytest.approx(np.linalg.norm(vector.read(FC1)))
    assert header.norms[FC1][1] == pytest.approx(a.header.norms[FC1][1])
    sketch, first = vector.sketch(), a.sketch()
    assert sketch is not None and first is not None
    np.testing.assert_array_equal(sketch.linears["blocks.0.mlp.fc1"].rows, first.linears["blocks.0.mlp.fc1"].rows)


def test_weights_and_float16(tmp_path: Path, make: Make) -> None:
    a, b = make("a", seed=1), make("b", seed=2)
    mix_vectors([a, b], tmp_path / "mix.safetensors", weights=[1.25, -0.25], dtype="float16")
    vector = QuantizationVector.open(tmp_path / "mix.safetensors")
    np.testing.assert_allclose(vector.read(FC1), 1.25 * a.read(FC1) - 0.25 * b.read(FC1), rtol=1e-3, atol=1e-6)
    assert vector.header.dtype == "float16"


def test_older_files_mix_without_sketches(tmp_path: Path) -> None:
    paths = [write_format_1_0(path, tmp_path / path.name) for path in sorted(DEMO.glob("vector_*.safetensors"))]
    header = mix_vectors([QuantizationVector.open(path) for path in paths], tmp_path / "mix.safetensors")
    assert header.sketch_seed is None and header.norms == {} and len(header.parts) == 6
    assert 0.003 < header.share < 0.05


def test_the_demos_vectors_mix(tmp_path: Path) -> None:
    vectors = [QuantizationVector.open(path) for path in sorted(DEMO.glob("vector_*.safetensors"))]
    header = mix_vectors(vectors, tmp_path / "mix.safetensors")
    assert header.sketch_seed is not None and header.norms and len(header.parts) == 6


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], "add up to 2"),
        ([0.5, 0.4], "add up to 0.9"),
        ([0.5, float("nan")], "add up to nan"),
        ([1.0], "1 weights for 2 vectors"),
        ([0.5, 0.25, 0.25], "3 weights for 2 vectors"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, make: Make, weights: list[float], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        mix_vectors([make("a"), make("b")], tmp_path / "mix.safetensors", weights=weights)
    assert "weight" in caught.value.hint or "collapses the model" in caught.value.hint
    assert not (tmp_path / "mix.safetensors").exists()


def test_weights_may_miss_1_by_a_rounding(tmp_path: Path, make: Make) -> None:
    header = mix_vectors([make("a"), make("b")], tmp_path / "m.safetensors", weights=[0.3333333, 0.6666666])
    assert [part.weight for part in header.parts] == [0.3333333, 0.6666666]


def test_vectors_that_cancel_out(tmp_path: Path, make: Make) -> None:
    vector = make("a")
    opposite = tmp_path / "opposite.safetensors"
    write_vector(opposite, vector.header, [(name, -vector.read(name)) for name in vector.tensors])
    with pytest.raises(IncompatibleError, match="zero everywhere as float32"):
        mix_vectors([vector, QuantizationVector.open(opposite)], tmp_path / "mix.safetensors")
    assert not (tmp_path / "mix.safetensors").exists()


def test_one_vector_is_no_mix(tmp_path: Path, make: Make) -> None:
    with pytest.raises(RecipeError, match="no mix"):
        mix_vectors([make("a")], tmp_path / "mix.safetensors")


def test_vectors_that_do_not_mix(tmp_path: Path, make: Make, pico_states: dict[str, State]) -> None:
    generator = np.random.default_rng(0)
    stranger = {
        name: generator.normal(0, 0.2, value.shape).astype(np.float32) for name, value in pico_states["fp"].items()
    }
    smaller = {name: value for name, value in pico_states["fp"].items() if name != "pos_embed"}
    receiver = pico_states["receiver"]
    write_control(make("real"), tmp_path / "control.safetensors", kind="random")
    first = make("a", base=(receiver, "1" * 64))
    for other, message in [
        (make("scheme", scheme=Scheme(4, "channel")), "trained for 3 bits per channel, rtn and for 4 bits"),
        (make("skip", skip=("head", "attn")), "left head and head, attn float"),
        (make("model", fp=smaller), "differ in pos_embed"),
        (make("stranger", fp=stranger), "another base"),
        (make("base", base=(receiver, "2" * 64)), "another base each"),
        (QuantizationVector.open(tmp_path / "control.safetensors"), "is a control"),
    ]:
        with pytest.raises(IncompatibleError, match=message):
            mix_vectors([first, other], tmp_path / "mix.safetensors")
    assert not (tmp_path / "mix.safetensors").exists()
    # A base that only one of them names is not the mix's.
    assert mix_vectors([first, make("b")], tmp_path / "mix.safetensors").base is None
    again = make("c", base=(receiver, "1" * 64))
    assert mix_vectors([first, again], tmp_path / "mix.safetensors").base == "1" * 64


@pytest.mark.parametrize("kind", ["random", "shuffle", "task"])
def test_controls_have_rhos_norms_and_say_what_they_are(
    tmp_path: Path, make: Make, pico_states: dict[str, State], kind: str
) -> None:
    vector = make("a")
    donor = (pico_states["fp"], pico_states["receiver"]) if kind == "task" else None
    header = write_control(vector, tmp_path / "c.safetensors", kind=kind, seed=4, donor=donor)
    control = QuantizationVector.open(tmp_path / "c.safetensors")
    assert control.header == header
    assert header.control == {"random": "random, seed 4", "shuffle": "shuffle, seed 4", "task": "task vector"}[kind]
    assert replace(header, control=None, norm=0, made_by="") == replace(vector.header, norm=0, made_by="")
    assert header.norm == pytest.approx(vector.header.norm, rel=1e-5)
    assert set(control.tensors) == set(vector.tensors) and control.sketch() is not None
    for name in vector.tensors:
        rho, values = vector.read(name), control.read(name)
        assert np.linalg.norm(values) == pytest.approx(np.linalg.norm(rho), rel=1e-5)
        if rho.size > 100:
            assert abs(float((rho * values).sum())) < 0.35 * float((rho * rho).sum())


def test_a_shuffle_keeps_every_rows_values(make: Make) -> None:
    rho = make("a").read(FC1)
    values = shuffled(rho, FC1, 1)
    np.testing.assert_array_equal(np.sort(values, axis=1), np.sort(rho, axis=1))
    assert (values != rho).mean() > 0.9
    np.testing.assert_array_equal(values, shuffled(rho, FC1, 1))
    assert (values != shuffled(rho, FC1, 2)).any() and (values != shuffled(rho, "other", 1)).any()
    bias = np.arange(50, dtype=np.float32)
    np.testing.assert_array_equal(np.sort(shuffled(bias, "b", 1)), bias)
    scalar = np.float32(3).reshape(())
    assert shuffled(scalar, "s", 1).shape == ()


def test_a_task_vector_points_where_the_donor_went(tmp_path: Path, make: Make, pico_states: dict[str, State]) -> None:
    vector, fp, base = make("a", dtype="float16"), pico_states["fp"], pico_states["receiver"]
    write_control(vector, tmp_path / "c.safetensors", kind="task", donor=(fp, base))
    control = QuantizationVector.open(tmp_path / "c.safetensors")
    task, values = fp[FC1] - base[FC1], control.read(FC1)
    assert control.header.dtype == "float16"
    cosine = float((task * values).sum()) / float(np.linalg.norm(task) * np.linalg.norm(values))
    assert cosine == pytest.approx(1, abs=1e-4)


def test_controls_that_are_refused(tmp_path: Path, make: Make, pico_states: dict[str, State]) -> None:
    vector, fp, path = make("a"), pico_states["fp"], tmp_path / "c.safetensors"
    with pytest.raises(RecipeError, match="no control `noise`"):
        write_control(vector, path, kind="noise")
    with pytest.raises(RecipeError, match="`task` needs"):
        write_control(vector, path, kind="task")
    with pytest.raises(RecipeError, match="`random` takes no"):
        write_control(vector, path, kind="random", donor=(fp, fp))
    with pytest.raises(IncompatibleError, match="is the same in the fine-tune and in its base"):
        write_control(vector, path, kind="task", donor=(fp, fp))
    with pytest.raises(IncompatibleError, match=f"another {FC1}"):
        write_control(vector, path, kind="task", donor=(fp, pico_states["receiver"] | {FC1: fp[FC1][1:]}))
    assert not path.exists()


def test_an_empty_tensor_stays_empty(tmp_path: Path, make: Make) -> None:
    header = make("a").header
    path = tmp_path / "zero.safetensors"
    write_vector(path, header, [("a", np.zeros((4, 4), np.float32)), ("b", np.ones(4, np.float32))])
    write_control(QuantizationVector.open(path), tmp_path / "c.safetensors", kind="random")
    np.testing.assert_array_equal(QuantizationVector.open(tmp_path / "c.safetensors").read("a"), 0)
