"""What torch.save wrote is read right or refused: archives that were changed, and tensors that are no plain ones."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qvec_deploy.errors import IncompatibleError, IntegrityError, QvecError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.torch_archive import check_archive

STATE = {f"blocks.{i}.weight": torch.arange(64.0).reshape(8, 8) + i for i in range(6)} | {"head.bias": torch.ones(3)}
Members = dict[str, bytes]


def _members(saved: Any = STATE) -> Members:
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _read(path: Path) -> dict[str, np.ndarray]:
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _assert_right(found: dict[str, np.ndarray]) -> None:
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        np.testing.assert_array_equal(found[name], value.numpy())


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused(tmp_path: Path, compression: int) -> None:
    with pytest.raises(IntegrityError, match="compressed again"):
        Checkpoint.open(_zipped(tmp_path / "a.pt", _members(), compression))


def test_an_archive_that_was_stored_again_is_read(tmp_path: Path) -> None:
    _assert_right(_read(_zipped(tmp_path / "a.pt", _members())))


def test_the_state_of_an_optimizer_stays_aside(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(value.clone()) for value in STATE.values()]
    optimizer = torch.optim.Adam(weights)
    sum((weight.sum() for weight in weights), torch.zeros(())).backward()
    optimizer.step()
    state = dict(zip(STATE, weights, strict=True))
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, tmp_path / "a.pt")
    for name, value in _read(tmp_path / "a.pt").items():
        np.testing.assert_array_equal(value, state[name].detach().numpy())


def _with(change: Callable[[Members], object]) -> Members:
    members = _members()
    change(members)
    return members


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (lambda: _with(lambda m: m.update({"archive/data/0": m["archive/data/0"][:-4]})), "not those of"),
        (lambda: _with(lambda m: m.update({"archive/data/0": m["archive/data/0"] + bytes(64)})), "not those of"),
        (lambda: _with(lambda m: m.update({"archive/data/9": bytes(64)})), "not those of"),
        (lambda: _with(lambda m: m.pop("archive/data/0")), "not a whole torch checkpoint"),
        (lambda: _with(lambda m: m.update({"archive/byteorder": b"big"})), "little-endian"),
        (lambda: _with(lambda m: m.update({"archive/DATA.pkl": m["archive/data.pkl"]})), "two members of one name"),
        (lambda: {"other/x": b"1"} | _members(), "not laid out"),
        (lambda: _members({**STATE, "note": bytearray(8)}), "byte arrays"),
    ],
)
def test_members_that_were_changed_are_refused(tmp_path: Path, members: Callable[[], Members], told: str) -> None:
    with pytest.raises(QvecError, match=told):
        Checkpoint.open(_zipped(tmp_path / "a.pt", members()))


def test_two_members_in_one_place_are_refused(tmp_path: Path) -> None:
    """The directory says that a storage lies where another one does."""
    torch.save(STATE, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        at = {member.filename: member.header_offset for member in archive.infolist()}
    data = bytearray((tmp_path / "a.pt").read_bytes())
    name = b"a/data/1"
    entry = data.rfind(name) - 46  # its entry in the directory
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + 42 : entry + 46] = at["a/data/0"].to_bytes(4, "little")
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(IntegrityError, match="does not fit its members"):
        Checkpoint.open(tmp_path / "a.pt")


def test_a_large_pickle_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="more than 64 MB"):
        check_archive(_zipped(tmp_path / "a.pt", {"archive/data.pkl": bytes((64 << 20) + 1)}))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.ones(1).expand(10**6, 10**6), "expanded"),
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.ones(2, device="meta"), "no values"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized already"),
    ],
)
def test_tensors_that_are_no_plain_ones_are_named(tmp_path: Path, make: Any, told: str, old: bool) -> None:
    torch.save({**STATE, "odd": make()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(IncompatibleError if told != "expanded" else IntegrityError, match=rf"odd (is|has) .*{told}"):
        Checkpoint.open(tmp_path / "a.pt")


@pytest.mark.parametrize("old", [False, True])
def test_views_and_tied_weights_are_read_right(tmp_path: Path, old: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    views = {**STATE, "a.t": base.t(), "a.part": base[1:3, ::2], "a.tied": base, "a.minus": base._neg_view()}
    torch.save(views, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    found = _read(tmp_path / "a.pt")
    for name, value in views.items():
        np.testing.assert_array_equal(found[name], value.resolve_neg().numpy())


def test_references_without_end_are_refused(tmp_path: Path) -> None:
    bomb: Any = dict(STATE)
    for _ in range(60):
        bomb = {"a": bomb, "b": bomb}
    itself: Any = {"model": {}}
    itself["model"] = itself
    deep: Any = dict(STATE)
    for _ in range(70):
        deep = {"model": deep}
    for saved, told in ((bomb, "entries"), (itself, "nested"), (deep, "nested")):
        torch.save(saved, tmp_path / "a.pt")
        with pytest.raises(IntegrityError, match=told):
            Checkpoint.open(tmp_path / "a.pt")


def test_checksums_are_compared_when_the_file_is_hashed(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.find(STATE["blocks.3.weight"].numpy().tobytes())
    data[at] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    checkpoint = Checkpoint.open(tmp_path / "a.pt")
    with pytest.raises(IntegrityError, match="checksum of a/data/3"):
        checkpoint.fingerprint()


def test_every_flip_of_one_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever changes in an archive, opened and hashed: other weights are never taken silently."""
    torch.save(STATE, tmp_path / "a.pt")
    data, path = (tmp_path / "a.pt").read_bytes(), tmp_path / "b.pt"
    generator = np.random.default_rng(0)
    refused = 0
    for at in generator.choice(len(data), 300, replace=False):
        changed = bytearray(data)
        changed[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            checkpoint = Checkpoint.open(path)
            checkpoint.fingerprint()
            found = {name: checkpoint.read(name) for name in checkpoint.tensors}
        except QvecError:
            refused += 1
        else:
            _assert_right(found)
    assert refused > 100


def test_what_was_saved_on_a_gpu_is_read_where_there_is_none(tmp_path: Path) -> None:
    members = _members()
    cpu, cuda = (b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", b"cuda:0"))
    assert cpu in members["archive/data.pkl"]
    members["archive/data.pkl"] = members["archive/data.pkl"].replace(cpu, cuda)
    _assert_right(_read(_zipped(tmp_path / "a.pt", members)))


def test_archives_of_before_torch_2_1_are_read(tmp_path: Path) -> None:
    """They do not say in which order bytes lie, nor number their storages."""
    kept = {name: data for name, data in _members().items() if name.split("/", 1)[1].startswith(("data", "version"))}
    assert len(kept) == len(STATE) + 2
    _assert_right(_read(_zipped(tmp_path / "a.pt", kept)))


def _old(tmp_path: Path) -> tuple[Path, list[int]]:
    """A file without an archive, and where each of its pickles begins and what follows them."""
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    starts = [0]
    with path.open("rb") as file:
        for _ in range(5):
            list(pickletools.genops(file))
            starts.append(file.tell())
    return path, starts


def test_storages_that_are_not_listed_are_refused(tmp_path: Path) -> None:
    """torch returns memory as it was before for them."""
    path, starts = _old(tmp_path)
    data, keys = path.read_bytes(), starts[-2:]
    head, listed, rest = data[: keys[0]], pickle.loads(data[keys[0] : keys[1]]), data[keys[1] :]
    wrong: list[Any] = [[], listed[:-1], listed[:-1] * 2, dict.fromkeys(listed[:1], listed[-1]), [*listed, listed[0]]]
    for odd in wrong:
        for tail in (rest, b""):
            path.write_bytes(head + pickle.dumps(odd, 2) + tail)
            with pytest.raises(IntegrityError):
                Checkpoint.open(path)
    path.write_bytes(head + pickle.dumps([], 2) + data[keys[0] :])  # found by fuzzing: another list before theirs
    with pytest.raises(IntegrityError, match="not those of the storages that it lists"):
        Checkpoint.open(path)
    path.write_bytes(data + b"x")
    with pytest.raises(IntegrityError, match="not those of the storages that it lists"):
        Checkpoint.open(path)
    path.write_bytes(data)
    Checkpoint.open(path)
