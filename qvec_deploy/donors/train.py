"""The training loop: one model, one dataset, one seed, and the same weights every time on one CPU."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy.datasets import Dataset
from qvec_deploy.donors.feed import Rows, feed
from qvec_deploy.donors.train_config import OnStep, TrainConfig, TrainingProgress
from qvec_deploy.errors import RecipeError
from qvec_deploy.models import in_head
from qvec_deploy.quantize.modelopt import refresh_clip


@dataclass(frozen=True, eq=False)
class TrainState:
    """All that a training needs to go on as if it had never stopped.

    The order of the images is not in it: it follows from the seed and the step.

    Attributes:
        tensors: `model.*` (weights, and the clip ratios of fake quantizers), `optimizer.*`, `random.*`.
    """

    step: int
    seconds: float
    tensors: Mapping[str, Tensor]


class Training:
    """A training of every parameter of a model, in place, that can be stopped and taken up again.

    The order of the images depends on the seed and the size of the data alone, so an FP and a QAT run of one seed
    see the same batches. Fake quantizers of method `mse` search their clip ratios every `clip_every` steps. The head
    has a learning rate of its own. Fewer images than a batch are refused, and so is a loss that is no number.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        hyper: TrainConfig,
        *,
        heads: tuple[str, ...],
        seed: int,
    ) -> None:
        if len(data) < hyper.batch_size:
            raise RecipeError(
                f"{data.name} has {len(data)} images and a batch is {hyper.batch_size}", hint="lower batch_size"
            )
        self.step = 0
        self._model, self._data, self._hyper, self._seed = model, data, hyper, seed
        self._device = next(model.parameters()).device
        groups = parameter_groups(model, hyper, heads=heads)
        self._optimizer = torch.optim.AdamW(groups)
        self._peaks = [group["lr"] for group in self._optimizer.param_groups]
        self._loss = nn.CrossEntropyLoss(label_smoothing=hyper.label_smoothing)
        self._seconds = 0.0
        self._started = time.monotonic()
        self._random: dict[str, Tensor] = {}

    def state(self) -> TrainState:
        """Where the training stands; to be asked for in `on_step`. The tensors are the training's own, not copies."""
        tensors = {f"model.{name}": value for name, value in self._model.state_dict().items()}
        for number, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return TrainState(self.step, self._elapsed(), tensors)

    def restore(self, state: TrainState) -> None:
        """Go on from a state of the same model, data and settings."""
        self.step, self._seconds = state.step, state.seconds
        self._model.load_state_dict(_under(state.tensors, "model."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(state.tensors, "optimizer.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._random = _under(state.tensors, "random.")

    def run(self, on_step: OnStep | None = None) -> None:
        """Do the steps that are left, and leave the model in evaluation mode."""
        self._model.train()
        self._started = time.monotonic()
        plan = itertools.islice(draws(len(self._data), self._hyper, self._seed), self.step, None)
        ahead, behind = itertools.tee(plan)  # with workers, images are read before their step
        batches = feed(self._data, ((draw.number, draw.rows) for draw in ahead), self._hyper.workers)
        cuda = self._device.type == "cuda"
        with torch.random.fork_rng(devices=[self._device] if cuda else []):
            self._set_random()
            for draw, (images, labels) in zip(behind, batches, strict=True):
                if self.step and self.step % self._hyper.clip_every == 0:
                    refresh_clip(self._model)
                factor = rate(self.step, self._hyper)
                for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
                    group["lr"] = peak * factor
                loss = self._update(_rolled(torch.from_numpy(images), draw.shift), torch.from_numpy(labels))
                self.step += 1
                if not math.isfinite(loss):
                    raise RecipeError(f"the loss is {loss} after step {self.step}", hint="lower the learning rate")
                if on_step:
                    on_step(
                        TrainingProgress(self.step, self._hyper.steps, loss, self._hyper.lr * factor, self._elapsed())
                    )
        self._model.eval()

    def _update(self, images: Tensor, labels: Tensor) -> float:
        """One optimizer step on a batch, in as many parts as are asked for; returns its mean loss."""
        parts = self._hyper.accumulate
        total = 0.0
        self._optimizer.zero_grad(set_to_none=True)
        for some, their in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            with self._autocast():
                loss = self._loss(self._model(some.to(self._device)), their.to(self._device)) / parts
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._hyper.clip_norm)
        self._optimizer.step()
        return total

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._hyper.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._started

    def _set_random(self) -> None:
        torch.manual_seed(self._seed)
        if self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random:
            torch.cuda.set_rng_state(self._random["cuda"], self._device)


def rate(step: int, hyper: TrainConfig) -> float:
    """Share of the peak learning rate at a step counted from 0: linear up, then a half cosine down to 0."""
    warmup = round(hyper.steps * hyper.warmup)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (hyper.steps - warmup)))


def parameter_groups(model: nn.Module, hyper: TrainConfig, *, heads: tuple[str, ...]) -> list[dict[str, object]]:
    """AdamW's groups: backbone or head by rate, with weight decay or without.

    Vectors have no decay, nor have the tokens that the model itself exempts (`no_weight_decay`); with `decay_all`
    everything has.
    """
    own: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = own()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = hyper.head_lr if in_head(name, heads) else hyper.lr
        spared = not hyper.decay_all and (parameter.ndim < 2 or name in exempt)
        groups.setdefault((lr, 0.0 if spared else hyper.weight_decay), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


@dataclass(frozen=True, eq=False)
class Draw:
    """The images of one step.

    Attributes:
        shift: Pixels by which they are rolled: down, right.
    """

    number: int
    rows: Rows
    shift: tuple[int, int]


def draws(count: int, hyper: TrainConfig, seed: int) -> Iterator[Draw]:
    """What every step sees: every image once per epoch, in an order that the seed decides.

    A remainder smaller than a batch is dropped at the end of an epoch.
    """
    rng = np.random.default_rng(seed)
    left = np.empty(0, np.int64)
    for number in range(hyper.steps):
        if len(left) < hyper.batch_size:
            left = rng.permutation(count)
        rows, left = left[: hyper.batch_size], left[hyper.batch_size :]
        shift = (0, 0)
        if hyper.roll:
            down, right = rng.integers(-hyper.roll, hyper.roll + 1, size=2)
            shift = (int(down), int(right))
        yield Draw(number, rows, shift)


def _rolled(images: Tensor, shift: tuple[int, int]) -> Tensor:
    """The batch (B, C, H, W) shifted in a circle, all its images alike."""
    return images.roll(shift, dims=(2, 3)) if any(shift) else images


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
