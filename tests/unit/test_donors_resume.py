"""A training that was stopped goes on bit for bit; what large models need beside the tiny tasks' settings."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning import finetune
from pico import PICO_ARGS, PICO_MODEL

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, open_dataset
from qvec_deploy.donors.donor_folder import DonorFolder
from qvec_deploy.donors.finetune import Base, start, weights
from qvec_deploy.donors.train import Training, draws, parameter_groups
from qvec_deploy.donors.train_config import TrainConfig, TrainingProgress
from qvec_deploy.errors import IntegrityError, RecipeError, StorageError
from qvec_deploy.models import create
from qvec_deploy.tensors import Scheme

State = dict[str, np.ndarray]

SCHEMES = [
    pytest.param(None, id="float"),
    pytest.param(Scheme(3, "channel"), id="rtn"),
    pytest.param(Scheme(3, "tensor", method="mse"), id="mse tensor"),
    pytest.param(Scheme(4, "group", 16, method="mse"), id="mse group"),
]
HYPER = TrainConfig(steps=11, batch_size=10, lr=1e-3, head_lr=1e-2, clip_every=4, roll=2)
"""48 images are 4 batches and a rest: stops fall within epochs, within clips' lives, and into the warm-up."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def letters() -> Dataset:
    return open_dataset(DatasetSpec("tiny/lower", "train", limit=48), DataConfig())


@pytest.fixture
def base(pico_states: Mapping[str, State]) -> Base:
    return Base(PICO_MODEL, pico_states["receiver"], {**PICO_ARGS, "drop_rate": 0.1, "proj_drop_rate": 0.1})


class Killed(BaseException):
    pass


def same(one: State, other: State) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one.keys() | other.keys())


def begin(base: Base, data: Dataset, scheme: Scheme | None, hyper: TrainConfig = HYPER):
    model = start(base, data.classes, scheme=scheme, skip=("head",), seed=3)
    return model, Training(model, data, hyper, heads=("head",), seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("hyper", [HYPER, replace(HYPER, accumulate=2, decay_all=True)], ids=["plain", "options"])
def test_a_stopped_training_ends_where_an_uninterrupted_one_does(base, letters, tmp_path: Path, scheme, hyper):
    whole = finetune(base, letters, scheme=scheme, hyper=hyper, seed=3)
    folder = DonorFolder.open(tmp_path / "donor")
    losses: dict[int, float] = {}
    for stop in (1, 6, 10, 99):  # killed a step after it was saved: that step is done again
        model, training = begin(base, letters, scheme, hyper)
        saved = folder.load("qat")
        if saved is not None:
            training.restore(saved)

        def after(progress: TrainingProgress, stop: int = stop, training: Training = training) -> None:
            assert losses.setdefault(progress.step, progress.loss) == progress.loss
            if progress.step == stop:
                folder.save("qat", training.state())
            if progress.step == stop + 1:
                raise Killed

        torch.manual_seed(stop)  # whatever the surroundings
        if stop < HYPER.steps:
            with pytest.raises(Killed):
                training.run(after)
        else:
            training.run(after)
    assert sorted(losses) == list(range(1, 12))
    assert same(weights(model), whole)


def test_a_resumed_training_counts_on(base, letters):
    model, training = begin(base, letters, None)
    told: list[TrainingProgress] = []
    states = []

    def after(progress: TrainingProgress) -> None:
        states.append(replace(training.state(), seconds=100.0))
        raise Killed

    with pytest.raises(Killed):
        training.run(after)
    model, training = begin(base, letters, None)
    training.restore(states[0])
    training.run(told.append)
    assert [progress.step for progress in told] == list(range(2, 12))
    assert told[0].seconds >= 100.0
    assert not model.training


def test_the_order_of_images_follows_from_the_seed():
    first, again, other = (list(draws(48, HYPER, seed)) for seed in (1, 1, 2))
    assert [draw.rows.tolist() for draw in first] == [draw.rows.tolist() for draw in again]
    assert [draw.rows.tolist() for draw in first] != [draw.rows.tolist() for draw in other]
    assert [draw.shift for draw in first] == [draw.shift for draw in again]
    assert [draw.number for draw in first] == list(range(11))
    assert len({row for draw in first[:4] for row in draw.rows}) == 40


# A batch in parts, decay of everything, bf16


def test_a_batch_in_parts_is_the_same_batch(base, letters):
    base = Base(base.model, base.state, PICO_ARGS)  # without dropout, whose numbers differ by part
    hyper = replace(HYPER, steps=3)
    told: dict[int, list[float]] = {}
    ends = {}
    for parts in (1, 2, 5):
        values = told.setdefault(parts, [])
        ends[parts] = finetune(
            base, letters, scheme=None, hyper=replace(hyper, accumulate=parts), seed=0,
            on_step=lambda progress, values=values: values.append(progress.loss),
        )  # fmt: skip
    for parts in (2, 5):
        assert told[parts] == pytest.approx(told[1], rel=1e-4)
        for name, value in ends[1].items():
            if "bias" not in name:  # Adam turns a gradient of rounding errors into whole steps
                np.testing.assert_allclose(ends[parts][name], value, rtol=0, atol=3e-3, err_msg=name)
    assert not same(ends[1], ends[2])


def test_everything_decays_where_the_paper_lets_it():
    model = create(PICO_MODEL, 10, PICO_ARGS)
    groups = parameter_groups(model, TrainConfig(decay_all=True), heads=("head",))
    assert {group["weight_decay"] for group in groups} == {0.1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_bf16_computes_in_bf16_and_keeps_float32(base, letters):
    model, training = begin(base, letters, SCHEMES[1].values[0], replace(HYPER, precision="bf16"))
    kinds = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *call: kinds.append(call[2].dtype))
    told: list[TrainingProgress] = []
    training.run(told.append)
    assert set(kinds) == {torch.bfloat16}
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    exact: list[TrainingProgress] = []
    finetune(base, letters, scheme=SCHEMES[1].values[0], hyper=HYPER, seed=3, on_step=exact.append)
    assert told[0].loss != exact[0].loss
    assert told[0].loss == pytest.approx(exact[0].loss, rel=0.05)


# The folder


SETTINGS = {"train": {"lr": 0.1, "steps": 5}, "base": {"sha256": "a"}}


def test_a_folder_belongs_to_its_settings(tmp_path: Path):
    DonorFolder.open(tmp_path / "donor").claim(SETTINGS)
    DonorFolder.open(tmp_path / "donor").claim(SETTINGS)
    other = {**SETTINGS, "train": {"lr": 0.2, "steps": 5}}
    with pytest.raises(RecipeError, match=r"was begun with train\.lr 0\.1, and this is 0\.2") as caught:
        DonorFolder.open(tmp_path / "donor").claim(other)
    assert "--force" in caught.value.hint
    DonorFolder.open(tmp_path / "donor", force=True).claim(other, force=True)
    DonorFolder.open(tmp_path / "donor").claim(other)


def test_a_finished_donor_is_kept(tmp_path: Path):
    folder = DonorFolder.open(tmp_path / "donor")
    folder.claim(SETTINGS)
    folder.weights("fp").write_bytes(b"weights")
    folder.complete({"format": "qvec-donor"})
    assert sorted(path.name for path in folder.path.iterdir()) == ["fp.safetensors", "record.json"]
    with pytest.raises(StorageError, match="holds a finished donor"):
        DonorFolder.open(folder.path)
    again = DonorFolder.open(folder.path, force=True)
    assert folder.weights("fp").is_file()  # refusals that are still to come leave it there
    again.claim(SETTINGS, force=True)
    assert sorted(path.name for path in folder.path.iterdir()) == [".state"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_something_else(tmp_path: Path, force: bool):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(StorageError, match="is not a donor's folder"):
        DonorFolder.open(tmp_path, force=force)
    with pytest.raises(StorageError, match="is not a donor's folder"):
        DonorFolder.open(tmp_path / "record.json", force=force)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_state(tmp_path: Path, content: bytes):
    folder = DonorFolder.open(tmp_path / "donor")
    folder.claim(SETTINGS)
    (folder.path / ".state" / "fp.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match="is damaged") as caught:
        folder.load("fp")
    assert "--force" in caught.value.hint


@pytest.mark.parametrize(("name", "read"), [("log.jsonl", "log"), (".state/settings.json", "settings")])
def test_damaged_text(tmp_path: Path, name: str, read: str):
    folder = DonorFolder.open(tmp_path / "donor")
    folder.claim(SETTINGS)
    (folder.path / name).write_bytes(b'{"run": ')
    with pytest.raises(IntegrityError, match="is damaged"):
        folder.read_log() if read == "log" else folder.claim(SETTINGS)


def test_a_disk_that_is_full_keeps_the_state_of_before(base, letters, tmp_path: Path, monkeypatch):
    folder = DonorFolder.open(tmp_path / "donor")
    folder.claim(SETTINGS)
    _, training = begin(base, letters, None)

    real = Path.open

    def refuse(self: Path, mode: str = "r", *arguments: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, mode, *arguments)

    def after(progress: TrainingProgress) -> None:
        if progress.step == 2:
            monkeypatch.setattr(Path, "open", refuse)
        folder.save("fp", training.state())

    with pytest.raises(StorageError, match="No space left"):
        training.run(after)
    saved = folder.load("fp")
    assert saved is not None
    assert saved.step == 1
