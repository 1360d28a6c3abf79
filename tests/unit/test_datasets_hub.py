"""Datasets on the Hub: cards tell what they hold, odd columns and splits are known, and offline means offline."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub.constants
import pytest
from fake_datasets import fake_datasets

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.datasets.hub_datasets import OnHub, look, offline_hub
from qvec_deploy.errors import FetchError, IncompatibleError, StorageError

SPLITS = {"train": 6, "test": 4}


def test_a_card_tells_what_splits_hold_and_nothing_is_downloaded() -> None:
    with fake_datasets({"who/what": {**SPLITS, "validation": 5}}) as fake:
        assert look("HFDS/who/what", ("train", "val")) == [OnHub("c0ffee", 2, 6), OnHub("c0ffee", 2, 5)]
        assert fake.looked == ["who/what"] and not fake.loaded


def test_a_card_that_says_little() -> None:
    with fake_datasets({"who/what": {}}, classes={"who/what": None}):
        assert look("hfds/who/what", ("train",)) == [OnHub("c0ffee", None, None)]


def test_what_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_datasets({"who/what": SPLITS}):
        with pytest.raises(FetchError, match=r"hfds/who/else: Dataset 'who/else' doesn't exist"):
            look("hfds/who/else", ("test",))
        with pytest.raises(StorageError, match="hfds/who/what has train, test and no validation"):
            look("hfds/who/what", ("val",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(IncompatibleError, match="hfds/who/what needs Hugging Face datasets"):
        look("hfds/who/what", ("test",))


@pytest.mark.parametrize(
    ("name", "columns", "split"),
    [
        ("uoft-cs/cifar10", ("img", "label"), "test"),
        ("uoft-cs/cifar100", ("img", "fine_label"), "test"),
        ("zh-plus/tiny-imagenet", ("image", "label"), "valid"),
        ("who/what", ("image", "label"), "validation"),
    ],
)
def test_odd_columns_and_splits_are_known(name: str, columns: tuple[str, str], split: str) -> None:
    with fake_datasets({name: {"train": 6, split: 4}}, columns={name: columns}) as fake:
        spec = DatasetSpec(f"hfds/{name}", "test" if split == "test" else "val")
        assert look(spec.name, (spec.split,)) == [OnHub("c0ffee", 2, 4)]
        data = open_dataset(spec, DataConfig())
        assert fake.loaded == [(name, split)]
        assert (len(data), data.classes) == (4, 2)
        images, labels = data.take([3, 0])
        assert images.shape == (2, 3, 32, 32) and labels.tolist() == [1, 0]


def test_offline_is_for_this_process_and_those_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    child = [sys.executable, "-c", "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE)"]
    with fake_datasets({}) as fake:
        with offline_hub(True):
            assert huggingface_hub.constants.HF_HUB_OFFLINE and fake.config.HF_HUB_OFFLINE
            assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
            assert subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip() == "True"
        with offline_hub(False):
            assert not huggingface_hub.constants.HF_HUB_OFFLINE and not fake.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "0" and "HF_DATASETS_OFFLINE" not in os.environ


def test_what_was_offline_before_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KeyError), offline_hub(True):
        raise KeyError
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with offline_hub(False):
        assert huggingface_hub.constants.HF_HUB_OFFLINE
