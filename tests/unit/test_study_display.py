"""A study on the terminal: kinds, running nodes, failures; without one no more than a line now and then."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from qvec_deploy.cli import study_display
from qvec_deploy.cli.study_display import StudyDisplay
from qvec_deploy.jobs.job import JobFailure
from qvec_deploy.research.study.nodes import Node
from qvec_deploy.research.study.study_run import NodeEnd

FP = Node("fp", {"model": "vit", "task": "lower", "seed": 1}, {}, {})
CELL = Node("cell", {"model": "vit", "task": "lower", "grid": "3bit_channel_mse", "seed": 1}, {}, {}, (FP.id,))


def _console(terminal: bool) -> Console:
    return Console(force_terminal=terminal, width=120, file=io.StringIO(), color_system=None)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("node", "steps"), [(FP, 600), (CELL, 208)])
def test_running_nodes_are_shown_with_their_steps(node: Node, steps: int) -> None:
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
    console, other = _console(terminal=False), Node("fp", {"model": "vit", "task": "upper", "seed": 1}, {}, {})
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
