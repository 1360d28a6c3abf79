"""Datasets on the Hub: what they hold, without downloading them, and what their columns and splits are called."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qvec_deploy.datasets.spec import Split
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.hub import hub_errors

PREFIX = "hfds/"

_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_MODULES = ("huggingface_hub.constants", "datasets.config")
"""Where those are kept once they were read."""


@dataclass(frozen=True)
class Names:
    """What a dataset calls its columns, and its split of held-out images."""

    image: str = "image"
    label: str = "label"
    val: str = "validation"

    def split(self, split: Split) -> str:
        """The dataset's own name of a split."""
        return self.val if split == "val" else split


_NAMES = {
    "uoft-cs/cifar10": Names(image="img"),
    "uoft-cs/cifar100": Names(image="img", label="fine_label"),
    "zh-plus/tiny-imagenet": Names(val="valid"),
}
"""Those that timm's defaults do not open."""


@dataclass(frozen=True)
class OnHub:
    """A split of a dataset on the Hub.

    Attributes:
        revision: What tells the dataset from its other states: the commit.
    """

    revision: str
    classes: int | None
    images: int | None


def is_on_hub(name: str) -> bool:
    """Whether a dataset's name is that of one on the Hub."""
    return name.lower().startswith(PREFIX)


def names_of(name: str) -> Names:
    """What a dataset calls its columns and splits."""
    return _NAMES.get(name[len(PREFIX) :], Names())


def require_datasets(name: str) -> None:
    """Refuse where Hugging Face datasets is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise IncompatibleError(f"{name} needs Hugging Face datasets", hint="pip install 'qvec-deploy[build]' datasets")


def look(name: str, splits: Sequence[Split], folder: Path | None = None) -> list[OnHub]:
    """What a dataset's card says of its splits; no image is downloaded."""
    require_datasets(name)
    import datasets  # type: ignore[import-not-found,unused-ignore]

    with hub_errors(name, hint="check the name, the network and your access rights; --offline takes the cache"):
        builder = datasets.load_dataset_builder(name[len(PREFIX) :], cache_dir=None if folder is None else str(folder))
    names, info = names_of(name), builder.info
    labels = getattr((info.features or {}).get(names.label), "names", None)
    classes = None if labels is None else len(labels)
    seen = []
    for split in map(names.split, splits):
        if info.splits and split not in info.splits:
            raise StorageError(f"{name} has {', '.join(info.splits)} and no {split}", hint="choose one of these splits")
        seen.append(OnHub(str(builder.hash), classes, info.splits[split].num_examples if info.splits else None))
    return seen


@contextlib.contextmanager
def offline_hub(offline: bool) -> Iterator[None]:
    """If `offline`, nothing is asked of the Hub meanwhile, by this process or by those that it starts."""
    if not offline:
        yield
        return
    loaded = [sys.modules[name] for name in _MODULES if name in sys.modules]
    environment = {name: os.environ.get(name) for name in _SWITCHES}
    settings = [
        (module, name, getattr(module, name)) for module in loaded for name in _SWITCHES if hasattr(module, name)
    ]
    try:
        os.environ.update(dict.fromkeys(_SWITCHES, "1"))
        for module, name, _ in settings:
            setattr(module, name, True)
        yield
    finally:
        for module, name, before in settings:
            setattr(module, name, before)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
