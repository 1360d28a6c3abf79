"""What `plan --roofline` says before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qvec_deploy.bench.roofline import devices
from qvec_deploy.bench.roofline.devices import LISTED
from qvec_deploy.bench.roofline.outlook import columns_of, look_ahead
from qvec_deploy.bench.roofline.roofline_values import Device, MatrixProduct, Operation
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.cli.commands import commands
from qvec_deploy.errors import RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.recipe import load_recipe

CPU = Device("a CPU", "measured", 10.0, {"fp32": 100.0, "int8": 400.0}, threads=3)
PLAIN = {"vector": None, "lambda": 0}


@pytest.fixture(autouse=True)
def _no_weights_and_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Checkpoint, name: str) -> None:
        raise AssertionError(f"the plan read {name}")

    monkeypatch.setattr(Checkpoint, "read", refuse)
    monkeypatch.setattr(devices, "measure_device", lambda threads: CPU)


def _columns(path: Path, device: Device) -> list[tuple[str, str | None, str]]:
    columns = columns_of(BuildContext().plan(load_recipe(path)), device)
    return [(column.title, column.lowering, column.mode.arithmetic) for column in columns]


def test_columns_are_what_the_runtime_can_do(pico_recipe: Callable[..., Path]) -> None:
    gpu = LISTED["l4"].device
    assert _columns(pico_recipe(), CPU) == [
        ("fp32", "float", "fp32"),
        ("int8", "int8", "int8"),
        ("3 bits", "int4", "fp32"),
    ]
    assert _columns(pico_recipe(), gpu) == [
        ("fp16", "float", "fp16"),
        ("int8", None, "int8"),
        ("3 bits", "packed", "fp16"),
    ]
    tensorrt = {"runtime": "tensorrt", "lowering": "int4"}
    assert _columns(pico_recipe(target=tensorrt), gpu)[1:] == [("int8", "w8a8", "int8"), ("3 bits", "int4", "fp16")]


def test_bits_that_a_lowering_cannot_take(pico_recipe: Callable[..., Path]) -> None:
    wide = pico_recipe(quantize__bits=6, target__lowering="packed", **PLAIN)
    assert _columns(wide, CPU)[-1] == ("6 bits", "packed", "fp32")
    assert _columns(wide, LISTED["l4"].device)[-1] == ("6 bits", None, "fp16")
    path = pico_recipe(quantize={"bits": 32}, target__lowering="float", **PLAIN)
    assert _columns(path, CPU) == [("fp32", "float", "fp32")]


def _advice(path: Path, device: Device, tokens: int, values: int = 0) -> str | None:
    plan = BuildContext().plan(load_recipe(path))
    one = Operation("blocks.0.mlp.fc1", "linear", (MatrixProduct(tokens, 1000, 1000),), 10**6, values)
    return look_ahead(plan, [one], device, 1).advice


def test_advice(pico_recipe: Callable[..., Path]) -> None:
    gpu = LISTED["l4"].device
    assert _advice(pico_recipe(), gpu, 1) is None
    assert "compute-bound at 100000 tokens: expect no more than 1.0x" in str(_advice(pico_recipe(), gpu, 100_000))
    assert "a small part of what is moved at 1 tokens" in str(_advice(pico_recipe(), gpu, 1, values=10**8))
    unpacked = pico_recipe(target__lowering="packed")
    assert "`packed` multiplies with fp32 weights: expect no more than 1.0x" in str(_advice(unpacked, CPU, 1))


def _plan(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(commands, ["plan", "--recipe", str(path), *arguments])


def test_the_document_has_every_layer(pico_recipe: Callable[..., Path]) -> None:
    done = _plan(pico_recipe(), "--roofline", "--json", "--batch-size", "64", "--batch-size", "1")
    document: dict[str, Any] = json.loads(done.output)
    roofline = document["roofline"]
    assert roofline["device"]["name"] == "a CPU" and roofline["device"]["from"] == "measured here"
    assert [entry["batch_size"] for entry in roofline["batch_sizes"]] == [1, 64]
    for entry in roofline["batch_sizes"]:
        full, _, low = entry["predictions"]
        layers = {layer["layer"]: layer for layer in low["layers"]}
        assert {"patch_embed.proj", "blocks.1.attn.qkv", "blocks.1.attn", "head", "rest"} <= set(layers)
        assert sum(layer["ms"] for layer in layers.values()) == pytest.approx(low["ms"])
        assert low["speed_up"] == pytest.approx(full["ms"] / low["ms"])
    assert roofline["batch_sizes"][1]["advice"].startswith("compute-bound at 1088 tokens")  # 64 x 17
    assert "roofline" not in json.loads(_plan(pico_recipe(), "--json").output)


def test_the_table(pico_recipe: Callable[..., Path]) -> None:
    lines = _plan(pico_recipe(), "--roofline", "--device", "l4").output.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("roofline of NVIDIA L4"))
    text = "\n".join(lines[start:])
    assert "NVIDIA L4 Tensor Core GPU data sheet" in text and "300 GB/s; fp16 121 T/s" in text
    assert "torch-cuda: no lowering does that" in text and "batch size 1" in text
    assert "blocks.1" not in "\n".join(lines), "tensors are those of `plan` alone"
    assert "launching" in text, "a tiny model is not what keeps a GPU busy"
    (row,) = [line.split() for line in lines[start:] if line.startswith("attn.qkv")]
    assert row[1] == "2" and row[3::2] == ["memory"] * 3
    (over,) = [line.split() for line in lines[start:] if line.startswith("over fp16")]
    assert over[2] == "1.00x" and float(over[3].removesuffix("x")) > 1
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--roofline", "--device", "b100"], "no device `b100`"),
        (["--device", "l4"], "--device and --batch-size say what to predict for"),
        (["--batch-size", "4"], "--device and --batch-size say what to predict for"),
    ],
)
def test_refusals(pico_recipe: Callable[..., Path], arguments: list[str], says: str) -> None:
    error = _plan(pico_recipe(), *arguments).exception
    assert isinstance(error, RecipeError) and says in error.message


def test_a_gpu_that_is_not_here_must_be_named(
    monkeypatch: pytest.MonkeyPatch, pico_recipe: Callable[..., Path]
) -> None:
    monkeypatch.setattr(devices, "find_gpu_here", lambda: None)
    path = pico_recipe(target={"runtime": "torch-cuda", "lowering": "packed"})
    error = _plan(path, "--roofline").exception
    assert isinstance(error, RecipeError) and "`torch-cuda` needs a GPU" in error.message and "l40s" in error.hint
    monkeypatch.setattr(devices, "find_gpu_here", lambda: LISTED["t4"])
    assert "roofline of NVIDIA T4" in _plan(path, "--roofline").output
    assert "roofline of a CPU, 3 threads (measured here)" in _plan(path, "--roofline", "--device", "cpu").output
