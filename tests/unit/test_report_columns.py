"""A new column is one value and one row: shown here by adding one."""

from __future__ import annotations

import csv
import io

import pytest
from report_example import example_report
from rich.console import Console
from shown import html_of, markdown_of, terminal_table

from qvec_deploy.report import columns
from qvec_deploy.report.columns import COLUMNS, Column
from qvec_deploy.report.render_csv import candidates_csv

LAYERS = Column(
    "Layers",
    "quantized",
    lambda report, row: str(len(row.candidate.layer_errors)),
    ("page", "terminal"),
    lambda report, row: {"quantized_layers": len(row.candidate.layer_errors)},
)


@pytest.mark.slow
def test_a_new_column_is_in_every_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, LAYERS))
    report = example_report()
    count = str(len(report["mean"].layer_errors))
    assert "Layers <small>quantized</small></th>" in html_of(report) and f"<td>{count}</td>" in html_of(report)
    assert "| Layers (quantized) |" in markdown_of(report)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(terminal_table(report))
    assert "Layers" in shown.get()
    lines = csv.DictReader(io.StringIO(candidates_csv({"a": report})))
    (line,) = (line for line in lines if line["candidate"] == "mean")
    assert line["quantized_layers"] == count
