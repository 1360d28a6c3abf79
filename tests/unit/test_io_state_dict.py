"""A network is found in whatever a training script saved around it, and nothing is chosen silently."""

from __future__ import annotations

import argparse
import fractions
import json
import pathlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError, RecipeError, StorageError
from qvec_deploy.io.checkpoint import Checkpoint

STATE = {
    "patch_embed.proj.weight": torch.ones(4, 3, 2, 2),
    "blocks.0.attn.qkv.weight": torch.arange(48.0).reshape(12, 4),
    "blocks.1.attn.qkv.weight": torch.ones(12, 4),
    "head.weight": torch.full((3, 4), 2.0),
    "head.bias": torch.zeros(3),
}
AVERAGED = {name: value + 1 for name, value in STATE.items()}


def _under(*prefixes: str, state: dict[str, torch.Tensor] = STATE) -> dict[str, torch.Tensor]:
    return {"".join(f"{prefix}." for prefix in prefixes) + name: value for name, value in state.items()}


def _open(folder: Path, saved: Any, name: str = "saved.pt", **options: Any) -> Checkpoint:
    torch.save(saved, folder / name)
    return Checkpoint.open(folder / name, **options)


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": STATE, "args": argparse.Namespace(lr=1e-3, out=pathlib.Path("x")), "best": np.float64(0.9)},
        {"model": STATE, "epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"model": {"state_dict": STATE}},
        _under("module", "_orig_mod"),
        _under("_orig_mod", "module"),
        _under("model", "module", "_orig_mod", "model"),
        {"state_dict": _under("model", "_orig_mod")},
        {"state_dict": _under("vit_backbone")},
        {"state_dict": {**_under("net"), "criterion.weight": torch.ones(3), "train_acc.total": torch.tensor(5)}},
        {**_under("module"), "n_averaged": torch.tensor(3)},
        {"state_dict": STATE, "loss": torch.tensor(0.3), "confusion": torch.ones(3, 3)},
        {"net_state_dict": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(3, 4)}}}},
        {"optimizer": {"state": {"blocks.0.weight": {"exp_avg": torch.ones(3, 4)}}}, "checkpoint": {"params": STATE}},
        {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in STATE.items()},
        _under(
            "_fsdp_wrapped_module",
            state={n.replace("blocks.", "blocks._fsdp_wrapped_module."): v for n, v in STATE.items()},
        ),
        {**_under("model"), "loss.weight": torch.ones(500, 4)},
        {**_under("net", "model"), "memory": torch.ones(500, 4)},
    ],
)
@pytest.mark.parametrize("name", ["model_best.pth.tar", "last.ckpt", "saved"])
def test_wrappers_are_undone_whatever_the_file_is_called(tmp_path: Path, saved: Any, name: str) -> None:
    checkpoint = _open(tmp_path, saved, name)
    assert set(checkpoint.tensors) == set(STATE)
    np.testing.assert_array_equal(checkpoint.read("head.weight"), 2)
    assert checkpoint.weights is None


def test_what_is_not_the_networks_is_left_aside_and_named(tmp_path: Path) -> None:
    saved = {**_under("model"), "loss.weight": torch.ones(3), "seen": torch.tensor(7)}
    assert _open(tmp_path, {"state_dict": saved}).aside == ("loss.weight", "seen")


@pytest.mark.parametrize("prefix", ["network", "stages", "blocks"])
def test_numbered_modules_of_the_network_are_no_wrapper(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}.{index}.weight": torch.ones(90, 90) for index in range(3)} | {"head.weight": torch.ones(2, 3)}
    assert set(_open(tmp_path, state).tensors) == set(state)


BOTH = [
    {"state_dict": STATE, "state_dict_ema": AVERAGED},
    {"model": STATE, "model_ema": AVERAGED},
    {"model": STATE, "model_ema": {"module": AVERAGED}},
    {"state_dict": {**_under("model"), **_under("ema_model", "module", state=AVERAGED)}},
    {**_under("net"), **_under("net_ema", state=AVERAGED)},
    *(
        {"model": STATE, name: AVERAGED}
        for name in ("swa_model", "averaged_model", "model_ema_state_dict", "ema_weights")
    ),
    {"net_state_dict": STATE, "shadow": {"decay": 0.999, "params": _under("module", state=AVERAGED)}},
    {**_under("model"), **_under("ema_model", "module", state=AVERAGED), "ema_model.n_averaged": torch.tensor(3)},
    {**_under("model"), **_under("model_ema", "ema_model", state=AVERAGED)},
]


@pytest.mark.parametrize("saved", BOTH)
def test_raw_or_averaged_is_never_chosen_silently(tmp_path: Path, saved: Any) -> None:
    with pytest.raises(RecipeError, match="raw and averaged") as caught:
        _open(tmp_path, saved)
    assert "receiver.weights" in caught.value.hint
    for weights, value in (("raw", 2), ("ema", 3)):
        checkpoint = _open(tmp_path, saved, weights=weights)
        assert checkpoint.weights == weights and set(checkpoint.tensors) == set(STATE)
        np.testing.assert_array_equal(checkpoint.read("head.weight"), value)


def test_averaged_weights_alone_are_taken_and_told(tmp_path: Path) -> None:
    assert _open(tmp_path, {"state_dict_ema": AVERAGED}).weights == "ema"
    with pytest.raises(RecipeError, match="only ema"):
        _open(tmp_path, {"state_dict_ema": AVERAGED}, weights="raw")


def test_two_networks_are_not_chosen_between(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"student\.\*, teacher\.\*"):
        _open(tmp_path, {**_under("student"), **_under("teacher", state=AVERAGED)})


@pytest.mark.parametrize(
    "saved",
    [
        {"student": _under("module"), "teacher": AVERAGED},
        {"model": STATE, "best_model": AVERAGED},
        {**_under("student"), **_under("teacher", state={**STATE, "more.weight": torch.ones(30, 30)})},
    ],
)
def test_which_of_two_networks_is_not_guessed(tmp_path: Path, saved: Any) -> None:
    with pytest.raises(IncompatibleError, match="several networks: "):
        _open(tmp_path, saved)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("base_model.model.blocks.0.attn.qkv.lora_A.default.weight", "LoRA"),
        ("blocks.0.attn.qkv.lora_down.weight", "LoRA"),
        ("vit.embeddings.patch_embeddings.projection.weight", "Transformers"),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", "torchvision"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "OpenCLIP"),
    ],
)
def test_other_libraries_are_recognised(tmp_path: Path, name: str, library: str) -> None:
    with pytest.raises(IncompatibleError, match=library):
        _open(tmp_path, {name: torch.ones(2, 2), "head.weight": torch.ones(2, 2)})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 343\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b'{"weights": 3}', "an index of shards, is damaged"),
        (b"\xef\xbb\xbf<!-- --><html>", "web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"\x80\x04 something else", "bare pickle"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"\0" * 257 + b"ustar", "tar archive"),
        (b"\x08\x0a\x12\x07pytorch", "ONNX model"),
        (b"\x93NUMPY", "NumPy array"),
        (b"\x18 something else", "not a checkpoint"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.bin"])
def test_files_that_are_something_else_are_named(tmp_path: Path, content: bytes, told: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QvecError, match=told):
        Checkpoint.open(tmp_path / name)


def test_the_oldest_format_of_torch_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(Checkpoint.open(tmp_path / "old.pth").read("head.weight"), 2)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    parts = {"a-1.safetensors": list(STATE)[:2], "a-2.safetensors": list(STATE)[2:]}
    for file, names in parts.items():
        save_file({f"model.{name}": STATE[name] for name in names}, tmp_path / file)
    places = {f"model.{name}": file for file, names in parts.items() for name in names}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    checkpoint = Checkpoint.open(index)
    assert set(checkpoint.tensors) == set(STATE)
    np.testing.assert_array_equal(checkpoint.read("head.weight"), 2)
    before = checkpoint.fingerprint()
    save_file({f"model.{name}": STATE[name] + 1 for name in parts["a-2.safetensors"]}, tmp_path / "a-2.safetensors")
    assert Checkpoint.open(index).fingerprint() != before
    (tmp_path / "a-2.safetensors").unlink()
    with pytest.raises(StorageError, match="a shard of"):
        Checkpoint.open(index)
    index.write_text(json.dumps({"weight_map": {"a": "../a-1.safetensors"}}))
    with pytest.raises(IntegrityError, match="outside its folder"):
        Checkpoint.open(index)


def test_two_large_parts_of_one_network_are_no_two_networks(tmp_path: Path) -> None:
    state = {f"{part}.{name}.weight": torch.ones(40, 40) for part in ("trunk", "neck") for name in (f"{part}1", "norm")}
    assert set(_open(tmp_path, state).tensors) == set(state)


def test_a_norm_and_a_head_are_no_networks(tmp_path: Path) -> None:
    """They have the same names of tensors, and hardly any weights."""
    state = {**STATE, "fc_norm.weight": torch.ones(4), "fc_norm.bias": torch.ones(4)}
    assert set(_open(tmp_path, state).tensors) == set(state)


def test_an_encoder_is_no_wrapper_where_the_head_is_beside_it(tmp_path: Path) -> None:
    """So timm names Gemma's, Qwen's and DeepSeek's: nearly all weights lie under one name, and the head does not."""
    body = {name: value for name, value in STATE.items() if not name.startswith("head.")}
    saved = {**_under("encoder", state=body), "head.weight": torch.zeros(1, 1)}
    assert set(_open(tmp_path, saved).tensors) == set(saved)
    assert set(_open(tmp_path, _under("module", state=saved)).tensors) == set(saved)


def test_what_timm_computes_itself_is_left_aside(tmp_path: Path) -> None:
    """Counters of BatchNorm, and the masks and indices that older releases of timm stored."""
    saved = {
        **STATE,
        "norm.running_mean": torch.zeros(4),
        "norm.num_batches_tracked": torch.tensor(7),
        "blocks.0.attn.relative_position_index": torch.zeros(4, 4, dtype=torch.long),
        "blocks.0.attn_mask": torch.zeros(4, 4),
    }
    checkpoint = _open(tmp_path, saved)
    assert set(checkpoint.tensors) == {*STATE, "norm.running_mean"}
    assert set(checkpoint.aside) == set(saved) - set(checkpoint.tensors)


def test_a_layer_called_conv_proj_is_no_torchvision_vit(tmp_path: Path) -> None:
    saved = {**STATE, "stages.0.conv_proj.conv.weight": torch.ones(2, 2, 1, 1)}  # as in MobileViT
    assert set(_open(tmp_path, saved).tensors) == set(saved)


def test_a_folder_is_answered_with_its_files(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model.safetensors.index.json", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(StorageError, match="is a folder") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.hint.endswith(": model.safetensors.index.json, model-1.safetensors")


def test_programs_and_archives_are_no_checkpoints(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"")
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(IncompatibleError, match="TorchScript"):
        Checkpoint.open(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(IntegrityError, match="zip archive") as caught:
        Checkpoint.open(tmp_path / "a.zip")
    assert "unpack" in caught.value.hint


def test_what_a_pickle_would_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"\(fractions.Fraction\)"):
        _open(tmp_path, {"state_dict": STATE, "hyper_parameters": {"share": fractions.Fraction(1, 2)}})


def test_double_precision_is_read(tmp_path: Path) -> None:
    double = {name: value.double() for name, value in STATE.items()}
    np.testing.assert_array_equal(_open(tmp_path, double).read("head.weight"), np.full((3, 4), 2, np.float32))
    save_file(double, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(Checkpoint.open(tmp_path / "a.safetensors").read("head.weight"), 2)
