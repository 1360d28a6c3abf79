"""Files are whole or not there: whatever interrupts a write, the old state stays and no litter is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qvec_deploy.errors import StorageError
from qvec_deploy.io import files as store
from qvec_deploy.io.files import (
    atomic_path,
    canonical_json,
    file_lock,
    require_file,
    sha256_bytes,
    sha256_file,
    staging_directory,
    storage_errors,
    write_bytes,
)

INTERRUPTIONS: list[BaseException] = [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3)]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _bundle(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "manifest.json").write_text('{"format": "qvec-bundle"}')
    (path / "weights").write_text(text)
    return path


def _killed_exchange(final: Path) -> None:
    """What is left when a process is killed while it puts a new bundle in the place of an old one."""
    for path in final.parent.iterdir():
        shutil.rmtree(path)
    _bundle(final.parent / f".{final.name}.abcdefgh.old")
    _bundle(final.parent / f".{final.name}.ijklmnop.tmp", "new")


def _stage_and_fail(final: Path) -> None:
    with contextlib.suppress(RuntimeError), staging_directory(final):
        raise RuntimeError


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class TestCanonicalJson:
    def test_bytes_do_not_depend_on_the_order_of_keys(self) -> None:
        one = {"b": 1, "a": {"d": [1, 2], "c": None}}
        other = {"a": {"c": None, "d": [1, 2]}, "b": 1}
        assert canonical_json(one) == canonical_json(other) == b'{"a":{"c":null,"d":[1,2]},"b":1}'

    def test_lists_keep_their_order(self) -> None:
        assert canonical_json([3, 1, 2]) == b"[3,1,2]"

    def test_text_is_ascii(self) -> None:
        assert canonical_json("é\n") == b'"\\u00e9\\n"'

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_what_json_does_not_have_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="JSON"):
            canonical_json({"a": [value]})


class TestHashes:
    def test_known_digest(self) -> None:
        expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
        assert sha256_bytes(b"abc") == expected

    def test_a_file_is_hashed_as_its_bytes(self, tmp_path: Path) -> None:
        data = bytes(range(256)) * 5000  # more than one buffer
        (tmp_path / "a").write_bytes(data)
        assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=f"{tmp_path}/a"):
            sha256_file(tmp_path / "a")


class TestStorageErrors:
    @pytest.mark.parametrize(
        ("number", "hint"),
        [
            (errno.ENOSPC, "free some space"),
            (errno.EACCES, "permissions"),
            (errno.EROFS, "read-only"),
            (errno.ENOENT, "check the path"),
            (errno.EIO, "the disk"),
        ],
    )
    def test_the_path_the_reason_and_a_hint(self, number: int, hint: str) -> None:
        original = OSError(number, os.strerror(number))
        with pytest.raises(StorageError) as caught, storage_errors(Path("some/place")):
            raise original
        assert caught.value.message == f"some/place: {os.strerror(number)}"
        assert hint in caught.value.hint
        assert caught.value.exit_code == 6
        assert caught.value.__cause__ is original

    def test_a_full_disk_is_that_of_the_target(self) -> None:
        """`os.link` and `shutil.copyfile` name both."""
        full = OSError(errno.ENOSPC, "No space left on device", "src/a", None, "out/.b.abcd1234.tmp/c")
        with pytest.raises(StorageError, match=r"^out/b: No space left"), storage_errors(Path("out")):
            raise full

    @pytest.mark.parametrize(
        ("path", "told"),
        [
            ("out/.bundle.abcd1234.tmp/.qvec-release.abcd1234.tmp/bundle/a", "out/bundle"),
            (".a.bin.abcd1234.tmp", "a.bin"),
            ("/tmp/qvec-export.abcd1234.tmp/model.onnx", "/tmp/qvec-export.abcd1234.tmp/model.onnx"),
        ],
    )
    def test_what_is_not_yet_whole_is_told_by_the_name_that_it_will_have(self, path: str, told: str) -> None:
        with pytest.raises(StorageError) as caught, storage_errors(Path(path)):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.message == f"{told}: No space left on device"

    def test_a_copy_blames_the_one_that_failed(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"bytes")
        with pytest.raises(StorageError, match=f"^{tmp_path}/missing: "):
            store.copy_file(tmp_path / "missing", tmp_path / "b")
        with pytest.raises(StorageError, match=r"^/dev/full: No space left"):
            store.copy_file(tmp_path / "a", Path("/dev/full"))
        with pytest.raises(StorageError, match=r"^/proc/self/mem: Input/output error"):
            store.copy_file(Path("/proc/self/mem"), tmp_path / "b")

    def test_the_errors_own_path_is_the_culprit(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError) as caught, storage_errors(Path("some/place")):
            (tmp_path / "absent").read_bytes()
        assert caught.value.message == f"{tmp_path}/absent: No such file or directory"

    def test_an_error_without_a_number_keeps_its_words(self) -> None:
        with pytest.raises(StorageError, match="some/place: the tape is torn"), storage_errors(Path("some/place")):
            raise OSError("the tape is torn")

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_everything_else_passes(self, error: BaseException) -> None:
        with pytest.raises(type(error)) as caught, storage_errors(Path("some/place")):
            raise error
        assert caught.value is error


class TestAtomicPath:
    def test_the_file_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "a.bin"
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"whole")
            assert not path.exists()
            assert temporary.parent == path.parent, "a rename is atomic within one folder only"
        assert path.read_bytes() == b"whole"
        assert _names(path.parent) == ["a.bin"]

    def test_the_old_file_stays_until_then(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert _names(tmp_path) == ["a.bin"]

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_nothing_is_left_when_the_block_fails(self, tmp_path: Path, error: BaseException) -> None:
        with pytest.raises(type(error)), atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise error
        assert _names(tmp_path) == []

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_the_old_file_survives_a_failure(self, tmp_path: Path, error: BaseException) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"old")
        with pytest.raises(type(error)), atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise error
        assert path.read_bytes() == b"old"
        assert _names(tmp_path) == ["a.bin"]

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"a\.bin: No space left"), atomic_path(tmp_path / "a.bin") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert _names(tmp_path) == []

    def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(self, tmp_path: Path) -> None:
        for name in (".a.bin.k1llled_.tmp", ".b.bin.k1llled_.tmp", ".a.bin.notes.tmp"):
            (tmp_path / name).write_bytes(b"half")
        with atomic_path(tmp_path / "a.bin") as living:
            living.write_bytes(b"first")
            write_bytes(tmp_path / "a.bin", b"second")
            assert _names(tmp_path) == sorted([living.name, ".b.bin.k1llled_.tmp", ".a.bin.notes.tmp", "a.bin"])
        assert (tmp_path / "a.bin").read_bytes() == b"first"
        assert _names(tmp_path) == [".a.bin.notes.tmp", ".b.bin.k1llled_.tmp", "a.bin"]

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"mine")
        with pytest.raises(StorageError, match=f"{tmp_path}/file"), atomic_path(tmp_path / "file" / "a.bin"):
            pytest.fail("the block was entered")
        assert (tmp_path / "file").read_bytes() == b"mine"


class TestWriteBytes:
    @pytest.mark.parametrize("mask", [0o077, 0o000])
    def test_everyone_may_read_and_the_owner_write(self, tmp_path: Path, mask: int) -> None:
        with _umask(mask):
            write_bytes(tmp_path / "a.bin", b"whole")
        assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o644
        assert (tmp_path / "a.bin").read_bytes() == b"whole"
        assert _names(tmp_path) == ["a.bin"]

    def test_a_directory_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "a.bin").mkdir()
        with pytest.raises(StorageError, match=r"a\.bin"):
            write_bytes(tmp_path / "a.bin", b"whole")
        assert _names(tmp_path) == ["a.bin"]


class TestStagingDirectory:
    def test_it_appears_whole(self, tmp_path: Path) -> None:
        final = tmp_path / "new" / "bundle"
        with _umask(0o077), staging_directory(final) as staging:
            (staging / "inner").mkdir()
            (staging / "inner" / "a").write_text("a")
            (staging / "b").write_text("b")
            assert not final.exists()
            assert staging.parent == final.parent
        assert _names(final.parent) == ["bundle"]
        assert _names(final) == ["b", "inner"] and (final / "inner" / "a").read_text() == "a"
        assert stat.S_IMODE(final.stat().st_mode) == 0o755

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_it_vanishes_when_the_block_fails(self, tmp_path: Path, error: BaseException, force: bool) -> None:
        with (
            pytest.raises(type(error)) as caught,
            staging_directory(tmp_path / "bundle", force=force) as staging,
        ):
            (staging / "inner").mkdir()
            (staging / "inner" / "a").write_text("half")
            raise error
        assert caught.value is error
        assert _names(tmp_path) == []

    def test_a_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="bundle: No space left"), staging_directory(tmp_path / "bundle"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert _names(tmp_path) == []

    @pytest.mark.parametrize("kind", ["bundle", "empty", "file"])
    def test_what_exists_is_refused_without_force(self, tmp_path: Path, kind: str) -> None:
        final = tmp_path / "final"
        {"bundle": _bundle, "empty": Path.mkdir, "file": Path.touch}[kind](final)
        before = _names(final) if final.is_dir() else final.read_bytes()
        with pytest.raises(StorageError, match=f"{final} exists") as caught, staging_directory(final):
            pytest.fail("the block was entered")
        assert "--force" in caught.value.hint
        assert _names(tmp_path) == ["final"]
        assert before == (_names(final) if final.is_dir() else final.read_bytes())

    @pytest.mark.parametrize("kind", ["folder", "file", "manifest is a folder", "a web application"])
    def test_force_replaces_nothing_but_bundles(self, tmp_path: Path, kind: str) -> None:
        final = tmp_path / "final"
        if kind == "file":
            final.write_text("mine")
        else:
            precious = final / ("manifest.json" if kind == "manifest is a folder" else "thesis") / "chapter"
            precious.parent.mkdir(parents=True)
            precious.write_text("mine")
        if kind == "a web application":
            (final / "manifest.json").write_text('{"name": "mine", "display": "standalone"}')
        before = sorted(final.rglob("*"))
        with (
            pytest.raises(StorageError, match=f"{final} is not a bundle") as caught,
            staging_directory(final, force=True),
        ):
            pytest.fail("the block was entered")
        assert "bundles only" in caught.value.hint
        assert _names(tmp_path) == ["final"] and sorted(final.rglob("*")) == before

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("target", ["bundle", "nowhere"])
    def test_a_link_is_refused_before_anything_is_built(self, tmp_path: Path, target: str, force: bool) -> None:
        _bundle(tmp_path / "bundle")
        link = tmp_path / "link"
        link.symlink_to(tmp_path / target)
        with pytest.raises(StorageError, match=f"{link}"), staging_directory(link, force=force):
            pytest.fail("the block was entered")
        assert _names(tmp_path) == ["bundle", "link"] and (tmp_path / "bundle" / "weights").read_text() == "old"

    def test_force_takes_an_empty_directory(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        with staging_directory(tmp_path / "bundle", force=True) as staging:
            (staging / "a").write_text("new")
        assert _names(tmp_path) == ["bundle"] and _names(tmp_path / "bundle") == ["a"]

    def test_force_keeps_the_old_bundle_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        final = _bundle(tmp_path / "bundle")
        with staging_directory(final, force=True) as staging:
            (staging / "weights").write_text("new")
            assert (final / "weights").read_text() == "old"
            assert _names(final) == ["manifest.json", "weights"]
        assert _names(final) == ["weights"] and (final / "weights").read_text() == "new"
        assert _names(tmp_path) == ["bundle"]

    @pytest.mark.parametrize("swaps", [True, False])
    def test_there_is_a_bundle_at_every_moment_where_names_can_be_exchanged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
    ) -> None:
        final, steps = _bundle(tmp_path / "bundle"), []
        real = Path.replace
        monkeypatch.setattr(Path, "replace", lambda self, target: (steps.append(target), real(self, target))[1])
        if not swaps:
            monkeypatch.setattr(store, "_swap", lambda one, other: False)
        with staging_directory(final, force=True) as staging:
            (staging / "weights").write_text("new")
        assert (len(steps) == 0) is swaps
        assert _names(tmp_path) == ["bundle"] and (final / "weights").read_text() == "new"

    def test_an_exchange_that_fails_is_an_error_of_the_target(self, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="No such file") as caught:
            store._swap(_bundle(tmp_path / "one"), tmp_path / "other")
        assert caught.value.filename == str(tmp_path / "other")

    def test_everybody_may_read_whatever_the_umask(self, tmp_path: Path) -> None:
        with _umask(0o077), staging_directory(tmp_path / "bundle") as staging:
            (staging / "inner").mkdir()
            (staging / "inner" / "a").write_text("a")
        assert stat.S_IMODE((tmp_path / "bundle" / "inner").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "bundle" / "inner" / "a").stat().st_mode) == 0o644

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=repr)
    def test_force_keeps_the_old_bundle_when_the_block_fails(self, tmp_path: Path, error: BaseException) -> None:
        final = _bundle(tmp_path / "bundle")
        with pytest.raises(type(error)), staging_directory(final, force=True) as staging:
            (staging / "weights").write_text("half")
            raise error
        assert _names(final) == ["manifest.json", "weights"] and (final / "weights").read_text() == "old"
        assert _names(tmp_path) == ["bundle"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EACCES, "Permission denied")], ids=repr)
    @pytest.mark.parametrize("step", ["old aside", "new in place"])
    def test_force_keeps_the_old_bundle_when_the_exchange_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, step: str
    ) -> None:
        final = _bundle(tmp_path / "bundle")
        monkeypatch.setattr(store, "_swap", lambda one, other: False)
        real = Path.replace
        failed = []

        def replace(self: Path, target: Path) -> Path:
            if (self == final if step == "old aside" else target == final) and not failed:
                failed.append(self)
                raise error
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        expected = StorageError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected), staging_directory(final, force=True) as staging:
            (staging / "weights").write_text("new")
        assert failed
        assert _names(final) == ["manifest.json", "weights"] and (final / "weights").read_text() == "old"
        assert _names(tmp_path) == ["bundle"]

    def test_the_old_bundle_is_never_deleted_when_it_cannot_be_put_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        final = _bundle(tmp_path / "bundle")
        monkeypatch.setattr(store, "_swap", lambda one, other: False)
        real = Path.replace

        def replace(self: Path, target: Path) -> Path:
            if target == final:
                raise OSError(errno.EACCES, "Permission denied")
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(StorageError), staging_directory(final, force=True):
            pass
        kept = list(tmp_path.rglob("weights"))
        assert [path.read_text() for path in kept] == ["old"]

    def test_a_bundle_whose_exchange_was_killed_comes_back(self, tmp_path: Path) -> None:
        """Between the two renames there is only `.bundle.XXXXXXXX.old`."""
        final = tmp_path / "bundle"
        _killed_exchange(final)
        with pytest.raises(StorageError, match="exists"), staging_directory(final):
            pytest.fail("the block was entered")
        assert (final / "weights").read_text() == "old"
        _killed_exchange(final)
        with pytest.raises(RuntimeError), staging_directory(final, force=True):
            raise RuntimeError
        assert _names(tmp_path) == ["bundle"] and (final / "weights").read_text() == "old"
        _killed_exchange(final)
        with staging_directory(final, force=True) as staging:
            (staging / "weights").write_text("new")
        assert _names(tmp_path) == ["bundle"] and (final / "weights").read_text() == "new"

    def test_of_two_that_were_moved_aside_the_newer_comes_back(self, tmp_path: Path) -> None:
        for index, text in enumerate(("older", "newest", "old")):
            (_bundle(tmp_path / f".bundle.{index:08}.old", text) / "manifest.json").touch()
            os.utime(tmp_path / f".bundle.{index:08}.old" / "manifest.json", ns=(0, (1, 3, 2)[index]))
        store.restore(tmp_path / "bundle")
        assert (tmp_path / "bundle" / "weights").read_text() == "newest"

    def test_nobody_removes_a_folder_that_is_just_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process cleans up between the making of a folder and its lock: as soon as it may."""
        real, others = store.tempfile.mkdtemp, []

        def mkdtemp(**places: Any) -> str:
            made: str = real(**places)
            if not others:
                others.append(threading.Thread(target=_stage_and_fail, args=(tmp_path / "bundle",)))
                others[0].start()
                others[0].join(0.3)
            return made

        monkeypatch.setattr(store.tempfile, "mkdtemp", mkdtemp)
        with staging_directory(tmp_path / "bundle") as staging:
            others[0].join()
            assert staging.is_dir()
            (staging / "a").write_text("whole")
        assert _names(tmp_path) == ["bundle"] and _names(tmp_path / "bundle") == ["a"]

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(StorageError, match=f"{tmp_path}/file"), staging_directory(tmp_path / "file" / "bundle"):
            pytest.fail("the block was entered")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("length", [250, 300])
    def test_a_name_that_is_too_long(self, tmp_path: Path, length: int) -> None:
        with pytest.raises(StorageError, match="name too long"), staging_directory(tmp_path / ("x" * length)):
            pytest.fail("the block was entered")
        assert _names(tmp_path) == []


class TestFileLock:
    def test_a_file_is_opened_for_writing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """NFS turns flock into locks that only a writable descriptor can have alone."""
        real = fcntl.flock

        def flock(handle: int, operation: int) -> None:
            if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            real(handle, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
        with file_lock(tmp_path / "lock") as held, file_lock(tmp_path / "lock", wait=False) as again:
            assert (held, again) == (True, False)
        with staging_directory(tmp_path / "bundle") as staging:  # folders cannot be locked there
            (staging / "a").touch()
        assert _names(tmp_path / "bundle") == ["a"]


class TestCacheFolder:
    def test_where_the_user_wants_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert store.cache_folder() == tmp_path / "qvec-deploy"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert store.cache_folder() == tmp_path / "home" / ".cache" / "qvec-deploy"


class TestRequireFile:
    def test_a_file_is_returned(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        assert require_file(tmp_path / "a", what="vector") == tmp_path / "a"

    @pytest.mark.parametrize(("name", "reason"), [("absent", "does not exist"), ("folder", "is not a file")])
    def test_what_is_wrong_with_which_path(self, tmp_path: Path, name: str, reason: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(StorageError) as caught:
            require_file(tmp_path / name, what="vector")
        assert caught.value.message == f"vector: {tmp_path}/{name} {reason}"

    def test_a_file_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").touch()

        def access(path: Any, mode: int) -> bool:  # root may read everything
            assert mode == os.R_OK
            return False

        monkeypatch.setattr(store.os, "access", access)
        with pytest.raises(StorageError, match=f"vector: {tmp_path}/a cannot be read"):
            require_file(tmp_path / "a", what="vector")

    def test_a_name_that_is_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="x" * 300):
            require_file(tmp_path / ("x" * 300), what="vector")
