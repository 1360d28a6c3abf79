"""The training loop: one model, one dataset, one seed, and the same weights every time on one CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from qvec_deploy.datasets import Dataset
from qvec_deploy.donors.config import OnStep, Progress, TrainConfig
from qvec_deploy.errors import RecipeError
from qvec_deploy.quantize.modelopt import refresh_clip


def train(
    model: nn.Module, data: Dataset, hyper: TrainConfig, *, head: str, seed: int, on_step: OnStep | None = None
) -> None:
    """Train every parameter of `model` in place.

    The order of the images depends on `seed` and the size of `data` alone, so an FP and a QAT run of one seed
    see the same batches. Fake quantizers of method `mse` search their clip ratios every `clip_every` steps.

    Args:
        model: On the CPU or a GPU; the batches follow it.
        data: Training images and labels.
        hyper: Schedule and optimizer.
        head: Module name of the classification head, which has a learning rate of its own.
        seed: Seed of the image order and of any dropout.
        on_step: Called after every step.

    Raises:
        RecipeError: Fewer images than a batch, or the loss became NaN or infinite.
    """
    if len(data) < hyper.batch_size:
        raise RecipeError(
            f"{data.name} has {len(data)} images and a batch is {hyper.batch_size}", hint="lower batch_size"
        )
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(parameter_groups(model, hyper, head=head))
    peaks = [group["lr"] for group in optimizer.param_groups]
    loss_of = nn.CrossEntropyLoss(label_smoothing=hyper.label_smoothing)
    order = _Order(len(data), seed)
    model.train()
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(hyper.steps):
            if step and step % hyper.clip_every == 0:
                refresh_clip(model)
            factor = rate(step, hyper)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            images, labels = data.take(order.next(hyper.batch_size))
            batch = _rolled(torch.from_numpy(images), hyper.roll, order.rng).to(device)
            loss = loss_of(model(batch), torch.from_numpy(labels).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), hyper.clip_norm)
            optimizer.step()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RecipeError(f"the loss is {value} after step {step + 1}", hint="lower the learning rate")
            if on_step:
                seconds = time.monotonic() - started
                on_step(Progress(step + 1, hyper.steps, value, hyper.lr * factor, seconds))
    model.eval()


def rate(step: int, hyper: TrainConfig) -> float:
    """Share of the peak learning rate at a step counted from 0: linear up, then a half cosine down to 0."""
    warmup = round(hyper.steps * hyper.warmup)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (hyper.steps - warmup)))


def parameter_groups(model: nn.Module, hyper: TrainConfig, *, head: str) -> list[dict[str, object]]:
    """AdamW's groups: backbone or head by rate, with weight decay or without.

    Vectors have no decay, nor have the tokens that the model itself exempts (`no_weight_decay`).
    """
    own: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
    exempt = own()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr = hyper.head_lr if name.startswith(f"{head}.") else hyper.lr
        decay = 0.0 if parameter.ndim < 2 or name in exempt else hyper.weight_decay
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": group, "lr": lr, "weight_decay": decay} for (lr, decay), group in groups.items()]


class _Order:
    """Endless image numbers: every image once per epoch, in an order that a seed decides."""

    def __init__(self, count: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._count = count
        self._left = np.empty(0, np.int64)

    def next(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The next `size` image numbers; a remainder smaller than a batch is dropped."""
        if len(self._left) < size:
            self._left = self.rng.permutation(self._count)
        taken, self._left = self._left[:size], self._left[size:]
        return taken


def _rolled(images: Tensor, reach: int, rng: np.random.Generator) -> Tensor:
    """The batch (B, C, H, W) shifted in a circle, all its images alike; as it is where reach is 0."""
    if not reach:
        return images
    down, right = (int(shift) for shift in rng.integers(-reach, reach + 1, size=2))
    return images.roll((down, right), dims=(2, 3))
