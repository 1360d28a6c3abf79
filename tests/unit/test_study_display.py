"""A study on the terminal: kinds, running nodes, failures; without one no more than a line now and then."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from qvec_deploy.cli import study_display
from qvec_deploy.cli.study_display import StudyDisplay
from qvec_deploy.jobs.job import JobFailure
from qvec_deploy.research.study.study_run import NodeEnd


def _node(kind: str, name: str) -> Any:
    """What is shown of a node."""
    return SimpleNamespace(kind=kind, name=f"{kind} {name}", id=f"{kind}-{name}")


FP, CELL = _node("fp", "vit lower 1"), _node("cell", "vit lower 3bit_channel_mse 1")


def _console(terminal: bool) -> Console:
    return Console(force_terminal=terminal, width=120, file=io.StringIO(), color_system=None)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("node", "steps"), [(FP, 600), (CELL, 208)])
def test_running_nodes_are_shown_with_their_steps(node: Any, steps: int) -> None:
    console = _console(terminal=True)
    with StudyDisplay(console) as display:
        display.begun([FP, CELL])
        display.event(node.id, {"done": 12, "total": steps})
        display._bars.refresh()
        shown = _written(console)
        assert node.name in shown and f"12/{steps}" in shown and "float fine-tunes" in shown
        display.ended(NodeEnd(node, "made", 1.0))
        assert [task.description for task in display._bars.tasks] == ["float fine-tunes", "receivers"]
        display.event(node.id, {"done": 1, "total": steps})  # and once more, where it is made again
        assert len(display._bars.tasks) == 3


def test_without_a_terminal_a_line_says_how_many_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    console, other = _console(terminal=False), _node("fp", "vit upper 1")
    monkeypatch.setattr(study_display, "_EVERY_S", 0.0)
    with StudyDisplay(console) as display:
        display.begun([FP, other, CELL])
        display.ended(NodeEnd(FP, "kept"))
    assert _written(console).rstrip().endswith("1/3, 1 of them kept  (float fine-tunes 1/2, receivers 0/1)")


def test_without_a_terminal_steps_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    console = _console(terminal=False)
    with StudyDisplay(console) as display:
        display.begun([FP, CELL])
        for done in range(100):
            display.event(FP.id, {"done": done, "total": 600})
        assert _written(console) == ""
        display.ended(NodeEnd(FP, "made", 1.0))
        assert _written(console) == ""
        monkeypatch.setattr(study_display, "_EVERY_S", 0.0)
        display.ended(NodeEnd(CELL, "failed", failure=JobFailure("StorageError", "full", "", 6)))
    first, second = _written(console).splitlines()
    assert first == "cell vit lower 3bit_channel_mse 1 failed: full" and second.endswith("2/2, 1 failed")
