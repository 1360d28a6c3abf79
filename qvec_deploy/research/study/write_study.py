"""A study's report as files: HTML, Markdown, JSON, CSV. Each is whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from qvec_deploy.io.files import canonical_json, write_bytes
from qvec_deploy.research.study.cell_values import Cell
from qvec_deploy.research.study.study_page import to_html, to_markdown
from qvec_deploy.research.study.study_sections import Studied, study_page
from qvec_deploy.research.study.trials_csv import pairs_csv, trials_csv

REPORT_VERSION = 1
"""Of study.json around the summary, which has a version of its own."""


def to_json(studied: Studied) -> bytes:
    """Everything that the page shows, as canonical JSON.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return canonical_json(
        {
            "schema_version": REPORT_VERSION,
            "name": studied.name,
            "summary": asdict(studied.summary),
            "recipe": studied.recipe,
            "run": dict(studied.run),
        }
    )


def write_study(studied: Studied, cells: Sequence[Cell], directory: Path) -> tuple[Path, ...]:
    """Write study.json, study.md, study.html, trials.csv and pairs.csv.

    Args:
        studied: What is reported.
        cells: That it was computed from.
        directory: Where to.

    Returns:
        Their paths, in this order.

    Raises:
        StorageError: The directory cannot be written or is full.
        ValueError: A number is NaN or infinite.
    """
    page = study_page(studied)
    files = {
        "study.json": to_json(studied),
        "study.md": to_markdown(page).encode(),
        "study.html": to_html(page).encode(),
        "trials.csv": trials_csv(cells).encode(),
        "pairs.csv": pairs_csv(studied.summary).encode(),
    }
    for name, data in files.items():
        write_bytes(directory / name, data)
    return tuple(directory / name for name in files)
