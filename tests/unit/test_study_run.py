"""A study's runs: what is missing is made, what fails is named, trainings resume, and documents read back."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_here import Ends, Here, in_this_process
from study_recipes import VALUES, hub_study, write_hub, write_study

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.donors.train_config import TrainConfig
from qvec_deploy.errors import (
    FetchError,
    IncompatibleError,
    IntegrityError,
    StorageError,
)
from qvec_deploy.jobs.job import perform
from qvec_deploy.research.study import trainings as training
from qvec_deploy.research.study.cell_values import Relation
from qvec_deploy.research.study.study_documents import cell_json, read_cell, read_study
from qvec_deploy.research.study.study_node import StudyNode
from qvec_deploy.research.study.study_recipe import load_study
from qvec_deploy.research.study.study_run import plan_study, run_study
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.research.study.study_tasks import BaseTask
from qvec_deploy.tensors import Scheme

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    with in_this_process(monkeypatch) as executor:
        yield executor


def test_what_is_missing_is_made_and_nothing_else(tmp_path: Path, here: Here) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    assert plan_study(recipe, out)["kinds"]["fp"] == {"total": 2, "done": 0, "mean_seconds": None}
    first = run_study(recipe, out)
    assert first["exit_code"] == 0 and len(here.did) == 1 + 2 + 2 + 2 + 2
    assert first["counts"]["cell"] == {"total": 2, "made": 2}
    planned = plan_study(recipe, out)
    assert planned["seconds_left"] == 0 and planned["pairs"] == 2
    assert sorted(path.name for path in (out / "cells").iterdir()) == [
        "pico-3bit_tensor_mse-seed1-lower.json",
        "pico-3bit_tensor_mse-seed1-realdigits.json",
    ]
    assert not list((out / "work").iterdir())

    again = run_study(recipe, out)
    assert len(here.did) == 9 and again["counts"]["qat"] == {"total": 2, "kept": 2}
    assert again["summed_seconds"] == first["summed_seconds"]

    # A change costs what it touches; documents are those of the recipe that ran last.
    changed = load_study(write_study(tmp_path, seeds=[2]))
    assert plan_study(changed, out)["kinds"]["base"]["done"] == 1
    run_study(changed, out)
    assert len(here.did) == 9 + 8
    assert {path.name.split("-")[2] for path in (out / "cells").iterdir()} == {"seed2"}
    run_study(recipe, out)
    assert len(here.did) == 9 + 8

    # What was damaged or deleted is made anew, from the shelf or from nothing, as soon as it is needed.
    (weights,) = out.glob("files/fp-pico-lower-seed1-*/fp.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])  # a hard link: the shelf's copy is damaged too
    (vector,) = out.glob("files/vector-pico-realdigits-*-seed1-*")
    shutil.rmtree(vector)
    run = run_study(recipe, out)
    assert len(here.did) == 17 and run["counts"]["fp"] == {"total": 2, "kept": 2}
    assert run["summed_seconds"] == pytest.approx(first["summed_seconds"], abs=0.2)  # but for the vector's
    assert plan_study(recipe, out)["kinds"]["fp"]["done"] == 2
    (cell,) = out.glob("files/cell-pico-lower-*-seed1-*")
    shutil.rmtree(cell)
    assert plan_study(recipe, out)["kinds"]["fp"]["done"] == 2  # the shelf has it
    (shelved,) = (path for path in out.glob("store/cell-*") if cell.name[-12:] in path.name)
    shutil.rmtree(shelved)
    assert plan_study(recipe, out)["kinds"]["fp"]["done"] == 1
    run = run_study(recipe, out)
    assert sorted(here.did[17:]) == [cell.name, weights.parent.name] and weights.read_bytes() == data
    assert run["counts"]["vector"] == {"total": 2, "kept": 2} and vector.is_dir()  # it was on the shelf
    assert run["counts"]["fp"] == {"total": 2, "kept": 1, "made": 1}


def test_weights_that_were_damaged_are_made_anew_before_they_are_worked_with(tmp_path: Path, here: Here) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    run_study(recipe, out)
    whole = _weights(out)
    (weights,) = out.glob("files/fp-pico-lower-*/fp.safetensors")
    times = weights.stat()
    weights.write_bytes(whole[weights.parent.name][:-9] + b"x" * 9)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    run_study(recipe, out)
    assert len(here.did) == 9  # nobody needs them
    run = run_study(load_study(write_study(tmp_path, testing=40)), out)
    assert run["counts"]["fp"] == {"total": 2, "kept": 1, "made": 1} and not run["failures"]
    assert len(here.did) == 9 + 1 + 2 and _weights(out) == whole


def test_a_cell_that_was_damaged_is_computed_anew(tmp_path: Path) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    run_study(recipe, out)
    (path,) = out.glob("files/cell-pico-lower-*/cell.json")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"0.5", b"0.6"))
    assert run_study(recipe, out)["counts"]["cell"] == {"total": 2, "kept": 1, "made": 1}
    assert path.read_bytes() == data


def test_a_model_under_another_name_costs_nothing(tmp_path: Path, here: Here) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    run_study(recipe, out)
    before = read_study(out)
    assert {cell.request.name for cell in before.cells} == {"pico"}
    other = load_study(write_study(tmp_path, models=[{**VALUES["models"][0], "name": "other"}]))
    planned = plan_study(other, out)
    assert all(kind["done"] == kind["total"] for kind in planned["kinds"].values()) and planned["seconds_left"] == 0
    assert not list(out.glob("files/*-other-*"))
    run = run_study(other, out)
    assert len(here.did) == 9 and all(count["total"] == count["kept"] for count in run["counts"].values())
    after = read_study(out)
    assert {cell.request.name for cell in after.cells} == {"other"} and after.fine_tunes == before.fine_tunes
    assert sorted(path.name for path in (out / "cells").iterdir()) == [
        "other-3bit_tensor_mse-seed1-lower.json",
        "other-3bit_tensor_mse-seed1-realdigits.json",
    ]
    assert {read_cell(path).request.name for path in out.glob("files/cell-*/cell.json")} == {""}
    assert [dataclasses.replace(cell.request, name="") for cell in before.cells] == [
        dataclasses.replace(cell.request, name="") for cell in after.cells
    ]


def test_another_study_in_the_folder_is_refused_before_anything_is_made(tmp_path: Path, here: Here) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    run_study(recipe, out)
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = load_study(write_study(tmp_path, name="other", seeds=[2]))
    for call in (run_study, plan_study):
        with pytest.raises(StorageError, match="holds the study `pico`, and this one is `other`") as caught:
            call(other, out)
        assert caught.value.hint == "choose another directory, or keep the name"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    (out / "run.json").write_text("{")  # of nobody any more
    assert run_study(other, out)["name"] == "other"


def test_what_a_run_leaves_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(write_study(tmp_path)), out)
    study = read_study(out)
    assert load_study(out / "study.yaml").name == study.run["name"] == "pico"
    assert study.run["versions"]["torch"] == version("torch")
    assert [(fit.kind, fit.task, fit.grid, fit.seed) for fit in study.fine_tunes] == [
        ("base", None, None, None),
        ("fp", "lower", None, 1),
        ("fp", "realdigits", None, 1),
        ("qat", "lower", Scheme(3, "tensor", method="mse"), 1),
        ("qat", "realdigits", Scheme(3, "tensor", method="mse"), 1),
    ]
    assert all(fit.seconds > 0 for fit in study.fine_tunes)
    cell = study.cells[0]
    assert cell.request.receiver.name == "lower" and cell.relations == {"x": Relation(0.5)}
    assert (out / cell.request.fp).is_file() and not Path(cell.request.fp).is_absolute()  # the folder can be moved
    (out / "cells" / "other.json").write_bytes(cell_json(cell))
    assert read_cell(out / "cells" / "other.json") == cell


def test_documents_of_another_version_or_damaged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_study(load_study(write_study(tmp_path)), out)
    path = next((out / "cells").iterdir())
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, "version": 99}))
    with pytest.raises(IncompatibleError, match="a cell of version 99"):
        read_study(out)
    path.write_text(json.dumps({**values, "images": "many"}))
    with pytest.raises(IntegrityError, match="is damaged: images"):
        read_cell(path)
    path.write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        read_cell(path)
    run = json.loads((out / "run.json").read_bytes())
    (out / "run.json").write_text(json.dumps({**run, "version": 0}))
    with pytest.raises(IncompatibleError, match=r"run\.json is of version 0"):
        read_study(out)
    with pytest.raises(StorageError, match="not the folder of a finished study"):
        read_study(tmp_path)


def test_what_runs_a_study_loads_neither_builds_nor_reports() -> None:
    """`study plan` and every worker would wait for them; and a build needs no study."""
    script = (
        "import importlib, sys\n"
        "importlib.import_module(sys.argv[1])\n"
        "print([name for name in sys.argv[2:] if name in sys.modules])\n"
    )
    for wanted, heavy in (
        (
            "research.study.study_run",
            [
                "onnx",
                "torch",
                "qvec_deploy.sweep",
                "qvec_deploy.builder.pipeline",
                "qvec_deploy.research.study.analysis.study_summary",
            ],
        ),
        ("jobs.executors", ["qvec_deploy.research.study", "ray"]),
    ):
        command = [sys.executable, "-c", script, f"qvec_deploy.{wanted}", *heavy]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_folder_that_is_not_a_studys_or_of_another_version(tmp_path: Path) -> None:
    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    with pytest.raises(StorageError, match="is not a study's folder"):
        run_study(recipe, tmp_path)
    with pytest.raises(StorageError, match="is not a study's folder"):
        plan_study(recipe, tmp_path)
    StudyStore.open(out)
    (out / "store" / "version.json").write_text('{"qvec-study-store": 2}')
    for call in (run_study, plan_study):
        with pytest.raises(IncompatibleError, match="of version 2, and this is version 1"):
            call(recipe, out)
    (out / "store" / "version.json").write_text("[]")
    with pytest.raises(IntegrityError, match="damaged"):
        run_study(recipe, out)


def test_a_node_that_fails_costs_itself_and_what_is_made_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    recipe, out, ends = load_study(write_study(tmp_path, seeds=2)), tmp_path / "out", Ends()
    real = training.fine_tune

    def short_of_memory(recipe: Any, run: str, *args: Any, **kwargs: Any) -> Any:
        if (recipe.name, run, recipe.train.seed) == ("lower", "qat", 2):
            raise MemoryError
        return real(recipe, run, *args, **kwargs)

    monkeypatch.setattr(training, "fine_tune", short_of_memory)
    outcome = run_study(recipe, out, watcher=ends)
    assert outcome["exit_code"] == 4
    failed = {end.node.name: end.because for end in ends.all if end.state == "failed"}
    origin = "qat pico lower 3bit_tensor_mse 2"
    assert failed == {
        origin: None,
        "vector pico lower 3bit_tensor_mse 2": origin,
        "cell pico lower 3bit_tensor_mse 2": origin,
        "cell pico realdigits 3bit_tensor_mse 2": origin,
    }
    assert outcome["counts"]["cell"] == {"total": 4, "made": 2, "failed": 2}
    (first, *_) = outcome["failures"]
    assert (first["message"], first["hint"]) == ("out of memory", "run fewer jobs at a time")
    assert len(read_study(out).cells) == 2  # nothing else is lost
    monkeypatch.setattr(training, "fine_tune", real)
    before = len(here.did)
    assert run_study(recipe, out)["exit_code"] == 0
    assert len(here.did) == before + 4


def test_the_exit_code_is_that_of_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(recipe: Any, run: str, *args: Any, **kwargs: Any) -> Any:
        raise StorageError("full", hint="") if recipe.name == "lower" else FetchError("gone", hint="")

    monkeypatch.setattr(training, "fine_tune", fail)
    assert run_study(load_study(write_study(tmp_path)), tmp_path / "out")["exit_code"] == 6


def test_a_study_of_released_fine_tunes(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", {"lower": 26, "realdigits": 10})
    out = tmp_path / "out"
    recipe = load_study(hub_study(tmp_path, hub))
    outcome = run_study(recipe, out)
    assert outcome["exit_code"] == 0, outcome["failures"]
    study = read_study(out)
    assert study.fine_tunes == () and len(study.cells) == 2
    assert Path(study.cells[0].request.fp).name == "classifier_epoch_7.pt"
    assert not list(out.glob("files/fp-*/*.safetensors"))  # they are read where they lie
    (gone,) = hub.glob("checkpoints/*/*/qat/*/lower/*/*/*/classifier_epoch_7.pt")
    gone.unlink()
    outcome = run_study(recipe, out)
    assert outcome["exit_code"] == 7 and outcome["failures"][0]["message"].endswith("classifier_epoch_*.pt")


def test_a_released_head_for_other_classes(tmp_path: Path) -> None:
    hub = write_hub(tmp_path / "hub", {"lower": 25, "realdigits": 10})
    outcome = run_study(load_study(hub_study(tmp_path, hub)), tmp_path / "out")
    assert outcome["exit_code"] == 4
    assert "a head for 25 classes, and the task has 26" in outcome["failures"][0]["message"]


def test_a_worker_with_other_packages_is_refused(tmp_path: Path) -> None:
    store = StudyStore.open(tmp_path / "out")
    task = BaseTask(model="m", model_args={}, skip=())
    job = StudyNode(task, {"model": "m"}, versions={"torch": "0"}).job(store.out)
    failure = perform(job.function, dict(job.arguments), lambda value: None)["failure"]
    assert failure["exit_code"] == 4 and "torch" in failure["message"]


def _weights(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("files/*/*.safetensors")}


def test_a_killed_training_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    from qvec_deploy.donors import train

    recipe = load_study(write_study(tmp_path))
    run_study(recipe, tmp_path / "whole")
    real, seen = train.rate, []

    def interrupt(step: int, hyper: TrainConfig) -> float:
        seen.append(step)
        if len(seen) in (4, 12):  # once in the base, once in a fine-tune
            raise KeyboardInterrupt
        return real(step, hyper)

    monkeypatch.setattr(train, "rate", interrupt)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, tmp_path / "killed")
    run_study(recipe, tmp_path / "killed")
    assert seen[:6] == [0, 1, 2, 3, 2, 3]  # a state is saved every second step
    assert len(seen) == 4 + 4 * 6 + 2 + 2  # and each kill costs less than two
    assert _weights(tmp_path / "killed") == _weights(tmp_path / "whole")


@pytest.mark.parametrize("name", ["qat.safetensors", "settings.json"])
def test_a_damaged_state_costs_its_training_alone(
    name: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qvec_deploy.donors import train

    recipe, out = load_study(write_study(tmp_path)), tmp_path / "out"
    real, seen = train.rate, []

    def interrupt(step: int, hyper: TrainConfig) -> float:
        seen.append(step)
        if here.did[-1].startswith("qat-") and step == 4:
            raise KeyboardInterrupt
        return real(step, hyper)

    with monkeypatch.context() as patch:
        patch.setattr(train, "rate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, out)
    (damaged,) = out.glob(f"work/qat-*/.state/{name}")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert run_study(recipe, out)["exit_code"] == 0
    assert f"{name} is damaged" in (said := capsys.readouterr().err) and "begins again" in said
    run_study(recipe, tmp_path / "whole")
    assert _weights(out) == _weights(tmp_path / "whole")


def test_fine_tunes_are_those_of_a_donor(tmp_path: Path) -> None:
    """A few steps of study_tiny.yaml's fine-tunes: byte for byte what `donor train` makes of the same base."""
    from finetuning import finetune
    from safetensors.numpy import load_file

    from qvec_deploy.donors.finetune import Base

    bundled = Path(__file__).parents[2] / "recipes" / "study_tiny.yaml"
    model = load_study(bundled).models[0].model_dump(mode="json", exclude={"preset"})
    model |= {"name": "v", "base": {"train": {"dataset": "tiny/pairs", "steps": 3}}}
    recipe = load_study(
        bundled,
        [f"models={json.dumps([model])}", "train.steps=10", "train.warmup_steps=1", "seeds=[4]",
         "tasks.only=[lower, upper]", "grids=[{bits: 2, clip_every: 2}]", "inputs=[images]"],
    )  # fmt: skip
    run_study(recipe, tmp_path / "out")
    hyper = dataclasses.replace(TrainConfig(), steps=10, clip_every=2)
    data = open_dataset(DatasetSpec("tiny/lower", "train"), DataConfig())
    (path,) = (tmp_path / "out").glob("files/base-*/base.safetensors")
    base = Base(model["timm"], load_file(path), model["model_args"])
    for kind, scheme in (("fp", None), ("qat", Scheme(2, "channel", method="mse"))):
        expected = finetune(base, data, scheme=scheme, hyper=hyper, seed=4, skip=("head",))
        (found,) = (tmp_path / "out").glob(f"files/{kind}-v-lower-*/{kind}.safetensors")
        _assert_same(expected, load_file(found))


def _assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)
