"""Many builds on the terminal: one display while they run, one table at the end, and the list of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TimeElapsedColumn

from qvec_deploy import formatting
from qvec_deploy.bench.statistics import wilson
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.cli.console import DescriptionColumn, styled
from qvec_deploy.cli.terminal import errors_terminal, print_table, say, show, terminal
from qvec_deploy.cli.terminal_progress import TITLES, LiveDisplay
from qvec_deploy.errors import QvecError, RecipeError
from qvec_deploy.jobs.job import Executor
from qvec_deploy.jobs.processes import LocalProcesses
from qvec_deploy.recipe import Recipe
from qvec_deploy.report.columns import share_cell
from qvec_deploy.report.page import Table
from qvec_deploy.sweep.sweep import SUMMARY, sweep
from qvec_deploy.sweep.sweep_summary import SweepRow, SweepSummary

NONE = "-"


class SweepDisplay(LiveDisplay):
    """A line for every running build with its stage, and one for all; without a terminal a line for every end."""

    def __init__(self, console: Console, count: int) -> None:
        super().__init__(console, SpinnerColumn(), DescriptionColumn(), BarColumn(20), TimeElapsedColumn())
        self._count, self._ended = count, 0
        self._total = self._bars.add_task(f"{count} builds", total=count, style="bold")
        self._tasks: dict[str, TaskID] = {}

    def event(self, name: str, event: Any) -> None:
        """Show what a build does."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None)
        if "stage" in event:
            stage = TITLES.get(event["stage"], event["stage"])
            detail = f" {event['detail']}" if event["detail"] not in ("", name) else ""
            self._bars.update(self._tasks[name], description=f"{name}  {stage}{detail}", completed=0, total=None)
        else:
            self._bars.update(self._tasks[name], completed=event["done"], total=event["total"])

    def ended(self, row: SweepRow) -> None:
        """Take a build's line away and say how it ended."""
        self._ended += 1
        if row.name in self._tasks:
            self._bars.remove_task(self._tasks.pop(row.name))
        self._bars.update(self._total, completed=self._ended)
        seconds = time.monotonic() - self._start
        line = styled(f"{seconds:7.1f} s  {self._ended}/{self._count}  {row.name}: {_verdict(row)}", "dim")
        if row.verdict == "failed":
            line.append(styled(f": {row.reason}", "yellow"))
        self._console.print(line, soft_wrap=True)


def run_sweep(
    recipes: Sequence[Recipe],
    folder: Path,
    *,
    jobs: int | None,
    force: bool,
    offline: bool,
    quiet: bool,
    as_json: bool,
    start: Callable[..., Executor] = LocalProcesses,
) -> int:
    """Build all recipes, show how they ended, and return the exit code of the worst outcome."""
    run = partial(sweep, recipes, folder, jobs=jobs, force=force, offline=offline, start=start)
    if quiet or as_json:
        summary = run()
    else:
        with SweepDisplay(errors_terminal(), len(recipes)) as display:
            summary = run(on_event=display.event, on_end=display.ended)
    show(summary.as_dict(), as_json, lambda: _print(summary, folder))
    return summary.exit_code


def list_builds(recipes: Sequence[Recipe], *, offline: bool, as_json: bool) -> None:
    """What a recipe with a matrix would build; a build that its files refuse is listed with the reason."""
    builds = [_planned(recipe, offline) for recipe in recipes]
    show({"builds": builds}, as_json, lambda: _print_builds(recipes, builds))


def _print_builds(recipes: Sequence[Recipe], builds: Sequence[dict[str, Any]]) -> None:
    rows = []
    for recipe, build in zip(recipes, builds, strict=True):
        scheme = recipe.quantize.scheme()
        size = formatting.megabytes(build["stored_bytes"]) if build["refused"] is None else "refused"
        grid = str(scheme) if scheme is not None else "float"
        lam = "selected" if recipe.lam is None else f"{recipe.lam:g}"
        rows.append((recipe.name, grid, lam, recipe.target.runtime, recipe.target.lowering, size))
    columns = ("Build", "Grid", "Lambda", "Runtime", "Lowering", "Stored MB")
    print_table(Table("", columns, tuple(rows), "lllllr"), terminal(140))
    for build in builds:
        if build["refused"] is not None:
            say("", f"{build['recipe']}: {build['refused']}")
    say("", f"{len(recipes)} builds, {sum(len(build['candidates']) for build in builds)} candidates in all")


def _planned(recipe: Recipe, offline: bool) -> dict[str, Any]:
    build: dict[str, Any] = {"recipe": recipe.name, "lambda": recipe.lam, "candidates": [], "refused": None}
    build |= {"runtime": recipe.target.runtime, "lowering": recipe.target.lowering}
    try:
        plans = BuildContext(offline).plans(recipe)
    except RecipeError:
        raise
    except QvecError as error:
        return {**build, "refused": error.message}
    build["candidates"] = [plan.recipe.name for plan in plans]
    return {**build, "stored_bytes": plans[-1].stored_bytes}


def _print(summary: SweepSummary, folder: Path) -> None:
    rows = tuple((row.name, _verdict(row), *_figures(row)) for row in summary.rows)
    figures = ("Top-1\n%, n", "Size\nMB", "Latency\nmedian ms", "Speed-up\nover its float", "Gates\npassed")
    console = terminal(140)
    failed = {row.name: "yellow" for row in summary.rows if row.exit_code != 0}
    print_table(Table("", ("Build", "Verdict", *figures), rows, "llrrrrr"), console, failed)
    for row in summary.rows:
        if row.reason:
            reason = f"{row.name}: {row.verdict}, exit code {row.exit_code}: {row.reason}"
            for line in ("", reason, f"  hint: {row.hint}"):
                console.print(line, style="yellow", soft_wrap=True)
    say("", f"summary  {folder / SUMMARY}")


def _verdict(row: SweepRow) -> str:
    if not row.kept:
        return row.verdict
    return "kept" if row.verdict == "built" else f"{row.verdict} (kept)"


def _figures(row: SweepRow) -> list[str]:
    top1 = latency = ratio = NONE
    if row.correct is not None:
        top1 = f"{share_cell(wilson(row.correct, row.images), row.images)}, {row.images:,}"
    if row.latency is not None:
        latency = formatting.three(row.latency.median_ms)
        found = row.latency.speed_up
        if found is not None:
            ratio = f"{formatting.times(found.value, found)} {formatting.times_interval(found)}"
    size = formatting.megabytes(row.stored_bytes) if row.stored_bytes is not None else NONE
    gates = f"{row.gates}/{row.gates_asked}" if row.gates_asked else NONE
    return [top1, size, latency, ratio, gates]
