"""Batches in a given order, read here or by worker processes, augmented or as they are."""

from __future__ import annotations

import functools
import os
import random
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qvec_deploy.datasets import DataConfig, Dataset, DatasetSpec, Split
from qvec_deploy.datasets.spec import Float32, Int64
from qvec_deploy.datasets.timm_factory import TimmDataset, image_transform
from qvec_deploy.errors import QvecError, RecipeError
from qvec_deploy.jobs.parent_death import end_with_parent

Rows = NDArray[np.int64]
Request = tuple[int, Rows]
"""Number of the step, from 0, and the images' numbers."""


class Augmented:
    """A dataset under timm's training transform: random crop, flip and colour.

    What an image becomes depends on the seed, the step and the image alone: not on who reads it or when, so a
    resumed training and a QAT run see the same pixels.
    """

    def __init__(self, inner: TimmDataset, seed: int) -> None:
        self.name: str = inner.name
        self.split: Split = inner.split
        self.classes: int = inner.classes
        self._inner, self._seed = inner, seed

    def __len__(self) -> int:
        return len(self._inner)

    def take(self, rows: Any) -> tuple[Float32, Int64]:
        """As in step 0."""
        return self.draw(0, np.asarray(rows, np.int64))

    def draw(self, number: int, rows: Rows) -> tuple[Float32, Int64]:
        """Images (B, C, H, W) and labels (B,) as a step sees them."""
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        taken = []
        try:
            for row in rows:
                _seed_all(int(np.random.SeedSequence([self._seed, number, int(row)]).generate_state(1)[0]))
                taken.append(self._inner.take([int(row)]))
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
        images, labels = zip(*taken, strict=True)
        return np.concatenate(images), np.concatenate(labels)


def augmented(data: Dataset, spec: DatasetSpec, config: DataConfig, seed: int) -> Augmented:
    """Put a dataset under timm's training transform."""
    if not isinstance(data, TimmDataset):
        raise RecipeError(
            f"{data.name} is drawn with its own jitter and takes no augmentation", hint="set train.augment to none"
        )
    return Augmented(TimmDataset(spec, data._inner, image_transform(config, training=True), data.classes), seed)


def feed(data: Dataset, plan: Iterable[Request], workers: int) -> Iterator[tuple[Float32, Int64]]:
    """The batches of a plan, in its order."""
    reader = _Reader(data)
    if not workers:
        for request in plan:
            yield reader.read(request)
        return
    loader = torch.utils.data.DataLoader(
        reader,
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=functools.partial(_end_with, os.getpid()),
        generator=torch.Generator(),  # else it draws from the training's random numbers
    )
    with warnings.catch_warnings():  # Python 3.12 warns of any fork beside threads; torch's workers are made for it
        warnings.simplefilter("ignore", DeprecationWarning)
        items = iter(loader)
    for item in items:
        if isinstance(item, Exception):
            raise item
        images, labels = item
        yield images.numpy(), labels.numpy()


class _Reader(torch.utils.data.Dataset[Any]):
    """A dataset of batches, whose index is a request."""

    def __init__(self, data: Dataset) -> None:
        self._data = data

    def read(self, request: Request) -> tuple[Float32, Int64]:
        number, rows = request
        return self._data.draw(number, rows) if isinstance(self._data, Augmented) else self._data.take(rows)

    def __getitem__(self, request: Request) -> Any:
        try:
            return tuple(torch.from_numpy(part) for part in self.read(request))
        except QvecError as error:  # sent as a value: torch would raise it as a bare RuntimeError
            return _Portable(error)


class _Portable:
    """An error that survives pickling, which calls an exception's class without its hint."""

    def __init__(self, error: QvecError) -> None:
        self._parts = type(error), error.message, error.hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, self._parts


def _restored(kind: type[QvecError], message: str, hint: str) -> QvecError:
    return kind(message, hint=hint)


def _end_with(parent: int, worker: int) -> None:
    end_with_parent(parent)


def _as_it_is(item: Any) -> Any:
    return item


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would move a GPU's random numbers too
