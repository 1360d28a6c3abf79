"""Donors train the same way every time, and a float and a QAT run differ in the grid alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning import finetune
from pico import PICO_ARGS, PICO_CLASSES, PICO_MODEL
from torch import nn

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, open_dataset
from qvec_deploy.donors.finetune import Base
from qvec_deploy.donors.train import Training, parameter_groups, rate
from qvec_deploy.donors.train_config import TrainConfig, TrainingProgress
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.models import create, quantized_linears
from qvec_deploy.quantize import reference
from qvec_deploy.quantize.modelopt import insert_fake_quantizers, latent_state_dict
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.extract import extract_vector
from qvec_deploy.vectors.patch import add_scaled
from qvec_deploy.vectors.vector_file import QuantizationVector

State = dict[str, np.ndarray]

CHANNEL = Scheme(3, "channel")
MSE = Scheme(3, "channel", method="mse")
SCHEMES = [
    pytest.param(None, id="float"),
    pytest.param(CHANNEL, id="channel"),
    pytest.param(Scheme(4, "group", 16), id="group"),
    pytest.param(Scheme(3, "tensor", clip=0.8), id="tensor"),
    pytest.param(MSE, id="mse"),
]
FROZEN = 1e-30
"""A learning rate that leaves every float32 weight but a zero as it was."""
SHORT = TrainConfig(steps=5, batch_size=8, lr=1e-3, head_lr=1e-2, clip_every=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def letters() -> Dataset:
    """48 training images of tiny/lower: 26 classes, where the pico model's checkpoint has 10."""
    return open_dataset(DatasetSpec("tiny/lower", "train", limit=48), DataConfig())


@pytest.fixture
def base(pico_states: Mapping[str, State]) -> Base:
    return Base(PICO_MODEL, pico_states["receiver"], PICO_ARGS)


class Recording:
    """A dataset that keeps the image numbers it was asked for."""

    split = "train"

    def __init__(self, inner: Dataset) -> None:
        self.name, self.classes = inner.name, inner.classes
        self.taken: list[list[int]] = []
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def take(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        self.taken.append(np.asarray(rows).tolist())
        return self._inner.take(rows)


class Plain:
    """`count` images of the given value, all of class 0."""

    name, split, classes = "plain", "train", 26

    def __init__(self, count: int = 8, value: float = 0.0) -> None:
        self._count, self._value = count, value

    def __len__(self) -> int:
        return self._count

    def take(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(rows), 3, 32, 32), self._value, np.float32), np.zeros(len(rows), np.int64)


class Watcher(nn.Module):
    """A linear head that keeps the batches it saw, and whether it was training."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 26)
        self.seen: list[torch.Tensor] = []
        self.modes: list[bool] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images.detach().clone())
        self.modes.append(self.training)
        return self.head(images.flatten(1))


def same(one: State, other: State) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one.keys() | other.keys())


def losses(base: Base, task: Dataset, hyper: TrainConfig, **options: Any) -> list[float]:
    steps: list[TrainingProgress] = []
    finetune(base, task, hyper=hyper, seed=0, on_step=steps.append, **options)
    return [step.loss for step in steps]


# Settings


def test_the_defaults_are_those_of_the_published_donors():
    assert TrainConfig() == TrainConfig(600, 32, 1e-4, 1e-3, 0.1, 0.1, 1.0, 0.0, 0, 50)


@pytest.mark.parametrize(("steps", "warmup", "warm"), [(100, 0.1, 10), (600, 0.1, 60), (7, 0.5, 4), (10, 0.99, 10)])
def test_the_rate_warms_up_in_a_straight_line(steps, warmup, warm):
    hyper = TrainConfig(steps=steps, warmup=warmup)
    assert [rate(step, hyper) for step in range(warm)] == [(step + 1) / warm for step in range(warm)]
    assert rate(warm - 1, hyper) == 1.0


def test_the_rate_falls_along_a_half_cosine():
    hyper = TrainConfig(steps=110, warmup=1 / 11)
    assert rate(9, hyper) == rate(10, hyper) == 1.0  # the warm-up's last step, and the cosine's first
    assert rate(60, hyper) == pytest.approx(0.5)
    assert rate(35, hyper) == pytest.approx(0.5 + math.sqrt(0.125))
    assert 0.0 < rate(109, hyper) < 1e-3
    assert rate(110, hyper) == 0.0  # where it would arrive
    falling = [rate(step, hyper) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.1), (3, 0.0), (40, 0.0), (10, 0.95)])
def test_every_step_learns(steps, warmup):
    hyper = TrainConfig(steps=steps, warmup=warmup)
    rates = [rate(step, hyper) for step in range(steps)]
    assert all(0.0 < share <= 1.0 for share in rates)
    if warmup == 0.0:
        assert rates[0] == 1.0


# The optimizer's groups


@pytest.mark.parametrize("scheme", [None, CHANNEL])
def test_parameter_groups(scheme):
    model = create(PICO_MODEL, PICO_CLASSES, PICO_ARGS)
    expected = {
        name: (
            1e-3 if name.startswith("head.") else 1e-4,
            0.0 if value.ndim == 1 or name in ("pos_embed", "cls_token") else 0.1,
        )
        for name, value in model.named_parameters()
    }
    assert len(set(expected.values())) == 4  # backbone and head, with decay and without
    assert expected["pos_embed"] == expected["cls_token"] == (1e-4, 0.0)
    assert expected["blocks.0.attn.qkv.weight"] == (1e-4, 0.1)
    if scheme is not None:
        insert_fake_quantizers(model, scheme, ("head",))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, TrainConfig(), heads=("head",))
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(found) == len(expected)
    assert dict(found) == expected


def test_a_head_is_a_module_and_not_a_prefix():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    groups = parameter_groups(model, TrainConfig(), heads=("head",))
    fast = [id(parameter) for group in groups if group["lr"] == 1e-3 for parameter in group["params"]]
    assert sorted(fast) == sorted(id(parameter) for parameter in model["head"].parameters())


# The loop


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_seed_gives_the_same_weights_bit_for_bit(base, letters, scheme):
    base = Base(base.model, base.state, {**base.args, "drop_rate": 0.1, "proj_drop_rate": 0.1})
    states = []
    for seed, surroundings in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(surroundings)
        states.append(finetune(base, letters, scheme=scheme, hyper=SHORT, seed=seed))
    first, again, other = states
    assert same(first, again)
    assert all(not np.array_equal(first[name], other[name]) for name in first)


def test_training_leaves_the_base_alone(base, letters):
    before = {name: value.copy() for name, value in base.state.items()}
    finetune(base, letters, scheme=MSE, hyper=SHORT, seed=0)
    assert same(dict(base.state), before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_run_of_a_seed_starts_from_the_base_and_the_same_head(base, letters, scheme):
    frozen = TrainConfig(steps=1, batch_size=8, lr=FROZEN, head_lr=FROZEN)
    start = finetune(base, letters, scheme=scheme, hyper=frozen, seed=5)
    for name, value in base.state.items():
        if not name.startswith("head."):
            np.testing.assert_allclose(start[name], value, rtol=0, atol=1e-28)
    reference_run = finetune(base, letters, scheme=None, hyper=frozen, seed=5)
    assert np.array_equal(start["head.weight"], reference_run["head.weight"])
    assert start["head.weight"].shape == (26, 32)
    assert start["head.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert np.abs(start["head.bias"]).max() < 1e-28
    other = finetune(base, letters, scheme=scheme, hyper=frozen, seed=6)
    assert not np.array_equal(start["head.weight"], other["head.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("roll", [0, 2])
def test_a_float_and_a_qat_run_see_the_same_batches(base, letters, roll):
    hyper = TrainConfig(steps=9, batch_size=10, roll=roll, clip_every=3)
    records = []
    for scheme, seed in ((None, 1), (CHANNEL, 1), (MSE, 1), (None, 2)):
        task = Recording(letters)
        finetune(base, task, scheme=scheme, hyper=hyper, seed=seed)
        records.append(task.taken)
    assert records[0] == records[1] == records[2]
    assert records[0] != records[3]
    assert [len(rows) for rows in records[0]] == [10] * 9
    for epoch in (records[0][:4], records[0][4:8]):  # 48 images are four batches of 10, and 8 left out
        assert len({row for rows in epoch for row in rows}) == 40
    assert all(0 <= row < 48 for rows in records[0] for row in rows)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme.values[0] is not None])
@pytest.mark.parametrize("skip", [("head",), ("head", "attn"), ()])
def test_a_qat_step_sees_the_weights_on_the_grid(base, letters, scheme, skip):
    """Its first loss is that of a float run from the rounded base."""
    frozen = TrainConfig(steps=1, batch_size=8, lr=FROZEN, head_lr=FROZEN)
    start = finetune(base, letters, scheme=None, hyper=frozen, seed=0)
    model = create(base.model, 26, base.args)
    linears = quantized_linears(model, skip)
    assert len(linears) == {("head",): 8, ("head", "attn"): 4, (): 9}[skip]
    rounded = dict(start)
    for name in linears:
        rounded[f"{name}.weight"] = reference.quantize(start[f"{name}.weight"], scheme).dequantize()
    data = Recording(letters)
    (loss,) = losses(base, data, frozen, scheme=scheme, skip=skip)
    images, labels = letters.take(data.taken[0])
    model.load_state_dict({name: torch.tensor(value) for name, value in rounded.items()})
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    (float_loss,) = losses(base, letters, frozen, scheme=None)
    assert abs(loss - float_loss) > 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weights_are_a_float_checkpoint(base, letters, scheme):
    state = finetune(base, letters, scheme=scheme, hyper=SHORT, seed=0)
    model = create(base.model, 26, base.args)
    assert [(name, value.shape) for name, value in state.items()] == [
        (name, tuple(value.shape)) for name, value in model.state_dict().items()
    ]
    assert {value.dtype for value in state.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(value).all() for value in state.values())
    assert all(not np.array_equal(state[name], value) for name, value in base.state.items() if "head" not in name)
    for name in quantized_linears(model, ("head",)):  # latent: few of them on the grid
        weight = state[f"{name}.weight"]
        grid = reference.quantize(weight, scheme or CHANNEL).dequantize()
        assert (weight != grid).mean() > 0.8
        assert (grid != 0).mean() > 0.3


def test_a_qat_run_ends_elsewhere_than_the_float_run(base, letters):
    fp, qat = (finetune(base, letters, scheme=scheme, hyper=SHORT, seed=0) for scheme in (None, CHANNEL))
    for name, value in fp.items():
        assert not np.array_equal(value, qat[name]), name


def test_the_clip_ratios_are_searched_again_and_again(base, letters, monkeypatch):
    calls: list[int] = []
    steps: list[TrainingProgress] = []
    monkeypatch.setattr("qvec_deploy.donors.train.refresh_clip", lambda model: calls.append(len(steps)))
    hyper = TrainConfig(steps=8, batch_size=4, clip_every=3)
    finetune(base, letters, scheme=MSE, hyper=hyper, seed=0, on_step=steps.append)
    assert calls == [3, 6]


def test_a_new_search_changes_a_qat_run_of_method_mse(base, letters):
    often, never = (TrainConfig(steps=4, batch_size=8, lr=1e-2, clip_every=every) for every in (1, 100))
    for scheme, equal in ((MSE, False), (CHANNEL, True)):
        runs = [finetune(base, letters, scheme=scheme, hyper=hyper, seed=0) for hyper in (often, never)]
        assert same(*runs) == equal


def test_latent_weights_keep_their_names(base):
    model = create(base.model, PICO_CLASSES, base.args)
    names = list(model.state_dict())
    insert_fake_quantizers(model, MSE, ("head",))
    assert list(latent_state_dict(model)) == names


@pytest.mark.parametrize("scheme", [None, CHANNEL])
def test_the_loss_falls(base, letters, scheme):
    hyper = TrainConfig(steps=40, batch_size=16, lr=2e-3, head_lr=1e-2)
    values = losses(base, letters, hyper, scheme=scheme)
    assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])


def test_what_is_told_while_training(base, letters):
    told: list[TrainingProgress] = []
    hyper = TrainConfig(steps=6, batch_size=8, lr=2e-4, warmup=0.5)
    finetune(base, letters, scheme=None, hyper=hyper, seed=0, on_step=told.append)
    assert [(progress.step, progress.steps) for progress in told] == [(step, 6) for step in range(1, 7)]
    assert [progress.lr for progress in told] == [2e-4 * rate(step, hyper) for step in range(6)]
    seconds = [progress.seconds for progress in told]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_the_head_and_the_backbone_move_at_their_own_rates(base, letters):
    """Adam's first step moves every weight by the learning rate, whatever the gradient."""
    hyper = TrainConfig(steps=1, batch_size=8, lr=1e-3, head_lr=1e-2, weight_decay=0.0, warmup=0.0)
    frozen = TrainConfig(steps=1, batch_size=8, lr=FROZEN, head_lr=FROZEN)
    start, end = (finetune(base, letters, scheme=None, hyper=chosen, seed=0) for chosen in (frozen, hyper))
    for name in ("head.weight", "blocks.1.mlp.fc2.weight", "patch_embed.proj.weight", "pos_embed"):
        moved = np.abs(end[name] - start[name])
        assert np.median(moved) == pytest.approx(1e-2 if name.startswith("head.") else 1e-3, rel=0.01)


def test_gradients_are_clipped(base, letters):
    """Gradients far below Adam's epsilon move nothing."""
    tiny = TrainConfig(steps=1, batch_size=8, lr=1e-3, head_lr=1e-3, weight_decay=0.0, warmup=0.0, clip_norm=1e-14)
    frozen = TrainConfig(steps=1, batch_size=8, lr=FROZEN, head_lr=FROZEN)
    start, end = (finetune(base, letters, scheme=None, hyper=chosen, seed=0) for chosen in (frozen, tiny))
    for name in start:
        np.testing.assert_allclose(end[name], start[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_label_smoothing_raises_the_loss_of_a_sure_model(base, letters):
    plain, smooth = (
        losses(
            base,
            letters,
            TrainConfig(steps=40, batch_size=16, lr=2e-3, head_lr=1e-2, label_smoothing=share),
            scheme=None,
        )
        for share in (0.0, 0.3)
    )
    assert plain[0] == pytest.approx(smooth[0], rel=0.1)  # where the model knows nothing
    assert smooth[-1] > plain[-1]


def test_rolled_images_are_shifted_in_a_circle(letters):
    model = Watcher()
    task = Recording(letters)
    Training(model, task, TrainConfig(steps=40, batch_size=4, roll=2), heads=("head",), seed=0).run()
    shifts = set()
    for rows, seen in zip(task.taken, model.seen, strict=True):
        images = torch.from_numpy(letters.take(rows)[0])
        reach = range(-2, 3)
        matching = [(y, x) for y in reach for x in reach if torch.equal(images.roll((y, x), (2, 3)), seen)]
        assert len(matching) == 1  # one shift for the whole batch
        shifts.update(matching)
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(-2, 3))


def test_without_rolling_the_images_are_as_they_are(letters):
    model = Watcher()
    task = Recording(letters)
    Training(model, task, TrainConfig(steps=3, batch_size=4), heads=("head",), seed=0).run()
    for rows, seen in zip(task.taken, model.seen, strict=True):
        assert np.array_equal(seen.numpy(), letters.take(rows)[0])


def test_a_model_trains_in_training_mode_and_comes_back_in_evaluation_mode(letters):
    model = Watcher().eval()
    Training(model, letters, TrainConfig(steps=2, batch_size=4), heads=("head",), seed=0).run()
    assert model.modes == [True, True]
    assert not model.training


def test_training_leaves_the_random_numbers_of_others_alone(letters):
    model = Watcher()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    Training(model, letters, TrainConfig(steps=2, batch_size=4), heads=("head",), seed=0).run()
    assert torch.equal(torch.rand(3), expected)


# What is refused


def test_a_base_without_a_tensor_of_the_model(base, letters):
    state = {name: value for name, value in base.state.items() if name != "blocks.1.norm1.weight"}
    with pytest.raises(IncompatibleError, match=r"the base has no tensor `blocks\.1\.norm1\.weight`"):
        finetune(Base(base.model, state, base.args), letters, scheme=None, hyper=SHORT, seed=0)


def test_a_base_of_another_shape(base, letters):
    state = {**base.state, "pos_embed": base.state["pos_embed"][:, :-1]}
    with pytest.raises(IncompatibleError, match=r"pos_embed is \(1, 16, 32\) in the base and \(1, 17, 32\)"):
        finetune(Base(base.model, state, base.args), letters, scheme=None, hyper=SHORT, seed=0)


def test_the_bases_own_head_is_not_read(base, letters):
    headless = {name: value for name, value in base.state.items() if not name.startswith("head.")}
    whole, without = (
        finetune(Base(base.model, state, base.args), letters, scheme=None, hyper=SHORT, seed=0)
        for state in (base.state, headless)
    )
    assert same(whole, without)


def test_a_model_that_timm_does_not_have(base, letters):
    with pytest.raises(RecipeError, match="timm has no model"):
        finetune(Base("vit_tyni", base.state), letters, scheme=None, hyper=SHORT, seed=0)


def test_fewer_images_than_a_batch(base):
    with pytest.raises(RecipeError, match="plain has 7 images and a batch is 8"):
        finetune(base, Plain(7), scheme=None, hyper=SHORT, seed=0)
    assert len(losses(base, Plain(8), SHORT, scheme=None)) == 5


@pytest.mark.parametrize(("value", "loss"), [(math.nan, "nan"), (math.inf, "nan")])
def test_a_loss_that_is_no_number(base, value, loss):
    told: list[TrainingProgress] = []
    with pytest.raises(RecipeError, match=f"the loss is {loss} after step 1"):
        finetune(base, Plain(value=value), scheme=None, hyper=SHORT, seed=0, on_step=told.append)
    assert told == []


# From two donors to a vector


@pytest.mark.parametrize("scheme", [CHANNEL, MSE])
def test_the_float_donor_and_its_whole_vector_make_the_qat_donor(base, letters, tmp_path: Path, scheme):
    hyper = TrainConfig(steps=10, batch_size=8, lr=1e-3, clip_every=4)
    fp, qat = (finetune(base, letters, scheme=grid, hyper=hyper, seed=0) for grid in (None, scheme))
    path = tmp_path / "vector.safetensors"
    header = extract_vector(fp, qat, path, scheme=scheme, skip=("head",), task=letters.name, seed=0)
    vector = QuantizationVector.open(path)
    assert vector.header == header
    assert (header.scheme, header.task, header.seed) == (scheme, "tiny/lower", 0)
    assert set(vector.tensors) == {name for name in fp if not name.startswith("head.")}
    total = 0.0
    for name in vector.tensors:
        rho = vector.read(name)
        assert rho.any(), name
        total += float(np.square(rho, dtype=np.float64).sum())
        patched = add_scaled(fp[name], rho, 1.0)
        assert patched.dtype == np.float32
        # Two roundings, of the difference and of the sum, each by half a unit in the last place.
        bound = np.finfo(np.float32).eps / 2 * 1.01 * (np.abs(rho) + np.abs(qat[name]))
        assert (np.abs(patched.astype(np.float64) - qat[name]) <= bound).all(), name
    assert header.norm == pytest.approx(math.sqrt(total))
    assert 0.0 < header.norm < 0.5 * header.weight_norm
