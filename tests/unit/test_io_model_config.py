"""What a checkpoint and the config.json beside it say about the model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import save_file
from timm.models import save_for_hf

from qvec_deploy.errors import IntegrityError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.model_config import ModelConfig, named_classes, read_configs
from qvec_deploy.models import describe

STATE = {"a.weight": torch.ones(2, 3)}


def test_what_timms_training_script_saves(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        model="vit_tiny_patch16_224", mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.9, interpolation="", img_size=32,
        input_size=None, num_classes=3, in_chans=None, gp=None, model_kwargs={"embed_dim": 48}, class_map="",
    )  # fmt: skip
    saved = {"arch": "vit_tiny_patch16_224", "state_dict": STATE, "args": arguments, "metric": np.float64(1.0)}
    torch.save(saved, tmp_path / "model_best.pth.tar")
    (config,) = Checkpoint.open(tmp_path / "model_best.pth.tar").configs()
    assert config == ModelConfig(
        source="model_best.pth.tar",
        architecture="vit_tiny_patch16_224",
        classes=3,
        args={"embed_dim": 48, "img_size": 32},
        preprocessing={"mean": (0.1, 0.2, 0.3), "crop_pct": 0.9},
    )


def test_timms_layout_on_the_hub(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, embed_dim=48, depth=1, num_heads=3)
    save_for_hf(model, tmp_path, model_config={"label_names": ["x", "y", "z"]}, safe_serialization=True)
    (config,) = Checkpoint.open(tmp_path / "model.safetensors").configs()
    assert (config.source, config.architecture, config.classes) == ("config.json", "vit_tiny_patch16_224", 3)
    assert config.class_names == ("x", "y", "z")
    assert describe(config.architecture, 3, config.args).shapes["head.weight"] == (3, 48), "no argument is given twice"
    assert config.preprocessing == {
        "input_size": (3, 32, 32),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize(
    "values",
    [
        {"architecture": "a", "mean": [0.5], "crop_pct": 2.0, "label_names": ["x", "y"]},  # the layout before timm 0.9
        {"architecture": "a", "pretrained_cfg": {"mean": [0.5], "std": ["?"]}, "id2label": {"1": "y", "0": "x"}},
    ],
)
def test_other_layouts(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    (config,) = read_configs(tmp_path / "a.pt", {}, tmp_path / "config.json")
    assert config == ModelConfig("config.json", "a", preprocessing={"mean": (0.5,)}, class_names=("x", "y"))


@pytest.mark.parametrize("text", ['{"model_type": "vit"}', "[1]", '{"architecture": 3}'])
def test_the_config_of_another_program_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert read_configs(tmp_path / "a.pt", {}, tmp_path / "config.json") == ()


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "vit')
    with pytest.raises(IntegrityError, match="is damaged: not JSON"):
        read_configs(tmp_path / "a.pt", {}, tmp_path / "config.json")


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    metadata = {"arch": "vit_small", "class_names": '["x", "y"]', "pretrained_cfg": '{"std": [0.5, 0.5, 0.5]}'}
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", metadata)
    (config,) = Checkpoint.open(tmp_path / "a.safetensors").configs()
    assert config.architecture == "vit_small" and config.class_names == ("x", "y")
    assert config.preprocessing == {"std": (0.5, 0.5, 0.5)}


@pytest.mark.parametrize(
    "saved",
    [
        {"classes": ["x", "y"]},
        {"class_to_idx": {"y": 1, "x": 0}},
        {"args": argparse.Namespace(class_names=["x", "y"])},
        {"hyper_parameters": {"id2label": {0: "x", 1: "y"}}},
        {"meta": {"CLASSES": ("x", "y")}},
        {"classes": 2, "config": {"label_names": ["x", "y"]}},
    ],
)
def test_class_names_of_training_scripts(tmp_path: Path, saved: dict[str, Any]) -> None:
    torch.save({**saved, "state_dict": STATE}, tmp_path / "best.pt")
    (config,) = Checkpoint.open(tmp_path / "best.pt").configs()
    assert config.class_names == ("x", "y")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (["x", "y"], ("x", "y")),
        ({"0": "x", "1": "y"}, ("x", "y")),
        ({"y": 1, "x": 0}, ("x", "y")),
        ({1: "y", 0: "x"}, ("x", "y")),
        ({"x": "0", "y": "1"}, ("x", "y")),
        ({"0": 0, "1": 1, "10": 2, "2": 3}, ("0", "1", "10", "2")),  # class_to_idx of folders that are numbers
        ({"0": "1", "1": "0"}, ("1", "0")),
        ({"x": 0, "y": 2}, ()),
        ({"0": "x", "00": "y"}, ()),
        (3, ()),
        ("xy", ()),
        ([0, 1], ()),
    ],
)
def test_named_classes(value: Any, names: tuple[str, ...]) -> None:
    assert named_classes(value) == names


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_labels_that_numpy_or_torch_counted(number: Any) -> None:
    assert named_classes({"b": number(0), "a": number(1)}) == ("b", "a")
    assert named_classes({number(0): "1", number(1): "0"}) == ("1", "0")


def test_numbers_that_cannot_be_divided_by_are_not_taken(tmp_path: Path) -> None:
    (config,) = read_configs(tmp_path / "a", {"args": {"mean": 0.5, "std": [0.0, 0, 0]}}, None)
    assert config.preprocessing == {"mean": (0.5,)}


@pytest.mark.parametrize("notes", [{"class_to_idx": {"a": 1, "b": 2}}, {"args": {"class_map": "map.txt"}}])
def test_names_that_are_not_understood_are_told(tmp_path: Path, notes: dict[str, Any]) -> None:
    (config,) = read_configs(tmp_path / "a", notes, None)
    assert config.class_names == () and ("class_to_idx" in config.unread or "map.txt" in config.unread)
