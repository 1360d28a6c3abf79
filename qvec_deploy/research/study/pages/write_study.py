"""A study's report as files: HTML, Markdown, JSON, CSV. Each is whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qvec_deploy.io.files import canonical_json, write_bytes
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.research.study.analysis.study_summary import plain_values
from qvec_deploy.research.study.cell_values import Cell
from qvec_deploy.research.study.pages.study_csv import pairs_csv, trials_csv
from qvec_deploy.research.study.pages.study_page import StudyReport, study_page

REPORT_VERSION = 1
"""Of study.json around the summary, which has a version of its own."""


def to_json(report: StudyReport) -> bytes:
    """Everything that the page shows, as canonical JSON.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return canonical_json(
        {
            "schema_version": REPORT_VERSION,
            "name": report.name,
            "summary": plain_values(report.summary),
            "recipe": report.recipe,
            "run": dict(report.run),
        }
    )


def write_study(report: StudyReport, cells: Sequence[Cell], directory: Path) -> tuple[Path, ...]:
    """Write study.json, study.md, study.html, trials.csv and pairs.csv; their paths, in this order.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    page = study_page(report)
    files = {
        "study.json": to_json(report),
        "study.md": render_markdown(page, "study.html").encode(),
        "study.html": render_html(page).encode(),
        "trials.csv": trials_csv(cells).encode(),
        "pairs.csv": pairs_csv(report.summary).encode(),
    }
    for name, data in files.items():
        write_bytes(directory / name, data)
    return tuple(directory / name for name in files)
