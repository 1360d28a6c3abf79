"""The files on disk and the table on the console."""

import io
from dataclasses import replace

import pytest
from report_example import example_report, selecting_report
from rich.console import Console
from shown import terminal_table

from qvec_deploy.errors import StorageError
from qvec_deploy.io.output_places import require_report_folder
from qvec_deploy.report.overview import bundles_table, overview
from qvec_deploy.report.render_terminal import render_table
from qvec_deploy.report.report_json import from_json
from qvec_deploy.report.write_report import write_report, write_tables


def printed(report, width: int = 120) -> str:
    stream = io.StringIO()
    Console(width=width, file=stream).print(terminal_table(report))
    return stream.getvalue()


def test_three_files_and_nothing_else(tmp_path):
    report = example_report()
    paths = write_report(report, tmp_path / "bundle")
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == sorted(path.name for path in paths)
    assert from_json(paths[0].read_bytes()) == report
    assert paths[1].read_text(encoding="utf-8").startswith("# EuroSAT classifier at 3 bits\n")
    assert paths[2].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_tables_are_two_files_more(tmp_path):
    paths = write_tables({"a": example_report()}, tmp_path)
    assert [path.name for path in paths] == ["report.csv", "samples.csv"]
    assert paths[1].read_bytes().startswith(b"report,candidate,batch_size,block,host_latency_ms\r\na,float,1,0,")


def test_several_reports_are_the_same_three_files(tmp_path):
    shown = overview({"a": example_report(), "b": selecting_report()})
    paths = write_report(shown, tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert paths[2].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_an_overview_on_the_console_marks_the_first():
    stream = io.StringIO()
    table = render_table(bundles_table(overview({"[b]x[/b]": example_report(), "y": selecting_report()})))
    Console(width=160, file=stream).print(table)
    lines = stream.getvalue().splitlines()
    assert any(line.startswith("[b]x[/b] *") for line in lines)
    assert any(line.startswith("y ") and "misses 1 of 4" in line for line in lines)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(example_report(), tmp_path / "file" / "bundle")


def test_the_console_table_is_compact():
    lines = printed(example_report()).splitlines()
    assert lines[0].strip() == "EuroSAT classifier at 3 bits"
    mean = next(line for line in lines if line.startswith("mean")).split()
    assert mean == ["mean", "*", "3.04", "8.57", "91.2", "[90.1,", "92.2]", "9.11", "1.29×", "[1.29,", "1.30]", "131"]
    assert max(len(line.rstrip()) for line in lines) <= 100


def test_the_console_table_shows_brackets_of_names_as_they_are():
    report = example_report()
    name = "[red]x[/red]"
    renamed = replace(report["float"], name=name)
    report = replace(report, candidates=(renamed,), baseline=name, selected=None, title="[bold]t", warnings=())
    assert name in printed(report) and "[bold]t" in printed(report)


def test_a_report_goes_into_no_bundle_and_none_of_its_folders(tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(StorageError, match="is a bundle"):
        require_report_folder(bundle)
    with pytest.raises(StorageError, match="is in the bundle"):
        require_report_folder(bundle / "a" / "b")
    assert not (bundle / "a").exists()
    require_report_folder(tmp_path / "beside" / "it")
    assert (tmp_path / "beside" / "it").is_dir()
