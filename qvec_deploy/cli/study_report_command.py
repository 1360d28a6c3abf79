"""`study report`: what a study's folder answers, as pages and tables; nothing is computed anew but statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli.options import json_option, print_table, progress_shown, quiet_option, terminal

if TYPE_CHECKING:
    from qvec_deploy.research.study.pages.study_page import StudyReport


@click.command("report")
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Write into this directory.")
@quiet_option
@json_option
def report(folder: Path, output: Path, quiet: bool, as_json: bool) -> None:
    """Write what the study in OUT answers: one HTML page, Markdown, JSON and CSV.

    A study with failures is reported as far as it got, and what is missing is named.
    """
    from qvec_deploy.io.files import require_report_folder
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
        click.echo(written[0].read_bytes().decode())
        return
    _print(shown)
    if not quiet:
        click.echo("\n" + "\n".join(f"wrote  {path}" for path in written))


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
