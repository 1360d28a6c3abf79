"""From a recipe to a released bundle on a pico model: the whole main job, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from manifests import edit_manifest

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.io.files import sha256_file
from qvec_deploy.packed import PackedFile, unpack
from qvec_deploy.quantize import reference
from qvec_deploy.report.report_json import from_json
from qvec_deploy.runtimes.registry import find_runtime
from qvec_deploy.tensors import Scheme

FILES = {
    "manifest.json",
    "model.onnx",
    "parity.safetensors",
    "predictions.safetensors",
    "recipe.yaml",
    "report.html",
    "report.json",
    "report.md",
    "structure.json",
    "weights.qvec.safetensors",
}


def _images(folder: Path, classes: int) -> Path:
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(classes):
        place = folder / "test" / f"class{label}"
        place.mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{index}.png")
    return folder


@pytest.mark.usefixtures("nothing_shared")
def test_the_main_job(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_states: dict[str, Any], run: Callable[..., Any]
) -> None:
    root = _images(tmp_path / "images", 10)
    variants = [
        {"name": "mse", "set": {"lambda": 0, "vector": None, "quantize.method": "mse"}},
        {"name": "random", "set": {"vector.control": {"kind": "random", "seed": 1}}},
        {"name": "int8", "set": {"target.lowering": "int8"}},
        {"name": "packed", "set": {"target.lowering": "packed"}},
    ]
    recipe = pico_recipe(evaluate={"dataset": "folder", "root": str(root)}, variants=variants)
    out = tmp_path / "bundle"
    code, text, log = run("build", "--recipe", recipe, "-o", out)
    assert code == 0, log
    assert {path.name for path in out.iterdir()} == FILES
    assert "report" in text and "random" in text

    report = from_json((out / "report.json").read_bytes())
    assert [c.name for c in report.candidates] == ["float", "ptq", "mse", "random", "int8", "packed", "pico"]
    assert report.images == 20 and all(c.accuracy is not None for c in report.candidates)
    assert [c.role for c in report.candidates][:2] == ["float", "ptq"] and report["pico"].role == "patched"

    # The bundle's weights are the patched weights on the grid, by the numpy oracle.
    weights = PackedFile.open(out / "weights.qvec.safetensors")
    name = "blocks.1.mlp.fc2.weight"
    rho = pico_states["qat"][name] - pico_states["fp"][name]
    expected = reference.quantize(pico_states["receiver"][name] + np.float32(1.0) * rho, Scheme(3, "channel"))
    actual = unpack(weights.packed(name))
    np.testing.assert_array_equal(actual.codes, expected.codes)
    np.testing.assert_array_equal(actual.scale, expected.scale)
    np.testing.assert_array_equal(weights.array("head.weight"), pico_states["receiver"]["head.weight"])

    # A stock ONNX Runtime opens the pair of files and agrees with the bundle's own session.
    bundle = Bundle.open(out)
    stock = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    images = parity_images(bundle.manifest.model.input_shape)
    with bundle.session() as session:
        np.testing.assert_allclose(session.run(images), stock.run(None, {"images": images})[0], rtol=1e-3, atol=1e-4)

    code, text, _ = run("verify", out)
    assert code == 0 and "parity" in text
    code, text, _ = run("inspect", out, "--json")
    assert code == 0 and json.loads(text)["lam"] == 1.0
    assert str(bundle.recipe.vector.files[0]) in json.loads(text)["sources"]  # type: ignore[union-attr]
    assert json.loads(text)["vectors"] == [{"name": str(bundle.recipe.vector.files[0]), "weight": 1.0}]  # type: ignore[union-attr]
    code, text, _ = run("bench", out, "--lowering", "int4", "--lowering", "int8", "--blocks", 2, "--json")
    assert code == 0
    assert [c["name"] for c in json.loads(text)["candidates"]] == ["pico int4", "pico int8"]


@pytest.mark.usefixtures("nothing_shared")
def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]
) -> None:
    recipe = pico_recipe(quantize__method="mse", vector=None, **{"lambda": 0})
    for name in ("a", "b"):
        assert run("build", "--recipe", recipe, "-o", tmp_path / name, "--quiet")[0] == 0
    for name in ("weights.qvec.safetensors", "model.onnx", "recipe.yaml", "parity.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_lambda_zero_is_plain_ptq(tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]) -> None:
    assert run("build", "--recipe", pico_recipe(), "--set", "lambda=0", "-o", tmp_path / "a", "--quiet")[0] == 0
    assert run("build", "--recipe", pico_recipe(vector=None, **{"lambda": 0}), "-o", tmp_path / "b", "--quiet")[0] == 0
    weights = "weights.qvec.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_donor_checkpoints_equal_their_vector(
    tmp_path: Path, pico_recipe: Callable[..., Path], pico_folder: Path, run: Callable[..., Any]
) -> None:
    donors = {
        "donors": [{"fp": str(pico_folder / "fp.safetensors"), "qat": str(pico_folder / "qat.safetensors")}],
        "scheme": {"bits": 3, "granularity": "channel"},
    }
    assert run("build", "--recipe", pico_recipe(), "-o", tmp_path / "a", "--quiet")[0] == 0
    assert run("build", "--recipe", pico_recipe(vector=donors), "-o", tmp_path / "b", "--quiet")[0] == 0
    weights = "weights.qvec.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_a_runtime_that_is_not_here_leaves_a_marked_bundle(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]
) -> None:
    recipe = pico_recipe(target={"runtime": "tensorrt", "lowering": "packed"})
    out = tmp_path / "bundle"
    code, _, log = run("build", "--recipe", recipe, "-o", out)
    assert code == 4 and "engine" in log
    written = {path.name for path in out.iterdir()}
    without = {name for name in FILES if not name.startswith(("report", "predictions"))}
    assert written == without | {"lambda0", "kernels.json.gz"}
    assert json.loads((out / "manifest.json").read_text())["engine"]["missing"]
    code, text, _ = run("verify", out)
    assert code == 0 and "not built" in text
    assert run("bench", out)[0] == 4


@pytest.mark.slow
def test_an_engine_that_is_built_for_gpus_elsewhere(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]
) -> None:
    """The bundle is whole, says that nothing was run, and is not released like that."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    if find_runtime("tensorrt-rtx").missing("int4") is None:
        pytest.skip("here is a GPU that runs it")
    engine = {"compute_capabilities": [8.9]}
    recipe = pico_recipe(
        target={"runtime": "tensorrt-rtx", "lowering": "int4", "engine": engine}, gates={"min_speedup": 2}
    )
    out = tmp_path / "bundle"
    code, text, log = run("build", "--recipe", recipe, "-o", out)
    assert code == 0 and "engine  built, and not run here: " in text, log
    manifest = json.loads((out / "manifest.json").read_text())
    delta, sidecar = "engine.int4.b1-8.plan.delta", "engine.int4.b1-8.plan.json"
    assert {delta, sidecar} <= set(manifest["files"])
    assert manifest["engine"]["missing"] is None and manifest["engine"]["not_run"]
    assert manifest["parity"] is None and manifest["gates"] == []
    code, text, _ = run("verify", out)
    assert code == 0 and "built, but not run here" in text
    assert "engines" in text and "as built" in text and "and the weights" in text
    code, _, log = run("bench", out)
    assert code == 4 and "has an engine, but it cannot run here: " in log
    code, text, _ = run("compile", out, "--batch-size", "16", "--quiet")
    assert code == 0 and "int4: built, and not run here: " in text
    manifest = json.loads((out / "manifest.json").read_text())
    engines = {name for name in manifest["files"] if name.endswith(".delta")}
    assert engines == {"engine.int4.b1-16.plan.delta", "lambda0/engine.int4.b1-16.plan.delta"}
    assert manifest["engine"]["missing"] is None and manifest["engine"]["not_run"] and manifest["parity"] is None
    assert run("verify", out)[0] == 0
    code, text, _ = run("compile", out, "--json")  # as the recipe says, so as before
    (compiled,) = json.loads(text)["compiled"]
    assert code == 0 and compiled["parity"] is None and compiled["not_run"]
    manifest = json.loads((out / "manifest.json").read_text())
    code, _, log = run("verify", "--release", out)
    assert code == 4 and "never run" in log
    plain = tmp_path / "engine.plan"
    code, text, _ = run("export", out, "--format", "engine", "-o", plain)
    assert code == 0 and "int4, batch 1-8" in text
    assert sha256_file(plain) == json.loads((out / sidecar).read_text())["sha256"]
    assert (out / delta).stat().st_size < plain.stat().st_size / 10
    with (out / delta).open("r+b") as file:
        file.seek(1000)
        file.write(b"changed!")
    assert run("verify", out)[0] == 5
    assert run("export", out, "--format", "engine", "-o", plain, "--force")[0] == 5
    manifest["files"][delta]["sha256"] = sha256_file(out / delta)  # and the manifest with it
    edit_manifest(out, files=manifest["files"])
    code, _, log = run("verify", out)
    assert code == 5 and "delta is damaged" in log


@pytest.mark.slow
def test_accuracy_of_engines_that_cannot_run_here(
    tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]
) -> None:
    """It is computed in their number formats, said to be, and judges no gate."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    if find_runtime("tensorrt-rtx").missing("int4") is None:
        pytest.skip("here is a GPU that runs it")
    recipe = pico_recipe(
        target={"runtime": "tensorrt-rtx", "lowering": "nvfp4", "calibrator": "percentile"},
        evaluate={"dataset": "folder", "root": str(_images(tmp_path / "images", 10)), "accept_float": True},
        variants=[{"name": "int4", "set": {"target.lowering": "int4"}}],
        gates={"max_top1_drop": 100},
    )
    out = tmp_path / "bundle"
    code, text, log = run("build", "--recipe", recipe, "-o", out)
    assert code == 0, log
    assert "warning: emulated, not run (4)." in text
    report = from_json((out / "report.json").read_text())
    assert all(candidate.emulated and candidate.accuracy is not None for candidate in report.candidates)
    assert not any(candidate.latency or candidate.footprint for candidate in report.candidates)
    assert report.gates == ()
    products = report["pico"].products
    assert len(products) == 8 and all("FP4E2M1" in each.constants and each.fused for each in products)
    assert {"Half"} == {each.inputs[0] for each in report["int4"].products}
    manifest = json.loads((out / "manifest.json").read_text())
    assert [each["linear"] for each in manifest["engine"]["products"]] == [each.linear for each in products]
    for page in ("report.html", "report.md"):
        shown = (out / page).read_text()
        assert "emulated, not run" in shown and "Matrix products of the engines" in shown
    assert run("verify", out)[0] == 0


@pytest.mark.parametrize(
    ("wanted", "says"), [([8.9, 8.9], "was given 8.9 twice"), ([9.0], "does not build for compute capability 9.0")]
)
def test_capabilities_are_refused_by_plan(
    pico_recipe: Callable[..., Path], run: Callable[..., Any], wanted: list[float], says: str
) -> None:
    target = {"runtime": "tensorrt-rtx", "lowering": "int4", "engine": {"compute_capabilities": wanted}}
    code, _, log = run("plan", "--recipe", pico_recipe(target=target))
    assert code == 4 and says in log


def test_force_replaces_a_bundle(tmp_path: Path, pico_recipe: Callable[..., Path], run: Callable[..., Any]) -> None:
    recipe, out = pico_recipe(vector=None, **{"lambda": 0}), tmp_path / "bundle"
    assert run("build", "--recipe", recipe, "-o", out, "--quiet")[0] == 0
    first = (out / "manifest.json").read_bytes()
    assert run("build", "--recipe", recipe, "-o", out, "--quiet")[0] == 6
    assert (out / "manifest.json").read_bytes() == first
    code, text, _ = run(
        "build", "--recipe", recipe, "-o", out, "--quiet", "--force", "--set", "quantize.bits=2", "--json"
    )
    assert code == 0 and json.loads(text)["recipe"] == "pico"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["quantize"]["bits"] == 2
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_plan_reads_no_weights(
    pico_recipe: Callable[..., Path], run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qvec_deploy.io.checkpoint import Checkpoint

    def refuse(self: Checkpoint, name: str) -> None:
        raise AssertionError(f"read {name}")

    monkeypatch.setattr(Checkpoint, "read", refuse)
    code, text, _ = run("plan", "--recipe", pico_recipe())
    assert code == 0 and "blocks.1.mlp.fc2.weight" not in text
    code, text, _ = run("plan", "--recipe", pico_recipe(), "--tensors")
    assert code == 0 and "blocks.1.mlp.fc2.weight" in text
    code, text, _ = run("plan", "--recipe", pico_recipe(), "--json")
    document = json.loads(text)
    assert code == 0 and sum(tensor["scheme"] is not None for tensor in document["tensors"]) == 8
    assert not any(tensor["patched"] for tensor in document["tensors"] if tensor["name"].startswith("head."))


def test_doctor_and_schema(run: Callable[..., Any]) -> None:
    code, text, _ = run("doctor", "--json")
    found = json.loads(text)
    assert code == 0 and found["runtimes"]["onnxruntime"]["works"] is True
    assert found["runtimes"]["tensorrt"]["works"] is False
    code, text, _ = run("doctor")
    assert code == 0 and "int4" in text
    code, text, _ = run("schema")
    assert code == 0 and "lambda" in json.loads(text)["properties"]


@pytest.mark.parametrize("name", ["vector.safetensors", "receiver.safetensors"])
def test_inspect_files(pico_folder: Path, run: Callable[..., Any], name: str) -> None:
    code, text, _ = run("inspect", pico_folder / name, "--json")
    kind = {"vector.safetensors": "quantization vector", "receiver.safetensors": "checkpoint"}[name]
    assert code == 0 and json.loads(text)["kind"] == kind
    assert run("inspect", pico_folder / name)[0] == 0


def test_doctor_says_how_to_get_every_runtime(run: Callable[..., Any]) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    found = json.loads(run("doctor", "--json")[1])["runtimes"]
    assert set(found) == {"onnxruntime", "torch-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"}
    for name, runtime in found.items():
        assert f"runtime {name}: " in out
        assert runtime["builds"] or runtime["remedy"] in out  # brackets and all
