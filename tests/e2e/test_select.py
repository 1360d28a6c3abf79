"""`build` with `select` and `gates`: what is shipped, what the bundle says of it, and what may be released."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.bundle.bundle import Bundle

Run = Callable[..., tuple[int, str, str]]
Write = Callable[..., Path]

DIGITS = {"dataset": "tiny/realdigits", "limit": 60}
IMAGES = {"dataset": "tiny/realdigits", "split": "val", "limit": 40}
SELECT = {"lambda": None, "select": {"lambdas": [0.0, 0.5, 1.0]}}


@pytest.fixture
def built(run: Run, pico_recipe: Write, tmp_path: Path) -> Callable[..., tuple[int, Path, str]]:
    def build(**overrides: Any) -> tuple[int, Path, str]:
        code, out, err = run("build", "--recipe", pico_recipe(**overrides), "-o", tmp_path / "bundle", "--quiet")
        return code, tmp_path / "bundle", out + err

    return build


def test_a_selected_bundle_says_how_it_was_chosen(built: Callable[..., tuple[int, Path, str]], run: Run) -> None:
    code, path, log = built(**SELECT, images=IMAGES, evaluate=DIGITS)
    assert code == 0, log
    bundle = Bundle.open(path)
    selection = bundle.manifest.selection
    assert selection is not None
    assert (selection.selecting, selection.confirming, selection.on) == (20, 20, "engine")
    scores = {entry.name: entry.score for entry in selection.confirmed}
    assert scores[selection.shipped] == min(scores.values())
    assert bundle.recipe.lam == bundle.manifest.lam
    assert bundle.manifest.unverified is None
    assert json.loads((path / "report.json").read_bytes())["selected"] == selection.shipped
    assert run("verify", path, "--release")[0] == 0


def test_a_patch_without_images_is_unverified_and_lambda_0_lies_beside_it(
    built: Callable[..., tuple[int, Path, str]], run: Run
) -> None:
    code, path, log = built()
    assert code == 0, log
    assert "unverified patch" in log
    bundle = Bundle.open(path)
    assert bundle.manifest.unverified is not None
    assert {"lambda0/model.onnx", "lambda0/weights.qvec.safetensors"} <= set(bundle.manifest.files)
    code, _, err = run("verify", path, "--release")
    assert code == 3
    assert "is unverified" in err
    assert "--accept-unverified" in err
    assert run("verify", path, "--release", "--accept-unverified")[0] == 0


def test_the_engine_at_lambda_0_is_an_engine(built: Callable[..., tuple[int, Path, str]]) -> None:
    from qvec_deploy.bench.parity import check_parity, read_reference
    from qvec_deploy.runtimes.registry import find_runtime

    _, path, _ = built()
    with find_runtime("onnxruntime").load().open(path / "lambda0", "int4", 1) as session:
        assert check_parity(session, "onnxruntime", "int4", read_reference(path / "lambda0")).relative_error < 1e-5


def test_a_missed_gate_is_exit_3_and_the_bundle_stays(built: Callable[..., tuple[int, Path, str]], run: Run) -> None:
    gates = {"max_stored_bits": 3.0, "max_top1_drop": 100.0}
    code, path, log = built(gates=gates, evaluate=DIGITS)
    assert code == 3, log
    assert "misses 1 of 2 gates: max_stored_bits" in log
    passed = {gate.name: gate.passed for gate in Bundle.open(path).manifest.gates}
    assert passed == {"max_stored_bits": False, "max_top1_drop": True}
    code, _, err = run("verify", path, "--release")
    assert (code, "misses 1 of 2 gates" in err) == (3, True)
    assert run("verify", path)[0] == 0


def test_gates_name_methods_that_become_candidates(built: Callable[..., tuple[int, Path, str]]) -> None:
    code, path, log = built(gates={"beats": ["lambda0", "mse"]}, evaluate=DIGITS)
    assert code in (0, 3), log
    names = [entry["name"] for entry in json.loads((path / "report.json").read_bytes())["candidates"]]
    assert names == ["float", "ptq", "mse", "pico"]
    assert [gate.name for gate in Bundle.open(path).manifest.gates] == ["beats lambda0", "beats mse"]


def test_best_builds_every_method_under_its_own_name(built: Callable[..., tuple[int, Path, str]]) -> None:
    """Whatever the recipe is called; and what is shipped is compared with its own method at lambda 0."""
    select = {"by": "best", "methods": ["rtn", "mse"], "lambdas": [0.0, 1.0]}
    code, path, log = built(**{"lambda": None}, select=select, images=IMAGES, evaluate=DIGITS, name="mse")
    assert code == 0, log
    bundle = Bundle.open(path)
    selection = bundle.manifest.selection
    assert selection is not None
    names = [entry.name for entry in selection.confirmed]
    assert len(set(names)) == len(names)
    assert {"rtn", "mse"} <= set(names) <= {"rtn", "rtn_patched", "mse", "mse_patched"}
    report = json.loads((path / "report.json").read_bytes())
    roles = {entry["name"]: entry["role"] for entry in report["candidates"]}
    assert bundle.manifest.method in selection.shipped
    assert roles[selection.shipped.removesuffix("_patched")] == "ptq"


def test_best_without_a_vector_chooses_a_method(built: Callable[..., tuple[int, Path, str]]) -> None:
    select = {"by": "best", "methods": ["rtn", "mse"]}
    code, path, log = built(**{"lambda": None}, select=select, vector=None, images=IMAGES)
    assert code == 0, log
    assert Bundle.open(path).manifest.lam == 0
    assert Bundle.open(path).manifest.unverified is None


def test_generated_images_verify_nothing(built: Callable[..., tuple[int, Path, str]]) -> None:
    images = {"dataset": "generated/structured", "limit": 40}
    code, path, log = built(**SELECT, images=images)
    assert code == 0, log
    manifest = Bundle.open(path).manifest
    assert (manifest.unverified is None) == (manifest.lam == 0)


def test_images_that_nobody_looked_at_verify_nothing(built: Callable[..., tuple[int, Path, str]]) -> None:
    _, path, _ = built(images=IMAGES)
    assert Bundle.open(path).manifest.unverified is not None


def test_lambda_0_beside_an_unverified_patch_is_of_the_same_method(
    built: Callable[..., tuple[int, Path, str]], run: Run, pico_recipe: Write, tmp_path: Path
) -> None:
    settings = {"quantize__method": "gptaq", "quantize__grid": "rtn"}
    _, path, _ = built(**settings)
    assert (
        run("build", "--recipe", pico_recipe(**settings, vector=None, **{"lambda": 0.0}), "-o", tmp_path / "plain")[0]
        == 0
    )
    name = "weights.qvec.safetensors"
    assert (path / "lambda0" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_too_few_images_are_refused_before_anything_is_built(
    built: Callable[..., tuple[int, Path, str]], tmp_path: Path
) -> None:
    from PIL import Image

    (tmp_path / "few" / "a").mkdir(parents=True)
    for number in range(12):  # all the same
        Image.new("RGB", (32, 32)).save(tmp_path / "few" / "a" / f"{number}.png")
    code, path, log = built(**SELECT, images={"dataset": "folder", "root": str(tmp_path / "few")})
    assert code == 2, log
    assert "has 1 different images" in log
    assert not path.exists()


def test_plan_of_a_recipe_that_selects(run: Run, pico_recipe: Write) -> None:
    code, out, err = run("plan", "--recipe", pico_recipe(**SELECT, images=IMAGES))
    assert code == 0, err
    assert "lambda chosen by the build" in out


def test_accepting_the_unverified_needs_release(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", tmp_path, "--accept-unverified")
    assert (code, "--accept-unverified goes with --release" in err) == (2, True)
