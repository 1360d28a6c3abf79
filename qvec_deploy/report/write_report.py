"""The files of a report, each whole or not there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qvec_deploy.bench.results import Report
from qvec_deploy.io.files import write_bytes
from qvec_deploy.report.build_report import report_page
from qvec_deploy.report.overview import Overview, overview_page
from qvec_deploy.report.render_csv import candidates_csv, samples_csv
from qvec_deploy.report.render_html import render_html
from qvec_deploy.report.render_markdown import render_markdown
from qvec_deploy.report.report_json import overview_json, to_json


def write_report(shown: Report | Overview, directory: Path) -> tuple[Path, ...]:
    """Write report.json, report.md and report.html: of one report, as a bundle has them, or of several."""
    if isinstance(shown, Report):
        document, page = to_json(shown), report_page(shown)
    else:
        document, page = overview_json(shown), overview_page(shown)
    text, html = render_markdown(page, "report.html"), render_html(page)
    files = {"report.json": document, "report.md": text.encode(), "report.html": html.encode()}
    return _write(files, directory)


def write_tables(reports: Mapping[str, Report], directory: Path) -> tuple[Path, ...]:
    """Write report.csv, a row per candidate and batch size, and samples.csv, a row per latency sample."""
    files = {"report.csv": candidates_csv(reports).encode(), "samples.csv": samples_csv(reports).encode()}
    return _write(files, directory)


def _write(files: Mapping[str, bytes], directory: Path) -> tuple[Path, ...]:
    for name, data in files.items():
        write_bytes(directory / name, data)
    return tuple(directory / name for name in files)
