"""Work that goes on shows that it does, also where nobody sees a bar."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from qvec_deploy.cli import terminal_progress
from qvec_deploy.cli.terminal_progress import QuietProgress, TerminalProgress


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(terminal_progress, "_SOON_S", 0.05)
    monkeypatch.setattr(terminal_progress, "_REGULARLY_S", 0.1)
    return Console(file=io.StringIO(), width=100)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", [TerminalProgress, QuietProgress])
def test_long_work_is_told_of_again_and_again(
    console: Console, kind: type[TerminalProgress] | type[QuietProgress]
) -> None:
    with kind(console).stage("wait", "for others") as advance:
        advance(3, 7)
        while _text(console).count("wait for the machine  for others  3/7 ...") < 2:
            time.sleep(0.01)
    before = _text(console)
    time.sleep(0.15)
    assert _text(console) == before, "told of what is over"


def test_short_work_is_not(console: Console) -> None:
    with QuietProgress(console).stage("check"):
        pass
    with TerminalProgress(console).stage("check"):
        pass
    assert _text(console) == ""
