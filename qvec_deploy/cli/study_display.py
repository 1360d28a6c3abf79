"""A study on the terminal: progress by kind of node, what failed, and the list of a plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn

from qvec_deploy.cli.console import DescriptionColumn
from qvec_deploy.cli.terminal import print_table, say, terminal
from qvec_deploy.cli.terminal_progress import LiveDisplay
from qvec_deploy.report.page import Table
from qvec_deploy.research.study.study_node import KINDS, StudyNode
from qvec_deploy.research.study.study_run import NodeEnd, StudyWatcher

TITLES = {"base": "bases", "fp": "float fine-tunes", "qat": "QAT fine-tunes", "vector": "vectors", "cell": "receivers"}
_EVERY_S = 30.0  # between two lines without a terminal


class StudyDisplay(LiveDisplay, StudyWatcher):
    """A bar a kind and one a running node; without a terminal a line now and then, and one for every failure."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, DescriptionColumn(), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
        self._tasks: dict[str, TaskID] = {}
        self._names: dict[str, str] = {}
        self._running: dict[str, TaskID] = {}
        self._counts: dict[str, list[int]] = {}  # by kind: over, all
        self._total, self._over, self._kept, self._failed = 0, 0, 0, 0
        self._said = self._start

    def begun(self, nodes: Sequence[StudyNode]) -> None:
        """A bar for every kind there is."""
        self._total = len(nodes)
        self._names = {node.id: node.name for node in nodes}
        for kind in KINDS:
            count = sum(node.kind == kind for node in nodes)
            if count:
                self._counts[kind] = [0, count]
                self._tasks[kind] = self._bars.add_task(TITLES[kind], total=count)

    def event(self, name: str, event: Any) -> None:
        """Show how far a node is."""
        if name not in self._running:
            self._running[name] = self._bars.add_task(self._names[name], total=None, style="dim")
        self._bars.update(self._running[name], completed=event["done"], total=event["total"])

    def ended(self, end: NodeEnd) -> None:
        """Count it; say what failed by itself."""
        if end.node.id in self._running:
            self._bars.remove_task(self._running.pop(end.node.id))
        self._over += 1
        self._counts[end.node.kind][0] += 1
        self._kept += end.state == "kept"
        self._failed += end.state == "failed"
        self._bars.advance(self._tasks[end.node.kind])
        if end.failure is not None and end.because is None:
            self._print(f"{end.node.name} failed: {end.failure.message}", "yellow")
        now = time.monotonic()
        if self._over == self._total or (not self._console.is_terminal and now - self._said >= _EVERY_S):
            self._said = now
            kept = f", {self._kept} of them kept" if self._kept else ""
            failed = f", {self._failed} failed" if self._failed else ""
            text = f"{now - self._start:7.1f} s  {self._over}/{self._total}{kept}{failed}"
            if self._over < self._total:
                text += (
                    "  (" + ", ".join(f"{TITLES[kind]} {n}/{all_}" for kind, (n, all_) in self._counts.items()) + ")"
                )
            self._print(text, "dim")

    def _print(self, line: str, style: str) -> None:
        self._console.print(line, style=style, soft_wrap=True)


def print_outcome(run: dict[str, Any], out: Path) -> None:
    """How a study ended."""
    keys = ("total", "made", "kept", "failed")
    rows = tuple(
        (TITLES[kind], *(str(count.get(key, 0)) for key in keys))
        for kind, count in run["counts"].items()
        if count["total"]
    )
    console = terminal()
    print_table(Table("", ("Nodes", *map(str.capitalize, keys)), rows, "lrrrr"), console)
    for failure in run["failures"]:
        if failure["because"] is None:
            text = f"{failure['node']}: exit code {failure['exit_code']}: {failure['message']}"
            for line in ("", text, f"  hint: {failure['hint']}"):
                console.print(line, style="yellow", soft_wrap=True)
    lost = sum(failure["because"] is not None for failure in run["failures"])
    if lost:
        say("", f"{lost} more nodes need what failed")
    say("", f"{duration(run['wall_seconds'])} now, {duration(run['summed_seconds'])} of one thread in all")
    say(f"cells  {out / 'cells'}")


def print_plan(plan: dict[str, Any]) -> None:
    """What a study is made of."""
    rows = []
    for kind, row in plan["kinds"].items():
        if row["total"]:
            mean = "-" if row["mean_seconds"] is None else f"{row['mean_seconds']:.1f}"
            rows.append((TITLES[kind], str(row["total"]), str(row["done"]), mean))
    print_table(Table("", ("Nodes", "Total", "Done", "Seconds each"), tuple(rows), "lrrr"))
    left = plan["seconds_left"]
    jobs = f"{plan['jobs']} at a time"
    known = "not known yet: no node of some kind is done" if left is None else f"about {duration(left)}, {jobs}"
    say("", f"{plan['pairs']} pairs of donor and receiver", f"time left  {known}")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
