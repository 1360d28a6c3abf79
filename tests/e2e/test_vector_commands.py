"""`qvec-deploy vector ...`: donors to vectors, vectors to mixes and controls, and receivers held against them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from older import write_format_1_0
from pico import PICO_ARGS, PICO_MODEL
from safetensors.numpy import save_file

from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.models import describe
from qvec_deploy.vectors.vector_file import QuantizationVector

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
GRID = ("--bits", 3, "--granularity", "channel", "--task", "letters")
MODEL = (
    "--model",
    PICO_MODEL,
    *(part for key, value in PICO_ARGS.items() for part in ("--model-arg", f"{key}={value}")),
)
FC1, FC2 = "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"

Run = Callable[..., tuple[int, str, str]]
State = dict[str, np.ndarray]


@pytest.fixture
def donor(pico_folder: Path) -> tuple[Any, ...]:
    return ("--fp", pico_folder / "fp.safetensors", "--qat", pico_folder / "qat.safetensors")


@pytest.fixture
def permuted(tmp_path: Path, pico_states: dict[str, State]) -> Path:
    """The receiver with the neurons of one MLP in another order."""
    state, order = dict(pico_states["receiver"]), np.random.default_rng(0).permutation(128)
    for name in (f"{FC1}.weight", f"{FC1}.bias"):
        state[name] = state[name][order]
    state[f"{FC2}.weight"] = np.ascontiguousarray(state[f"{FC2}.weight"][:, order])
    save_file(state, tmp_path / "permuted.safetensors")
    return tmp_path / "permuted.safetensors"


def test_extract_then_inspect(tmp_path: Path, run: Run, donor: tuple[Any, ...]) -> None:
    path = tmp_path / "v.safetensors"
    code, out, err = run("vector", "extract", *donor, *GRID, "--seed", 3, "--dtype", "float16", "-o", path)
    assert code == 0 and "letters" in out, err
    code, out, err = run("vector", "inspect", path, "--json")
    document = json.loads(out)
    assert (code, document["task"], document["seeds"], document["skip"]) == (0, "letters", [3], ["head"])
    assert document["scheme"]["bits"] == 3 and document["dtypes"] == ["F16"] and document["sketch"] is True
    assert document["warning"] is None
    assert {layer["name"] for layer in document["layers"]} == set(QuantizationVector.open(path).tensors)
    assert all(layer["share"] > 0 for layer in document["layers"])
    code, out, err = run("vector", "inspect", path)
    assert (code, err) == (0, "") and "3 bits per channel, rtn" in out and FC1 in out


def test_donors_in_double_precision_lose_no_tensor(
    tmp_path: Path, run: Run, donor: tuple[Any, ...], pico_states: dict[str, State]
) -> None:
    for name in ("fp", "qat"):
        save_file({key: value.astype(np.float64) for key, value in pico_states[name].items()}, tmp_path / name)
    double = ("--fp", tmp_path / "fp", "--qat", tmp_path / "qat")
    for files, path in ((donor, tmp_path / "v32"), (double, tmp_path / "v64")):
        code, out, err = run("vector", "extract", *files, *GRID, "-o", path)
        assert code == 0 and "finer than these files" not in out, err
    one, other = (QuantizationVector.open(tmp_path / name) for name in ("v32", "v64"))
    assert set(one.tensors) == set(other.tensors)
    assert all(np.array_equal(one.checkpoint.read(name), other.checkpoint.read(name)) for name in one.tensors)


def test_extract_says_what_it_takes_on_trust(tmp_path: Path, run: Run, donor: tuple[Any, ...]) -> None:
    path = tmp_path / "v.safetensors"
    code, out, err = run("vector", "extract", *donor, *GRID, "-o", path)
    assert code == 0, err
    said = [line.removeprefix("assumed ") for line in out.splitlines() if line.startswith("assumed ")]
    assert [line.partition(":")[0] for line in said] == [
        "grid",
        "left float by the QAT",
        "base",
        "model",
        "dtype",
        "seed",
    ]
    assert "(method and clip by default)" in said[0] and "head (skip by default)" in said[1]
    assert "none was given" in said[2] and "none was given" in said[3]
    assert said[4] == "dtype: float weights F32, QAT weights F32, the vector float32 (dtype by default)"
    assert list(QuantizationVector.open(path).header.assumed) == said
    assert json.loads(run("vector", "inspect", path, "--json")[1])["assumed"] == said
    assert all(line in run("vector", "inspect", path)[1] for line in said)


def test_what_was_given_is_not_assumed(tmp_path: Path, run: Run, donor: tuple[Any, ...], pico_folder: Path) -> None:
    given = ("--method", "rtn", "--clip", 1.0, "--skip", "head", "--seed", 0, "--dtype", "float16", *MODEL)
    base = ("--base", pico_folder / "receiver.safetensors")
    path = tmp_path / "v.safetensors"
    code, out, err = run("vector", "extract", *donor, *GRID, *given, *base, "-o", path, "--json")
    assert code == 0, err
    said = json.loads(out)["assumed"]
    assert "default" not in " ".join(said)
    assert [line.partition(":")[0] for line in said] == ["grid", "left float by the QAT", "base", "dtype"]
    assert "was given; that the QAT began there" in said[2]


def test_a_vector_of_unusual_norm_raises_a_doubt(tmp_path: Path, run: Run, pico_states: dict[str, State]) -> None:
    for name, factor in (("fp", 1.0), ("qat", 1.2)):
        state = {key: value * np.float32(factor) for key, value in pico_states["fp"].items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    pair = ("--fp", tmp_path / "fp.safetensors", "--qat", tmp_path / "qat.safetensors")
    doubt = "warning: the vector is 20.00% of the weights' norm, outside 0.3% to 5%"
    code, _, err = run("vector", "extract", *pair, *GRID, "-o", tmp_path / "v.safetensors")
    assert code == 0 and err.startswith(doubt)
    code, _, err = run("vector", "inspect", tmp_path / "v.safetensors")
    assert code == 0 and err.startswith(doubt)


def test_inspect_an_older_file(tmp_path: Path, run: Run) -> None:
    older = write_format_1_0(DEMO / "vector_symbols.safetensors", tmp_path / "older.safetensors")
    code, out, err = run("vector", "inspect", older)
    assert (code, err) == (0, "") and "coordinates cannot be checked" in out and "1.69%" in out


def test_extract_from_the_published_layout(tmp_path: Path, run: Run, pico_states: dict[str, State]) -> None:
    """State dicts in `.pt` files with every key under `model.`, the head and a counter inside."""
    for name in ("fp", "qat"):
        state = {f"model.{key}": torch.from_numpy(value) for key, value in pico_states[name].items()}
        torch.save({**state, "model.steps": torch.tensor(7)}, tmp_path / f"{name}.pt")
    arguments = ("--fp", tmp_path / "fp.pt", "--qat", tmp_path / "qat.pt", *GRID, *MODEL)
    code, _, err = run("vector", "extract", *arguments, "-o", tmp_path / "v.safetensors")
    assert code == 0, err
    vector = QuantizationVector.open(tmp_path / "v.safetensors")
    assert set(vector.tensors) == {name for name in pico_states["fp"] if not name.startswith("head.")}
    np.testing.assert_array_equal(
        vector.read(f"{FC1}.weight"), pico_states["qat"][f"{FC1}.weight"] - pico_states["fp"][f"{FC1}.weight"]
    )


def test_extract_knows_a_swins_head(tmp_path: Path, run: Run) -> None:
    model, args = "swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 16, "depths": [1], "num_heads": [2]}
    generator = np.random.default_rng(0)
    shapes = describe(model, 8, args).shapes
    for name in ("fp", "qat"):
        state = {key: generator.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    pair = ("--fp", tmp_path / "fp.safetensors", "--qat", tmp_path / "qat.safetensors", *GRID)
    path = tmp_path / "v.safetensors"
    arguments = [part for key, value in args.items() for part in ("--model-arg", f"{key}={value}")]
    code, _, err = run("vector", "extract", *pair, "--model", model, *arguments, "-o", path, "--json")
    assert code == 0, err
    vector = QuantizationVector.open(path)
    assert set(vector.tensors) == {key for key in shapes if not key.startswith("head.fc.")}
    assert vector.header.skip == ("head",)


def test_extract_holds_the_donor_against_the_model(tmp_path: Path, run: Run, donor: tuple[Any, ...]) -> None:
    path = tmp_path / "v.safetensors"
    for code, words, arguments in [
        (4, "the donor is not a `resnet50`", ("--model", "resnet50")),
        (4, "the donor is not a `vit_tiny_patch16_224`", ("--model", PICO_MODEL)),
        (2, "`nosuch` matches no Linear", (*MODEL, "--skip", "nosuch")),
        (2, "`nosuch` matches no Linear", ("--skip", "head", "--skip", "nosuch")),
        (2, "--model-arg without --model", ("--model-arg", "depth=2")),
    ]:
        actual, _, err = run("vector", "extract", *donor, *GRID, *arguments, "-o", path)
        assert actual == code and words in err, err
    assert list(tmp_path.iterdir()) == []
    assert run("vector", "extract", *donor, *GRID, *MODEL, "-o", path)[0] == 0


def test_extract_from_files_without_a_head(tmp_path: Path, run: Run, pico_states: dict[str, State]) -> None:
    for name in ("fp", "qat"):
        state = {key: value for key, value in pico_states[name].items() if not key.startswith("head.")}
        save_file(state, tmp_path / f"{name}.safetensors")
    pair = ("--fp", tmp_path / "fp.safetensors", "--qat", tmp_path / "qat.safetensors", *GRID)
    code, _, err = run("vector", "extract", *pair, "-o", tmp_path / "v.safetensors")
    assert code == 4 and "no tensor under `head.`" in err and "--model" in err
    assert run("vector", "extract", *pair, *MODEL, "-o", tmp_path / "v.safetensors")[0] == 0
    assert QuantizationVector.open(tmp_path / "v.safetensors").header.skip == ("head",)


def test_base_and_moments(tmp_path: Path, run: Run, donor: tuple[Any, ...], pico_folder: Path) -> None:
    base, path = pico_folder / "receiver.safetensors", tmp_path / "v.safetensors"
    save_file({FC1: np.eye(32, dtype=np.float32)}, tmp_path / "moments.safetensors")
    more = ("--base", base, "--moments-from", tmp_path / "moments.safetensors")
    assert run("vector", "extract", *donor, *GRID, *more, "-o", path)[0] == 0
    vector = QuantizationVector.open(path)
    assert vector.header.base == Checkpoint.open(base).fingerprint()
    assert set(vector.moments() or {}) == {FC1}
    assert run("vector", "check", base, path, "--base", base)[0] == 0
    code, _, err = run("vector", "check", base, path, "--base", pico_folder / "fp.safetensors")
    assert code == 4 and "another base" in err
    code, _, err = run("vector", "check", base, pico_folder / "vector.safetensors", "--base", base)
    assert code == 4 and "does not name its base" in err


def test_mix(tmp_path: Path, run: Run) -> None:
    files = [DEMO / f"vector_{name}.safetensors" for name in ("lower", "upper")]
    code, out, err = run("vector", "mix", *files, "-o", tmp_path / "mix.safetensors")
    assert (code, err) == (0, "") and "tiny/lower + tiny/upper" in out
    code, out, _ = run("vector", "inspect", tmp_path / "mix.safetensors", "--json")
    assert [part["weight"] for part in json.loads(out)["parts"]] == [0.5, 0.5]
    code, out, err = run("vector", "mix", *files, "--weight", 1, "--weight", 1, "-o", tmp_path / "sum.safetensors")
    assert code == 2 and "a sum without division collapses the model" in err
    assert not (tmp_path / "sum.safetensors").exists()


@pytest.mark.parametrize("kind", ["random", "shuffle", "task"])
def test_control(tmp_path: Path, run: Run, pico_folder: Path, kind: str) -> None:
    donor = ("--fp", pico_folder / "fp.safetensors", "--base", pico_folder / "receiver.safetensors")
    arguments = (
        "vector",
        "control",
        pico_folder / "vector.safetensors",
        "--kind",
        kind,
        "-o",
        tmp_path / "c.safetensors",
    )
    code, out, err = run(*arguments, *(donor if kind == "task" else ()), "--json")
    assert code == 0, err
    control = QuantizationVector.open(tmp_path / "c.safetensors").header.control
    assert control is not None and control.startswith(kind)
    assert json.loads(out)["norm"] == pytest.approx(
        QuantizationVector.open(pico_folder / "vector.safetensors").header.norm
    )


def test_a_control_says_that_it_is_one(tmp_path: Path, run: Run, pico_folder: Path) -> None:
    receiver, control = pico_folder / "receiver.safetensors", tmp_path / "c.safetensors"
    command = ("vector", "control", pico_folder / "vector.safetensors", "--kind", "shuffle", "--seed", 4)
    assert run(*command, "-o", control)[0] == 0
    words = "no real vector but a control: shuffle, seed 4"
    for arguments in (("inspect", control), ("check", receiver, control, *MODEL)):
        code, out, err = run("vector", *arguments)
        assert (code, err) == (0, "") and words in out
        code, out, _ = run("vector", *arguments, "--json")
        assert (code, json.loads(out)["control"]) == (0, "shuffle, seed 4")
    for arguments in (
        ("inspect", pico_folder / "vector.safetensors"),
        ("check", receiver, pico_folder / "vector.safetensors"),
    ):
        code, out, _ = run("vector", *arguments)
        assert code == 0 and "control" not in out
        assert json.loads(run("vector", *arguments, "--json")[1])["control"] is None


@pytest.mark.parametrize("command", ["extract", "mix", "control", "check"])
def test_outputs_that_are_refused(
    tmp_path: Path, run: Run, pico_folder: Path, donor: tuple[Any, ...], command: str
) -> None:
    receiver, other = tmp_path / "receiver.safetensors", tmp_path / "other.safetensors"
    vector, fp = tmp_path / "vector.safetensors", tmp_path / "fp.safetensors"
    for file, source in ((receiver, "receiver"), (vector, "vector"), (other, "vector"), (fp, "fp")):
        file.write_bytes((pico_folder / f"{source}.safetensors").read_bytes())
    arguments, inputs = {
        "extract": (("--fp", fp, *donor[2:], *GRID, "--base", receiver), (fp, receiver)),
        "mix": ((vector, other), (vector, other)),
        "control": ((vector, "--kind", "task", "--fp", fp, "--base", receiver), (vector, fp, receiver)),
        "check": ((receiver, vector, *MODEL), (receiver, vector)),
    }[command]
    new, linked = tmp_path / "new.safetensors", tmp_path / "linked.safetensors"
    linked.symlink_to(inputs[0])
    (tmp_path / "folder").mkdir()
    kept = {path: path.read_bytes() for path in inputs}
    for output, code, words in [
        *((path, 2, "is also an input") for path in (*inputs, linked)),
        (tmp_path / "folder", 6, "is a directory"),
        (tmp_path / "none" / "new.safetensors", 6, "does not exist"),
        (fp / "new.safetensors", 6, "is not a directory"),
    ]:
        for force in ((), ("--force",)):
            actual, out, err = run("vector", command, *arguments, "-o", output, *force)
            assert (actual, out) == (code, "") and words in err, err
    assert not (tmp_path / "none").exists()
    assert run("vector", command, *arguments, "-o", new)[0] == 0
    written = new.read_bytes()
    new.write_bytes(b"precious")
    code, _, err = run("vector", command, *arguments, "-o", new)
    assert code == 6 and f"{new} exists" in err and "--force" in err
    assert new.read_bytes() == b"precious"
    assert run("vector", command, *arguments, "-o", new, "--force")[0] == 0
    assert new.read_bytes() == written
    assert {path: path.read_bytes() for path in inputs} == kept


def test_check_a_receiver_that_fits(run: Run, pico_folder: Path) -> None:
    pair = (pico_folder / "receiver.safetensors", pico_folder / "vector.safetensors")
    code, out, err = run("vector", "check", *pair, *MODEL)
    assert (code, err) == (0, "") and "is in the donor's coordinates" in out
    code, out, _ = run("vector", "check", *pair)
    assert code == 0 and "only distances were judged" in out
    code, out, _ = run("vector", "check", *pair, *MODEL, "--json")
    document = json.loads(out)
    assert (code, document["same_coordinates"], document["findings"]) == (0, True, [])
    assert 0.03 < document["distance"] < 0.07


def test_check_undoes_a_permutation(
    tmp_path: Path, run: Run, pico_folder: Path, permuted: Path, pico_states: dict[str, State]
) -> None:
    vector, right = pico_folder / "vector.safetensors", tmp_path / "right.safetensors"
    code, out, err = run("vector", "check", permuted, vector, *MODEL)
    assert code == 4 and f"{FC1}: permutation of MLP neurons" in out and "can be undone" in out
    assert err.startswith("error: ") and "-o FILE" in err
    code, out, err = run("vector", "check", permuted, vector, *MODEL, "-o", right)
    assert code == 0, err
    for name, value in pico_states["receiver"].items():
        np.testing.assert_array_equal(Checkpoint.open(right).read(name), value)
    assert run("vector", "check", right, vector, *MODEL)[0] == 0


def test_check_refuses_what_cannot_be_undone(
    tmp_path: Path, run: Run, pico_states: dict[str, State], pico_folder: Path
) -> None:
    state, generator = dict(pico_states["receiver"]), np.random.default_rng(0)
    scale = np.exp(generator.choice([-1, 1], 32)).astype(np.float32)
    for kind in ("weight", "bias"):
        name = f"blocks.0.attn.qkv.{kind}"
        rows = np.concatenate([np.ones(64, np.float32), scale])
        state[name] = state[name] * rows.reshape(-1, *[1] * (state[name].ndim - 1))
    state["blocks.0.attn.proj.weight"] = state["blocks.0.attn.proj.weight"] / scale
    save_file(state, tmp_path / "scaled.safetensors")
    arguments = ("vector", "check", tmp_path / "scaled.safetensors", pico_folder / "vector.safetensors", *MODEL)
    code, out, err = run(*arguments, "-o", tmp_path / "right.safetensors")
    assert code == 4 and "positive scaling between v and proj in blocks.0.attn.qkv" in err and "cannot be undone" in out
    assert not (tmp_path / "right.safetensors").exists()


def test_check_refuses_another_base(tmp_path: Path, run: Run, pico_states: dict[str, State], pico_folder: Path) -> None:
    generator = np.random.default_rng(7)
    state = {
        name: generator.normal(0, 0.2, value.shape).astype(np.float32) for name, value in pico_states["fp"].items()
    }
    for name in state:  # only the Linears are strangers
        if "norm" in name:
            state[name] = pico_states["fp"][name]
    save_file(state, tmp_path / "other.safetensors")
    for model in ((), MODEL):
        pair = (tmp_path / "other.safetensors", pico_folder / "vector.safetensors")
        code, out, err = run("vector", "check", *pair, *model)
        assert (code, out) == (4, "") and "another base" in err


def test_refusals(tmp_path: Path, run: Run, pico_folder: Path, donor: tuple[Any, ...]) -> None:
    receiver, vector = pico_folder / "receiver.safetensors", pico_folder / "vector.safetensors"
    path, older = tmp_path / "v.safetensors", write_format_1_0(vector, tmp_path / "older.safetensors")
    for code, words, arguments in [
        (4, "has another blocks.0.attn.proj", ("check", DEMO / "receiver_symbols.safetensors", vector)),
        (4, "has no sketch", ("check", receiver, older)),
        (2, "without --model", ("check", receiver, vector, "--model-arg", "depth=2")),
        (2, "is not NAME=VALUE", ("check", receiver, vector, "--model", PICO_MODEL, "--model-arg", "depth")),
        (4, "does not fit the model", ("check", receiver, vector, "--model", PICO_MODEL)),
        (5, "not a quantization vector", ("inspect", receiver)),
        (2, "give both --fp and --base", ("control", vector, "--kind", "task", "--fp", receiver, "-o", path)),
        (2, "needs fine-tune and base", ("control", vector, "--kind", "task", "-o", path)),
        (2, "group_size", ("extract", *donor, "--bits", 3, "--granularity", "group", "--task", "t", "-o", path)),
        (2, "timm has no model", ("extract", *donor, *GRID, "--model", "vit_none", "-o", path)),
        (6, "does not exist", ("extract", "--fp", tmp_path / "no.pt", "--qat", receiver, *GRID, "-o", path)),
    ]:
        actual, _, err = run("vector", *arguments)
        assert actual == code and words in err, err
    assert list(tmp_path.iterdir()) == [older]
