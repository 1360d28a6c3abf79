"""Checkpoints are read whole or refused, and never executed."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from qvec_deploy.errors import FetchError, IncompatibleError, IntegrityError, RecipeError, StorageError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import sha256_file

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    save_file({"a.weight": WEIGHT, "b": np.float32([0.5])}, path)
    return path


def test_safetensors(file: Path) -> None:
    checkpoint = Checkpoint.open(file)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a.weight": (3, 4), "b": (1,)}
    np.testing.assert_array_equal(checkpoint.read("a.weight"), WEIGHT)
    assert checkpoint.read("a.weight").dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    half = torch.from_numpy(WEIGHT).to(dtype)
    save_torch({"a": half}, tmp_path / "a.safetensors")
    torch.save({"a": half}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        np.testing.assert_array_equal(Checkpoint.open(tmp_path / name).read("a"), half.float().numpy())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_state_dicts(tmp_path: Path, wrap: Any, prefix: str) -> None:
    path = tmp_path / "classifier_epoch_5.pt"
    torch.save(wrap({f"{prefix}a.weight": torch.from_numpy(WEIGHT), f"{prefix}head.bias": torch.ones(2)}), path)
    checkpoint = Checkpoint.open(path)
    assert list(checkpoint.tensors) == ["a.weight", "head.bias"]
    np.testing.assert_array_equal(checkpoint.read("a.weight"), WEIGHT)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"a": _Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("bomb.pt", "module.pt"):
        with pytest.raises(IntegrityError, match="pickled code"):
            Checkpoint.open(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, file: Path, share: float) -> None:
    torch.save({"a": torch.from_numpy(WEIGHT)}, tmp_path / "a.pt")
    for path in (file, tmp_path / "a.pt"):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(IntegrityError):
            Checkpoint.open(path)


def test_damaged_pickles_are_refused_and_nothing_else_happens(tmp_path: Path) -> None:
    """Bytes of the pickle changed at random: the unpickler then raises nearly anything, and we one thing."""
    buffer = io.BytesIO()
    torch.save({"a.weight": torch.from_numpy(WEIGHT), "b": torch.ones(3, dtype=torch.float16)}, buffer)
    data = buffer.getvalue()
    with zipfile.ZipFile(buffer) as file:
        text = next(file.read(name) for name in file.namelist() if name.endswith("data.pkl"))
    start, path, generator = data.find(text), tmp_path / "a.pt", random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[start + generator.randrange(len(text))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint = Checkpoint.open(path)
            [checkpoint.read(name) for name in checkpoint.tensors]
        except (IntegrityError, IncompatibleError) as error:
            assert "\n" not in error.message
            refused += 1
    assert refused > 200


def test_a_forged_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    end = data.rfind(b"PK\x06\x07")  # the locator that says on how many disks the archive is
    assert end > 0
    data[end + 16] = 9
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(IntegrityError, match="not a whole torch checkpoint"):
        Checkpoint.open(tmp_path / "a.pt")


def test_unaligned_and_empty_tensors(tmp_path: Path) -> None:
    """safetensors aligns by dtype; other writers need not."""
    data = np.float16([1.5]).tobytes() + np.float32([0.1, -7]).tobytes() + np.float32(3).tobytes()
    parts = [("F16", [1], [0, 2]), ("F32", [2], [2, 10]), ("F32", [], [10, 14]), ("F32", [0, 3], [14, 14])]
    entries = {
        n: dict(zip(("dtype", "shape", "data_offsets"), p, strict=True)) for n, p in zip("abcd", parts, strict=True)
    }
    header = json.dumps(entries).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    checkpoint = Checkpoint.open(path)
    assert [checkpoint.read(name).tolist() for name in "abcd"] == [[1.5], np.float32([0.1, -7]).tolist(), 3.0, []]
    assert checkpoint.read("d").shape == (0, 3)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pt", "a.txt"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all" * 10)
        with pytest.raises(IntegrityError):
            Checkpoint.open(tmp_path / name)
    with pytest.raises(StorageError, match="does not exist"):
        Checkpoint.open(tmp_path / "absent.pt")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(IntegrityError, match="no tensors"):
        Checkpoint.open(tmp_path / "empty.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(IntegrityError, match="no state dict"):
        Checkpoint.open(tmp_path / "list.pt")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    weight = WEIGHT.copy()
    weight[1, 2] = bad
    save_file({"a": weight}, tmp_path / "a.safetensors")
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        Checkpoint.open(tmp_path / "a.safetensors").read("a")


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.arange(3)}, tmp_path / "a.safetensors")
    with pytest.raises(IncompatibleError, match="I64"):
        Checkpoint.open(tmp_path / "a.safetensors").read("a")


@pytest.mark.parametrize(
    "address",
    [
        "hf://",
        "hf://org",
        "hf://org/repo",
        "hf://org//a.pt",
        "hf://o/r@1@2/a.pt",
        "hf://o/r@/a.pt",
        "hf://o/@1/a.pt",
        "hf://a%b/c/a.pt",
    ],
)
def test_malformed_addresses(address: str) -> None:
    with pytest.raises(RecipeError, match="not an address"):
        Checkpoint.open(address, offline=True)


def test_a_file_on_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repository: str, path: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repository, path, revision, local_files_only))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert "b" in Checkpoint.open("hf://org/repo@abc/x/y.safetensors", offline=True).tensors
    Checkpoint.open("hf://org/repo/y.safetensors")
    assert asked == [("org/repo", "x/y.safetensors", "abc", True), ("org/repo", "y.safetensors", None, False)]


def test_a_pattern_matches_one_file_of_the_hub(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["fp/bs=128/mult=1/seed=1/a_epoch_5.pt", "fp/bs=128/seed=2/a_epoch_7.pt", "qat/bs=128/seed=1/a_epoch_5.pt"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repository, revision: names)
    chosen: list[str] = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda r, path, **kw: chosen.append(path) or str(file))
    Checkpoint.open("hf://org/repo/fp/bs=128*/seed=1/a_epoch_*.pt")
    assert chosen == [names[0]]
    for pattern, count in (("fp/*/seed=9/*.pt", 0), ("*/a_epoch_5.pt", 2)):
        with pytest.raises(FetchError, match=f"matches {count} files"):
            Checkpoint.open(f"hf://org/repo/{pattern}")


@pytest.fixture
def hub_cache(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub client's own cache with one file of one revision, and no network."""

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "a" * 40
    place = tmp_path / "hub" / "models--org--repo"
    (place / "snapshots" / commit / "deep").mkdir(parents=True)
    (place / "snapshots" / commit / "deep" / "a.safetensors").write_bytes(file.read_bytes())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    return place


@pytest.mark.parametrize("revision", ["", "@main", f"@{'a' * 40}"])
def test_offline_reads_the_cache_and_no_network(hub_cache: Path, revision: str) -> None:
    checkpoint = Checkpoint.open(f"hf://org/repo{revision}/deep/a.safetensors", offline=True)
    np.testing.assert_array_equal(checkpoint.read("a.weight"), WEIGHT)
    assert "b" in Checkpoint.open(f"hf://org/repo{revision}/deep/*.safetensors", offline=True).tensors


@pytest.mark.parametrize("address", ["hf://org/repo/other.pt", "hf://org/other/a.pt", "hf://org/repo@v2/deep/a.pt"])
def test_offline_and_not_in_the_cache(hub_cache: Path, address: str) -> None:
    with pytest.raises(FetchError, match="not in the local cache") as caught:
        Checkpoint.open(address, offline=True)
    assert caught.value.exit_code == 7 and "--offline" in caught.value.hint


def test_what_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no")

    def broken(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    with pytest.raises(FetchError, match="local cache") as caught:
        Checkpoint.open("hf://org/repo/a.pt", offline=True)
    assert "--offline" in caught.value.hint
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(FetchError, match="no route to host"):
        Checkpoint.open("hf://org/repo/a.pt")


def test_a_checkpoint_that_is_pinned_is_that_one(file: Path) -> None:
    checkpoint = Checkpoint.open(file)
    checkpoint.require(None)
    checkpoint.require(sha256_file(file))
    with pytest.raises(IntegrityError, match="the recipe wants 0000"):
        checkpoint.require("0" * 64)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_more_than_eight_dimensions_are_refused(tmp_path: Path, name: str) -> None:
    state = {"a": torch.ones([1] * 8), "b": torch.ones([1] * 9)}
    (save_torch if name.endswith(".safetensors") else torch.save)(state, tmp_path / name)
    with pytest.raises(IntegrityError, match="b has more than 8 dimensions"):
        Checkpoint.open(tmp_path / name)


@pytest.mark.parametrize("old", [False, True])
def test_a_pickle_that_names_something_endless_is_refused(tmp_path: Path, old: bool) -> None:
    """PyTorch's loader would search its own message about that for minutes."""
    path = tmp_path / "c.pth"
    if old:
        torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
        data = path.read_bytes()
        path.write_bytes(data.replace(b"ctorch\nFloatStorage\n", b"ctorch\n" + b"[" * 100_000 + b"\n", 1))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("c/data.pkl", b"\x80\x02ctorch\n" + b"[" * 100_000 + b"\n.")
            archive.writestr("c/version", b"3\n")
    with pytest.raises(IntegrityError, match=r"c\.pth: its pickle names something in 100,00\d characters"):
        Checkpoint.open(path)


def test_two_names_that_are_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "numbers.pt"
    torch.save({1: torch.zeros(2), "1": torch.ones(2)}, path)
    with pytest.raises(IntegrityError, match=r"numbers\.pt has two tensors named 1"):
        Checkpoint.open(path)
