"""What a program that imports the package sees."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import qvec_deploy as qd

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "scripts" / "example.py"


def test_every_public_name_is_there_and_documented() -> None:
    assert dir(qd) == qd.__all__ == sorted(qd.__all__)
    assert all(getattr(qd, name).__doc__ for name in qd.__all__)
    assert qd.__doc__ is not None and all(name in qd.__doc__ for name in qd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qd.nothing  # type: ignore[attr-defined]


def test_submodules_hide_no_public_name() -> None:
    """Python puts an imported submodule into its package under the submodule's name."""
    names = {path.stem for path in (ROOT / "qvec_deploy").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not names & set(qd.__all__)


def test_importing_it_takes_no_time() -> None:
    code = "import sys; before = set(sys.modules); import qvec_deploy; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 10, "it imports what it does not need"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_work")
def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert text.count("\n") <= 60
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path)])
    exec(compile(text, str(EXAMPLE), "exec"), {"__name__": "__main__", "__file__": str(EXAMPLE)})
    printed = capsys.readouterr().out
    assert "24 Linears at 3.25 bits a weight" in printed and "logits (2, 21)" in printed
    assert "against plain quantization: " in printed and (tmp_path / "released" / "MODEL_CARD.md").is_file()
