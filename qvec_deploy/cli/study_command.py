"""`qvec-deploy study`: every task in turn as receiver and donor, with the statistics behind the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli.options import (
    address_option,
    at_work,
    json_option,
    offline_option,
    progress_shown,
    quiet_option,
    set_option,
)
from qvec_deploy.cli.terminal import echo_document, echo_json, errors_terminal, print_table, say, terminal

if TYPE_CHECKING:
    from qvec_deploy.jobs.executors import ExecutorName
    from qvec_deploy.research.study.pages.study_page import StudyReport

_PATH = click.Path(path_type=Path)
study_argument = click.argument("study_path", metavar="STUDY.yaml", type=_PATH)
jobs_option = click.option("--jobs", type=click.IntRange(1), help="Nodes at a time, of one thread each: all cores.")


@click.group()
def study() -> None:
    """Measure which donors help which receivers, and whether it is real."""


@study.command()
@study_argument
@click.option("-o", "--output", type=_PATH, required=True, help="The study's folder; the same again goes on in it.")
@jobs_option
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", help="Where its nodes run.")
@address_option
@set_option
@offline_option
@quiet_option
@json_option
def run(
    study_path: Path,
    output: Path,
    jobs: int | None,
    executor: ExecutorName,
    address: str | None,
    overrides: tuple[str, ...],
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train, extract and try what a study names, or what is missing of it.

    After a kill or Ctrl-C the same command goes on. A node that fails costs itself and what is made from it; the exit
    code is that of the worst failure.
    """
    from qvec_deploy.cli.study_display import StudyDisplay, print_outcome
    from qvec_deploy.research.study.study_recipe import load_study
    from qvec_deploy.research.study.study_run import run_study

    recipe = load_study(study_path, overrides)
    settings: dict[str, Any] = {"jobs": jobs, "executor": executor, "address": address, "offline": offline}
    try:
        if quiet or as_json:
            done = run_study(recipe, output, **settings)
        else:
            with StudyDisplay(errors_terminal()) as display:
                done = run_study(recipe, output, watcher=display, **settings)
    except KeyboardInterrupt:
        say("the same command goes on with what is missing", err=True)
        raise
    if as_json:
        echo_json(done)
    else:
        print_outcome(done, output)
    exit_code: int = done["exit_code"]
    return exit_code


@study.command()
@study_argument
@click.option("-o", "--output", type=_PATH, help="The study's folder, where there is one.")
@jobs_option
@set_option
@offline_option
@json_option
def plan(
    study_path: Path, output: Path | None, jobs: int | None, overrides: tuple[str, ...], offline: bool, as_json: bool
) -> None:
    """Print how many nodes a study has, how many are done, and how long the rest takes. Makes nothing."""
    from qvec_deploy.cli.study_display import print_plan

    with at_work(f"plan  {study_path}"):
        from qvec_deploy.research.study.study_recipe import load_study
        from qvec_deploy.research.study.study_run import plan_study

        found = plan_study(load_study(study_path, overrides), output, jobs=jobs, offline=offline)
    if as_json:
        echo_json(found)
    else:
        print_plan(found)


@study.command()
@click.argument("folder", metavar="OUT", type=_PATH)
@click.option("-o", "--output", type=_PATH, required=True, help="Write into this directory.")
@quiet_option
@json_option
def report(folder: Path, output: Path, quiet: bool, as_json: bool) -> None:
    """Write what the study in OUT answers: one HTML page, Markdown, JSON and CSV.

    A study with failures is reported as far as it got, and what is missing is named.
    """
    from qvec_deploy.io.output_places import require_report_folder
    from qvec_deploy.research.study.analysis.summarize import summarize
    from qvec_deploy.research.study.pages.study_page import StudyReport, write_study
    from qvec_deploy.research.study.study_documents import read_study

    progress = progress_shown(quiet or as_json)
    with progress.stage("read the study"):
        study = read_study(folder)
    require_report_folder(output)
    with progress.stage("statistics"):
        summary = summarize(study.cells, study.fine_tunes)
    with progress.stage("report"):
        shown = StudyReport(str(study.run.get("name", folder.resolve().name)), summary, study.recipe, study.run)
        written = write_study(shown, study.cells, output)
    if as_json:
        echo_document(written[0].read_bytes().decode())
        return
    _print(shown)
    if not quiet:
        say("", *(f"wrote  {path}" for path in written))


def _print(shown: StudyReport) -> None:
    """A short table per setting, and the answer."""
    from qvec_deploy.research.study.pages.conclusions import answers, remarks
    from qvec_deploy.research.study.pages.result_sections import compact

    console = terminal(140)
    for table in compact(shown.summary):
        print_table(table, console)
        console.print()
    for answer in (*answers(shown.summary), *remarks(shown.summary)):
        console.print(answer)
