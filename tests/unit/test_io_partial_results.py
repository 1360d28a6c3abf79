"""What was kept of a piece of work is found again, and nothing else is taken for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvec_deploy.io.partial_results import read_partial, write_partial


def test_what_was_kept_is_found_by_its_key_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert read_partial(path, b"key") is None
    write_partial(path, b"key", b"answers")
    assert read_partial(path, b"key") == b"answers"
    assert read_partial(path, b"other") is None
    path.write_bytes(path.read_bytes()[:-1])
    assert read_partial(path, b"key") is None


def test_a_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("it is read"))
    assert read_partial(path, b"key") is None
