"""A float receiver that is read wrong stops the build before anything is quantized, and is warning number one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from qvec_deploy.bench import run as bench_run
from qvec_deploy.bench.run import open_images
from qvec_deploy.builder import pipeline
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.measuring import bench_options
from qvec_deploy.builder.receiver_check import check_receiver
from qvec_deploy.datasets import DataConfig, DatasetSpec
from qvec_deploy.datasets.tiny import open_tiny
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.cache import Cache
from qvec_deploy.recipe import load_recipe
from qvec_deploy.report.report_json import from_json

Run = Callable[..., tuple[int, str, str]]

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo_digits.yaml"
DIGITS = tuple("0123456789")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Twenty real digits a class, as an image folder."""
    data = open_tiny(DatasetSpec("tiny/realdigits", limit=400), DataConfig())
    images, labels = data.pixels
    kept = dict.fromkeys(DIGITS, 0)
    for pixels, label in zip(images, labels, strict=True):
        name = str(label)
        kept[name] += 1
        if kept[name] <= 20:
            (tmp_path / "digits" / "test" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "digits" / "test" / name / f"{kept[name]:02}.png")
    return tmp_path / "digits"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the candidates whose weights are written."""
    names = []
    write = pipeline.write_weights

    def noted(plan: Any, context: Any, folder: Path) -> Any:
        names.append(plan.recipe.name)
        return write(plan, context, folder)

    monkeypatch.setattr(pipeline, "write_weights", noted)
    return names


def recipe(folder: Path, digits: Path, classes: Sequence[str] | None = None, **changes: Any) -> Path:
    """The demo's receiver of digits at 4 bits, judged on an image folder."""
    receiver = yaml.safe_load(DEMO.read_text())["receiver"]
    receiver |= {"checkpoint": str(DEMO.parent / receiver["checkpoint"])}
    receiver |= {"classes": list(classes)} if classes is not None else {}
    values = {
        "version": 1,
        "name": "digits",
        "receiver": receiver | changes.pop("receiver", {}),
        "lambda": 0,
        "quantize": {"bits": 4, "method": "mse"},
        "target": {"threads": 1},
        "evaluate": {"dataset": "folder", "root": str(digits)},
        "measure": {"blocks": 2, "warmup": 0},
        **changes,
    }
    (folder / "digits.yaml").write_text(yaml.safe_dump(values))
    return folder / "digits.yaml"


@pytest.mark.parametrize("name", ["demo_3bit", "demo_digits"])
def test_bundled_receivers_are_believed(name: str, tmp_path: Path) -> None:
    """And where the images are few enough, their answers are kept: nobody asks again."""
    recipe = load_recipe(DEMO.parent / f"{name}.yaml")
    context = BuildContext(cache=Cache(tmp_path))
    images = open_images(bench_options(recipe, context.plan(recipe)), context.progress)
    assert images is not None and len(images) == {"demo_3bit": 5000, "demo_digits": 500}[name]
    receiver = pipeline.build_candidate(recipe.float_candidate(), context)
    known = check_receiver(receiver, 1, images, bench_options(recipe, context.plan(recipe)), context.progress)
    assert {key: each.count for key, each in known.items()} == ({"float": 500} if name == "demo_digits" else {})
    if known:  # where the engine cannot be opened, PyTorch answers in its place
        elsewhere = replace(receiver, missing="no GPU")
        options = bench_options(recipe, context.plan(recipe))
        again = check_receiver(elsewhere, 1, images, options, context.progress)["float"]
        assert (again.predictions == known["float"].predictions).mean() > 0.99


def test_folders_in_the_order_of_torchvision(tmp_path: Path) -> None:
    """A model whose class k is the k-th folder in plain order: 94 % that way, refused where nobody says, 9 % never."""
    names = sorted(map(str, range(21)))
    data = open_tiny(DatasetSpec("tiny/symbols", limit=420), DataConfig())
    for row, (pixels, label) in enumerate(zip(*data.pixels, strict=True)):
        path = tmp_path / "symbols" / "test" / names[label] / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    evaluate = {"evaluate.dataset": "folder", "evaluate.root": str(tmp_path / "symbols"), "evaluate.limit": None}
    recipe = load_recipe(DEMO.parent / "demo_3bit.yaml").with_overrides(evaluate, name="symbols")
    context = BuildContext(cache=Cache(tmp_path / "cache"))
    receiver = pipeline.build_candidate(recipe.float_candidate(), context)

    def checked(**changes: Any) -> float:
        changed = recipe.with_overrides({key.replace("__", "."): each for key, each in changes.items()}, name="symbols")
        options = bench_options(changed, context.plan(changed))
        images = open_images(options, context.progress)
        assert images is not None
        return check_receiver(receiver, 1, images, options, context.progress)["float"].top1

    with pytest.raises(RecipeError, match="class 2 is `2` as timm orders the folders, and `10` as torchvision's"):
        checked()
    assert checked(evaluate__class_order="plain") == checked(receiver__classes=names) == pytest.approx(0.94, abs=0.02)
    with pytest.raises(IncompatibleError, match=r"In 19 of 21 classes .* and 14 more\. Read so, top-1 is 9") as caught:
        checked(evaluate__class_order="natural")
    assert caught.value.hint.startswith("Check in this order: the order of the classes")


SHIFTED = (*DIGITS[1:], "0")


def test_names_in_the_wrong_order_stop_the_build(run: Run, tmp_path: Path, digits: Path, made: list[str]) -> None:
    code, _, err = run("build", "--recipe", recipe(tmp_path, digits, SHIFTED), "-o", tmp_path / "out", "--quiet")
    assert code == 4 and made == ["float"] and not (tmp_path / "out").exists()
    assert "the float receiver's answers do not fit the labels (answers of other classes); nothing was quantized" in err
    assert "In 10 of 10 classes" in err and err.count(" where the label says `") == 5 and "and 5 more" in err
    assert "always the class 1 place on. Read so, top-1 is 9" in err
    assert "hint: Check in this order: the order of the classes (receiver.classes" in err and "--accept-float" in err


def test_wrong_preprocessing_stops_the_build(run: Run, tmp_path: Path, digits: Path, made: list[str]) -> None:
    path = recipe(tmp_path, digits, receiver={"preprocessing": {"mean": [1.0], "std": [0.001]}})
    code, _, err = run("build", "--recipe", path, "-o", tmp_path / "out", "--quiet")
    assert code == 4 and made == ["float"] and not (tmp_path / "out").exists()
    assert "hint: Check in this order: receiver.preprocessing, the order of the classes" in err


def test_who_accepts_it_is_warned_first(run: Run, tmp_path: Path, digits: Path) -> None:
    path, out = recipe(tmp_path, digits, SHIFTED), tmp_path / "out"
    code, text, _ = run("build", "--recipe", path, "-o", out, "--quiet", "--accept-float")
    assert code == 0 and text.startswith("You decide: float may be read wrong (answers of other classes)")
    assert text.partition("warning: ")[2].startswith("answers of other classes (1). Check in this order")
    assert "  float: In 10 of 10 classes" in text
    first = json.loads((out / "report.json").read_bytes())["warnings"][0]
    assert (first["warning"], first["subject"]) == ("answers of other classes", "float")
    assert yaml.safe_load((out / "recipe.yaml").read_text())["evaluate"]["accept_float"] is True
    code, text, _ = run("bench", out, "--blocks", 2, "--quiet")
    assert code == 0 and "warning: answers of other classes" in text


def test_a_receiver_that_is_read_right_is_asked_once(
    run: Run, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], list[str]]] = []
    measure = bench_run.measure_answers

    def noted(sessions: Any, images: Any, batch: int, progress: Any, journal: Any, known: Any) -> Any:
        asked.append((sorted(sessions), sorted(known)))
        return measure(sessions, images, batch, progress, journal, known)

    monkeypatch.setattr(bench_run, "measure_answers", noted)
    (digits / "test" / "notes.txt").write_text("of nobody")
    names = [*DIGITS[:9], "9"]
    code, text, err = run("build", "--recipe", recipe(tmp_path, digits, names), "-o", tmp_path / "out", "--quiet")
    assert code == 0, err
    assert asked == [(["digits", "float"], ["float"])]
    report = from_json((tmp_path / "out" / "report.json").read_bytes())
    accuracy = report["float"].accuracy
    assert accuracy is not None and accuracy.count == 200 and accuracy.correct > 180
    assert report.class_names == DIGITS
    assert "files left aside" in text and "notes.txt" in text
    assert report.warnings[0].detail == "1 file is left aside (1 .txt), such as notes.txt."
