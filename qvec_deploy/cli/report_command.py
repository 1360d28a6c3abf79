"""`report`: a bundle's measurements again, or several bundles beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.report_table import print_report
from qvec_deploy.cli.terminal import echo_document, print_table, say, terminal
from qvec_deploy.errors import IncompatibleError, RecipeError

if TYPE_CHECKING:
    from qvec_deploy.bench.accuracy import PairedAnswers
    from qvec_deploy.bench.results import Report
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.progress import Progress
    from qvec_deploy.report.overview import Overview

REPORT_FILE = "report.json"


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=options.PATH)
@click.option("-o", "--output", type=options.PATH, required=True, help="Write into this directory.")
@options.quiet_option
@options.json_option
def report(bundles: tuple[Path, ...], output: Path, quiet: bool, as_json: bool) -> None:
    """Write bundles' measurements as one HTML page, Markdown, JSON and CSV; nothing is measured anew.

    Several bundles of one task stand beside each other, the best first. Every bundle is verified before it is read.
    """
    from qvec_deploy.bundle.compare_stored import paired_answers
    from qvec_deploy.io.output_places import require_report_folder
    from qvec_deploy.report.overview import overview
    from qvec_deploy.report.write_report import write_report, write_tables

    progress = options.progress_shown(quiet or as_json)
    opened = _opened(bundles, progress)
    reports = {name: _read(bundle) for name, bundle in opened.items()}

    def paired(name: str, other: str) -> PairedAnswers | None:
        return paired_answers(opened[name], opened[other])

    shown = overview(reports, paired) if len(reports) > 1 else None  # refused before anything is written
    require_report_folder(output)
    with progress.stage("report"):
        written = write_report(shown or next(iter(reports.values())), output)
        written += write_tables(reports, output)
    if as_json:
        echo_document(written[0].read_bytes().decode())
        return
    if shown is None:
        print_report(next(iter(reports.values())))
    else:
        _print_overview(shown)
    if not quiet:
        say("", *(f"wrote  {path}" for path in written))


def _opened(directories: tuple[Path, ...], progress: Progress) -> dict[str, Bundle]:
    """Every bundle, by a name that tells them apart."""
    from qvec_deploy.bundle.bundle import Bundle

    bundles: list[Bundle] = []
    _refuse_twice(directories)
    with progress.stage("verify") as advance:
        for index, directory in enumerate(directories):
            bundle = Bundle.open(directory)
            bundles.append(bundle)
            _check_classes(bundle, bundles[0])
            advance(index + 1, len(directories))
    names = Counter(bundle.manifest.name for bundle in bundles)
    opened: dict[str, Bundle] = {}
    for bundle in bundles:
        name = bundle.manifest.name
        opened[name if names[name] == 1 else _unlike(name, bundle.directory, opened)] = bundle
    return opened


def _refuse_twice(directories: tuple[Path, ...]) -> None:
    seen: set[Path] = set()
    for directory in directories:
        if directory.resolve() in seen:
            raise RecipeError(f"{directory} is given twice", hint="name every bundle once")
        seen.add(directory.resolve())


def _check_classes(bundle: Bundle, first: Bundle) -> None:
    if bundle.manifest.model.classes != first.manifest.model.classes:
        raise IncompatibleError(
            f"{bundle.directory} has {bundle.manifest.model.classes} classes, {first.directory} has "
            f"{first.manifest.model.classes}",
            hint="report bundles of one task together",
        )


def _unlike(name: str, directory: Path, taken: Mapping[str, object]) -> str:
    """The name of a bundle that shares it with others: with its folder, and a number where that is taken too."""
    wanted = f"{name} in {directory.resolve().name}"
    return f"{wanted} ({len(taken) + 1})" if wanted in taken else wanted


def _read(bundle: Bundle) -> Report:
    from qvec_deploy.report.report_json import read_report_json

    if REPORT_FILE not in bundle.manifest.files:
        raise IncompatibleError(
            f"{bundle.directory} has no report: its engine was not measured where it was built",
            hint="measure it where it runs: qvec-deploy bench BUNDLE -o DIR",
        )
    path = bundle.directory / REPORT_FILE
    try:
        return read_report_json(path)
    except IncompatibleError as error:
        raise IncompatibleError(f"{path}: {error.message}", hint=error.hint) from error


def _print_overview(shown: Overview) -> None:
    from qvec_deploy.report.overview import bundles_table, headline

    console, table = terminal(140), bundles_table(shown)
    print_table(table, console)
    console.print()
    console.print(headline(shown))
    console.print(table.note, style="dim")
