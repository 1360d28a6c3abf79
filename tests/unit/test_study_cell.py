"""A cell on a pico receiver: what is in it, that swapping in place gives what a build gives, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from safetensors.numpy import save_file

from qvec_deploy.builder.select.score import divergences
from qvec_deploy.builder.select.trial_model import TrialModel, at
from qvec_deploy.builder.weights import load_model, make_weights
from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
from qvec_deploy.errors import IncompatibleError, QvecError, RecipeError, StorageError
from qvec_deploy.research.study.cell import TrialLog, compute_cell
from qvec_deploy.research.study.cell_network import open_request
from qvec_deploy.research.study.cell_values import (
    Cell,
    CellRequest,
    DonorFiles,
    TaskData,
    Trial,
    planned_trials,
    unpack_right,
)
from qvec_deploy.tensors import Float32, QuantizedTensor, Scheme
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.vector_file import QuantizationVector

pytestmark = pytest.mark.slow

State = dict[str, np.ndarray]
GRID = Scheme(3, "channel", method="mse")
DIGITS = TaskData("digits", "tiny/realdigits")
SELECTING, TESTING = 16, 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _near(state: State, seed: int, size: float) -> State:
    generator = np.random.default_rng(seed)
    return {name: (v + generator.normal(0, size, v.shape)).astype(np.float32) for name, v in state.items()}


def _donor(folder: Path, task: str, base: State, seed: int, grid: Scheme = GRID) -> DonorFiles:
    fp = _near(base, seed, 0.02)
    save_file(fp, folder / f"fp_{task}.safetensors")
    moments = {
        name.removesuffix(".weight"): np.eye(value.shape[1], dtype=np.float32)
        for name, value in fp.items()
        if value.ndim == 2 and name.startswith("blocks.")
    }
    vector = folder / f"vector_{task}.safetensors"
    extract_vector(
        fp, _near(fp, seed + 1, 0.02), vector, scheme=grid, skip=("head",), task=task, seed=0, moments=moments
    )
    return DonorFiles(task, str(vector), str(folder / f"fp_{task}.safetensors"), TaskData(task, f"tiny/{task}"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pico_states: dict[str, State]) -> Path:
    folder = tmp_path_factory.mktemp("cell")
    base = _near(pico_states["receiver"], 20, 0.01)
    save_file(base, folder / "base.safetensors")
    save_file(pico_states["receiver"], folder / "receiver.safetensors")
    save_file(_near(pico_states["receiver"], 21, 0.01), folder / "own_qat.safetensors")
    for task, seed in (("lower", 30), ("symbols", 40)):
        _donor(folder, task, base, seed)
    return folder


@pytest.fixture(scope="module")
def request_(files: Path) -> CellRequest:
    donors = tuple(
        DonorFiles(
            task,
            str(files / f"vector_{task}.safetensors"),
            str(files / f"fp_{task}.safetensors"),
            TaskData(task, f"tiny/{task}"),
        )
        for task in ("lower", "symbols")
    )
    return CellRequest(
        model=PICO_MODEL,
        model_args=dict(PICO_ARGS),
        skip=("head",),
        grid=GRID,
        seed=0,
        receiver=DIGITS,
        fp=str(files / "receiver.safetensors"),
        own_qat=str(files / "own_qat.safetensors"),
        base=str(files / "base.safetensors"),
        donors=donors,
        methods=("gptq", "gptaq"),
        inputs=("images", "moments"),
        lambdas=(-0.5, 0.0, 0.5, 1.0),
        controls=("random", "shuffle", "task_vector", "gptq_displacement"),
        selecting=SELECTING,
        testing=TESTING,
    )


@pytest.fixture(scope="module")
def cell(request_: CellRequest) -> Cell:
    return compute_cell(request_)


def _of(cell: Cell, **wanted: Any) -> list[Trial]:
    return [t for t in cell.trials if all(getattr(t, name) == value for name, value in wanted.items())]


def _images(split: Any, count: int) -> tuple[list[Float32], np.ndarray]:
    """Drawn apart from the code under test."""
    pairs = list(batches(open_dataset(DatasetSpec("tiny/realdigits", split, limit=count), DataConfig()), 50))
    return [images for images, _ in pairs], np.concatenate([labels for _, labels in pairs])


def _expected(request_: CellRequest, lam: float, weights: list[float]) -> tuple[list[bool], float, int]:
    """What a network made for this one candidate says: from recipe, plan and files to answers."""
    opened = open_request(request_)
    made = make_weights(at(opened.plan, lam, weights), opened.receiver, opened.sources)
    state = {name: w.dequantize() if isinstance(w, QuantizedTensor) else w for name, w in made.tensors}
    receiver = load_model(opened.plan, ((name, opened.receiver.read(name)) for name in state))
    model = load_model(opened.plan, state.items())
    (selecting,), chosen = _images("val", SELECTING)
    (testing,), judged = _images("test", TESTING)
    with torch.inference_mode():
        seen, wanted = (network(torch.from_numpy(selecting)).numpy() for network in (model, receiver))
        right = (model(torch.from_numpy(testing)).argmax(1).numpy() == judged).tolist()
    return right, float(divergences(wanted, seen).mean()), int((seen.argmax(1) == chosen).sum())


@pytest.mark.parametrize(
    ("found", "lam", "weights"),
    [
        ({"kind": "plain", "method": "mse"}, 0.0, [1.0, 0.0]),
        ({"kind": "pair", "donor": "lower", "lam": -0.5}, -0.5, [1.0, 0.0]),
        ({"kind": "pair", "donor": "symbols", "lam": 1.0}, 1.0, [0.0, 1.0]),
        ({"kind": "mean", "lam": 0.5, "inputs": None}, 0.5, [0.5, 0.5]),
    ],
)
def test_swapped_in_place_answers_as_made_anew(
    cell: Cell, request_: CellRequest, found: dict[str, Any], lam: float, weights: list[float]
) -> None:
    (trial,) = _of(cell, **found)
    right, divergence, selecting_right = _expected(request_, lam, weights)
    assert unpack_right(trial.right, TESTING).tolist() == right
    assert trial.divergence == divergence and trial.selecting_right == selecting_right


def test_what_is_tried(cell: Cell) -> None:
    assert cell.images == TESTING
    assert [(t.method, t.lam) for t in _of(cell, kind="float")] == [("float", 0.0)]
    assert [t.method for t in _of(cell, kind="own_qat")] == ["mse"]
    assert sorted(t.method for t in _of(cell, kind="plain", inputs=None)) == ["mse", "rtn"]
    for donor in ("lower", "symbols"):
        assert [t.lam for t in _of(cell, kind="pair", donor=donor)] == [-0.5, 0.5, 1.0]  # lambda 0 is `plain`, once
        controls = _of(cell, kind="control", donor=donor)
        assert [t.control for t in controls] == ["random", "shuffle", "task_vector", "gptq_displacement"]
        assert {t.lam for t in controls} == {1.0} and controls[-1].inputs == "moments"
    assert [t.lam for t in _of(cell, kind="mean", inputs=None)] == [-0.5, 0.5, 1.0]
    assert set(cell.mix) == {"lower", "symbols"} and len(_of(cell, kind="mix")) == 1
    assert [(t.method, t.lam) for t in _of(cell, inputs="images")] == [
        (method, lam) for method in ("gptq", "gptaq") for lam in (0.0, 0.5, 1.0)
    ]
    of_moments = [t for t in _of(cell, inputs="moments") if t.kind != "control"]
    assert [(t.method, t.lam) for t in of_moments] == [("gptq", 0.0), ("gptq", 1.0)]


def test_what_chooses_is_looked_at(cell: Cell) -> None:
    for trial in cell.trials:
        looked_at = trial.kind not in ("own_qat", "control")
        assert (trial.divergence is not None) == (trial.selecting_right is not None) == looked_at
    assert _of(cell, kind="float")[0].divergence == 0.0
    assert all(t.divergence > 0 for t in cell.trials if t.divergence is not None and t.kind != "float")


def test_float_and_own_qat(cell: Cell, request_: CellRequest) -> None:
    opened = open_request(request_)
    (testing,), labels = _images("test", TESTING)
    model = load_model(opened.plan, ((t.name, opened.receiver.read(t.name)) for t in opened.plan.tensors))
    with torch.inference_mode():
        right = model(torch.from_numpy(testing)).argmax(1).numpy() == labels
    assert unpack_right(_of(cell, kind="float")[0].right, TESTING).tolist() == right.tolist()

    own = replace(request_, fp=str(request_.own_qat), own_qat=None, donors=(), methods=(), inputs=())
    (plain,) = _of(compute_cell(own), kind="plain", method="mse")
    assert _of(cell, kind="own_qat")[0].right == plain.right


def test_calibrated_as_a_student_calibrates(cell: Cell, request_: CellRequest) -> None:
    opened = open_request(request_)
    recipe = opened.plan.recipe.with_overrides(opened.plan.recipe.with_method("gptaq"), name="gptaq")
    selecting, _ = _images("val", SELECTING)
    testing, labels = _images("test", TESTING)
    student = TrialModel(replace(opened.plan, recipe=recipe), opened.receiver, opened.sources, selecting, selecting)
    student.load(1.0)
    right = student.run(testing).argmax(axis=1) == labels
    (trial,) = _of(cell, kind="mean", method="gptaq", lam=1.0)
    assert unpack_right(trial.right, TESTING).tolist() == right.tolist()


def test_the_same_request_gives_the_same_cell(cell: Cell, request_: CellRequest) -> None:
    again = compute_cell(request_)
    assert replace(again, seconds={}) == replace(cell, seconds={})
    assert {"prepare", "patch", "quantize", "forward", "all"} <= set(again.seconds)
    assert again.seconds["all"] >= again.seconds["forward"] > 0


class Killed(Exception):
    """Raised in the place of a kill."""


@pytest.mark.parametrize("after", [1, 13, 14])
def test_a_cell_that_was_killed_goes_on(cell: Cell, request_: CellRequest, tmp_path: Path, after: int) -> None:
    """The 14th trial is the mix, which needs answers of earlier ones."""
    assert [trial.kind for trial in cell.trials].index("mix") == 13

    def stop(value: dict[str, int]) -> None:
        assert value["total"] == len(cell.trials)
        if value["done"] == after:
            raise Killed

    with pytest.raises(Killed):
        compute_cell(request_, send=stop, log=TrialLog.open(tmp_path / "trials", "key"))
    log, sent = TrialLog.open(tmp_path / "trials", "key"), []
    assert log.trials == list(cell.trials[:after])
    before = log.seconds["forward"]
    found = compute_cell(request_, send=sent.append, log=log)
    assert [value["done"] for value in sent] == list(range(after, len(cell.trials)))
    assert replace(found, seconds={}) == replace(cell, seconds={})
    assert found.seconds["all"] >= found.seconds["forward"] > before


def test_what_is_planned_is_tried_in_that_order(cell: Cell, request_: CellRequest) -> None:
    blank = {"divergence": None, "selecting_right": None, "right": ""}
    planned = [t if t.control is None else replace(t, inputs=None) for t in cell.trials]
    assert [replace(t, **blank) for t in planned] == list(planned_trials(request_))


def test_trials_of_another_cell_or_damaged_are_not_taken(tmp_path: Path) -> None:
    log = TrialLog.open(tmp_path / "trials", "key")
    log.mix["lower"] = 0.25
    log.add(Trial("plain", "mse", 0.0, divergence=0.1, selecting_right=3, right="f0"), {"all": 1.0})
    again = TrialLog.open(tmp_path / "trials", "key")
    assert (again.trials, again.mix, again.seconds) == (log.trials, {"lower": 0.25}, {"all": 1.0})
    assert TrialLog.open(tmp_path / "trials", "another").trials == []
    data = (tmp_path / "trials").read_bytes()
    for damaged in (data[:-1], data[:10], data.replace(b"f0", b"f1"), b""):
        (tmp_path / "trials").write_bytes(damaged)
        assert TrialLog.open(tmp_path / "trials", "key").trials == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        TrialLog.open(tmp_path / "file" / "trials", "key").add(log.trials[0], {})


def test_a_clipped_grid_has_three_plain_ways(request_: CellRequest, files: Path, tmp_path: Path) -> None:
    grid = Scheme(2, "channel", clip=0.65)
    donor = _donor(tmp_path, "lower", open_request_states(files), 30, grid)
    small = replace(request_, grid=grid, donors=(donor,), methods=(), inputs=(), controls=(), lambdas=())
    found = compute_cell(small)
    assert [t.method for t in _of(found, kind="plain")] == ["grid", "rtn", "mse"]
    assert [(t.method, t.lam) for t in _of(found, kind="pair")] == [("grid", 1.0)]
    assert not _of(found, kind="mix") and not found.mix  # there is nothing to mix
    assert len({t.right + str(t.divergence) for t in _of(found, kind="plain")}) == 3


def open_request_states(files: Path) -> State:
    from safetensors.numpy import load_file

    return load_file(files / "base.safetensors")


def test_without_base_and_own_qat(request_: CellRequest) -> None:
    found = compute_cell(replace(request_, base=None, own_qat=None, methods=(), lambdas=(1.0,)))
    assert not _of(found, kind="own_qat") and not _of(found, control="task_vector")
    assert len(_of(found, kind="control")) == 6
    for relation in found.relations.values():
        assert (relation.prototype_cosine, relation.task_vector_cosine) == (None, None)
        assert (relation.vector_cosine, relation.predicted_share) == (None, None)


def _refused(request_: CellRequest, error: type[QvecError], fragment: str) -> None:
    with pytest.raises(error, match=fragment) as caught:
        compute_cell(request_)
    assert caught.value.hint


def test_a_donor_of_another_shape(request_: CellRequest, tmp_path: Path) -> None:
    from qvec_deploy.models import create

    model = create(PICO_MODEL, PICO_CLASSES, {**PICO_ARGS, "depth": 1})
    generator = np.random.default_rng(3)
    state = {name: generator.normal(0, 0.2, v.shape).astype(np.float32) for name, v in model.state_dict().items()}
    donor = _donor(tmp_path, "upper", state, 50)
    _refused(replace(request_, donors=(donor,)), IncompatibleError, "donor upper does not fit")
    mixed = replace(request_.donors[0], fp=donor.fp)
    _refused(replace(request_, donors=(mixed,)), IncompatibleError, "donor lower: .* lacks blocks.1")
    _refused(replace(request_, base=donor.fp), IncompatibleError, "the base: .* lacks blocks.1")


def test_a_donor_of_another_grid(request_: CellRequest) -> None:
    _refused(replace(request_, grid=Scheme(3, "channel")), IncompatibleError, "donor lower was trained for")


def test_a_missing_file(request_: CellRequest) -> None:
    gone = replace(request_.donors[0], vector="nowhere.safetensors")
    _refused(replace(request_, donors=(gone,)), StorageError, "donor lower: .*nowhere.safetensors")
    gone = replace(request_.donors[0], fp="nowhere.safetensors")
    _refused(replace(request_, donors=(gone,)), StorageError, "donor lower: .*nowhere.safetensors")


def test_a_task_of_other_classes(request_: CellRequest) -> None:
    other = replace(request_, receiver=TaskData("symbols", "tiny/symbols"))
    _refused(other, RecipeError, "tiny/symbols has 21 classes and the model's head 10")


def test_too_few_images(request_: CellRequest) -> None:
    _refused(replace(request_, testing=7), RecipeError, "digits: tiny/realdigits test has 7 images")
    _refused(replace(request_, selecting=7), RecipeError, "digits: tiny/realdigits val has 7 images")


def test_no_moments_to_calibrate_with(request_: CellRequest, files: Path, tmp_path: Path) -> None:
    fp = open_request_states(files)
    path = tmp_path / "vector.safetensors"
    extract_vector(fp, _near(fp, 5, 0.02), path, scheme=GRID, skip=("head",), task="lower", seed=0)
    bare = replace(request_.donors[0], vector=str(path))
    assert not QuantizationVector.open(path).has_moments
    small = replace(request_, donors=(bare,), lambdas=(1.0,), controls=(), inputs=("moments",))
    _refused(small, IncompatibleError, "donor lower brings no second moments")
