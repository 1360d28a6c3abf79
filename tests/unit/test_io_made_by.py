"""Which text of the package decides what is made."""

from __future__ import annotations

from pathlib import Path

import pytest

import qvec_deploy
from qvec_deploy.builder.keys import made_by
from qvec_deploy.io import made_by as texts
from qvec_deploy.io.files import sha256_file

PACKAGE = Path(qvec_deploy.__file__).parent


def changed(monkeypatch: pytest.MonkeyPatch, place: Path) -> bool:
    """Whether another text in that place is another maker."""
    before = texts.own_text.__wrapped__()
    monkeypatch.setattr(texts, "sha256_file", lambda path: "other" if path.is_relative_to(place) else sha256_file(path))
    return bool(texts.own_text.__wrapped__() != before)


@pytest.mark.parametrize(
    "text", ["planner.py", "tensors.py", "io/checkpoint.py", "bundle/compile_bundle.py", "quantize/solver.py"]
)
def test_every_text_that_decides_bytes_counts(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert (PACKAGE / text).is_file()
    assert changed(monkeypatch, PACKAGE / text)


def test_what_only_shows_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not changed(monkeypatch, PACKAGE / "cli")


def test_packages_that_are_not_there_have_no_version() -> None:
    assert texts.versions(["pytest", "no-such-package"]).keys() == {"pytest"}
    assert made_by()["qvec-deploy"] == texts.own_text()
