"""The three files of a report, each whole or not there."""

from __future__ import annotations

from pathlib import Path

from qvec_deploy.report.document import to_json
from qvec_deploy.report.html import to_html
from qvec_deploy.report.markdown import to_markdown
from qvec_deploy.report.values import Report
from qvec_deploy.store import write_bytes


def write_report(report: Report, directory: Path) -> tuple[Path, ...]:
    """Write report.json, report.md and report.html.

    Returns:
        Their paths, in this order.

    Raises:
        StorageError: The directory cannot be written or is full.
        ValueError: A measurement is NaN or infinite.
    """
    files = {
        "report.json": to_json(report),
        "report.md": to_markdown(report).encode(),
        "report.html": to_html(report).encode(),
    }
    for name, data in files.items():
        write_bytes(directory / name, data)
    return tuple(directory / name for name in files)
