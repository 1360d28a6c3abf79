"""A report on the terminal: every batch size and scenario that was asked for."""

from __future__ import annotations

import pytest
from report_example import example_report, gpu_report

from qvec_deploy.cli.report_table import print_report


def test_every_batch_size_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(example_report(batch_sizes=(1, 8)))
    lines = capsys.readouterr().out.partition("Latency by batch size")[2].splitlines()
    rows = [line.split()[:3] for line in lines if line.startswith(("ptq ", "mean *"))]
    assert rows == [["ptq", "1", "40"], ["ptq", "8", "40"], ["mean", "*", "1"], ["mean", "*", "8"]]
    print_report(example_report())
    assert "Latency by batch size" not in capsys.readouterr().out, "the first table has the only one"


def test_scenarios_are_shown_when_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    report = gpu_report()
    print_report(report)
    assert "MLPerf" not in capsys.readouterr().out
    print_report(report, scenarios=("offline",))
    out = capsys.readouterr().out
    assert "104 images/s" in out and "no MLPerf results" in out and "single stream" not in out
    print_report(example_report(selected=None), scenarios=("single_stream",))
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "single stream" in line]
    assert rows == [candidate.name for candidate in example_report().candidates], "nothing ships, so all are shown"
