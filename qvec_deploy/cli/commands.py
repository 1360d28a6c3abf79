"""The commands. Each is thin: parse, call one function, print its value."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from qvec_deploy.cli.analyze import analyze
from qvec_deploy.cli.compile import compile_command
from qvec_deploy.cli.donor import donor
from qvec_deploy.cli.options import (
    echo_json,
    json_option,
    offline_option,
    progress_shown,
    quiet_option,
    recipe_option,
    set_option,
)
from qvec_deploy.cli.vector import vector
from qvec_deploy.errors import QvecError

EPILOG = (
    "Exit codes: 0 ok, 1 our bug, 2 usage or recipe, 3 gate missed, 4 incompatible, 5 integrity, 6 files and disk, "
    "7 remote fetch, 130 interrupted."
)


def main() -> None:
    """Entry point: run the command, turn errors into one clear line and an exit code."""
    try:
        code = commands.main(standalone_mode=False)
    except QvecError as error:
        click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; nothing was left half written", err=True)
        code = 130
    except BrokenPipeError:
        code = 0
    except Exception:  # noqa: BLE001 - the last resort: a bug of ours, shown whole
        click.echo(traceback.format_exc(), err=True)
        click.echo("error: this is a bug in qvec-deploy\nhint: report it with the lines above", err=True)
        code = 1
    sys.exit(code or 0)


def program() -> None:
    """`main` as a process of its own: it cleans up when it is terminated, and ends at once.

    Everything is written and closed by then; tearing down torch and its kin would take another second or two.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(stop.code or 0))


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qvec-deploy")
def commands() -> None:
    """Patch a fine-tuned vision transformer, quantize it to 3 bits, and ship a measured engine."""


@commands.command()
@recipe_option
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle's directory; out/NAME by default.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@set_option
@offline_option
@quiet_option
@json_option
def build(
    recipe_path: Path,
    output: Path | None,
    force: bool,
    overrides: tuple[str, ...],
    offline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a recipe and its baselines, measure them, and leave a bundle."""
    from qvec_deploy.build import Workshop, run
    from qvec_deploy.bundle.finish import require_engine, require_gates
    from qvec_deploy.recipe import load_recipe

    recipe = load_recipe(recipe_path, overrides)
    directory = output or Path("out") / recipe.name
    bundle = run(recipe, directory, force=force, workshop=Workshop(offline, progress_shown(quiet or as_json)))
    _show_report(directory / "report.json", as_json)
    if not as_json:
        click.echo(f"\nbundle  {directory}\n" + (f"report  {directory}/report.html" if _has_report(directory) else ""))
    require_engine(bundle)
    require_gates(bundle)


@commands.command()
@recipe_option
@set_option
@offline_option
@json_option
def plan(recipe_path: Path, overrides: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Print every decision of a recipe; no weights are read."""
    from qvec_deploy.build import Workshop
    from qvec_deploy.cli.show import plan_document, print_plan
    from qvec_deploy.recipe import load_recipe

    plans = Workshop(offline).plans(load_recipe(recipe_path, overrides))
    if as_json:
        document = plan_document(plans[-1])
        echo_json({**document, "candidates": [made.recipe.name for made in plans]})
    else:
        print_plan(plans[-1])
        click.echo(f"candidates: {', '.join(made.recipe.name for made in plans)}")


@commands.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--lowering", "lowerings", multiple=True, help="Run every bundle with this lowering; repeatable.")
@click.option("--threads", type=click.IntRange(1), help="Threads of every engine.")
@click.option("--batch-size", "batch_sizes", type=click.IntRange(1), multiple=True, help="Batch size; repeatable.")
@click.option("--blocks", type=click.IntRange(2), help="Latency samples of every engine.")
@click.option("--data", type=click.Path(path_type=Path), help="The images' folder, if it is not where the recipe says.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report into this directory.")
@quiet_option
@json_option
def bench(
    bundles: tuple[Path, ...],
    lowerings: tuple[str, ...],
    threads: int | None,
    batch_sizes: tuple[int, ...],
    blocks: int | None,
    data: Path | None,
    output: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure bundles side by side, interleaved; the first is the baseline."""
    from qvec_deploy.bundle.compare import bench_bundles
    from qvec_deploy.report.document import to_json
    from qvec_deploy.report.write import write_report
    from qvec_deploy.store import require_report_folder

    if output is not None:
        require_report_folder(output)
    report = bench_bundles(
        bundles,
        lowerings=lowerings,
        threads=threads,
        batch_sizes=batch_sizes,
        blocks=blocks,
        data_root=data,
        progress=progress_shown(quiet or as_json),
    )
    if output is not None:
        write_report(report, output)
    if as_json:
        click.echo(to_json(report).decode())
        return
    _print_table(report)
    if output is not None:
        click.echo(f"\nreport  {output}/report.html")


@commands.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--release", is_flag=True, help="Refuse also what must not be released: missed gates, no engine.")
@click.option("--accept-unverified", is_flag=True, help="With --release: let a patch pass that no image has verified.")
@json_option
def verify(bundle: Path, release: bool, accept_unverified: bool, as_json: bool) -> None:
    """Check a bundle: hashes first, then formats, then its engine against PyTorch's logits."""
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.bundle.finish import require_release

    if accept_unverified and not release:
        raise click.UsageError("--accept-unverified goes with --release")
    opened = Bundle.open(bundle)
    if release:
        require_release(opened, accept_unverified=accept_unverified)
    results = opened.verify()
    missing = opened.manifest.engine.missing
    if as_json:
        echo_json({"bundle": str(bundle), "ok": True, "engine_missing": missing, "checks": results})
        return
    for check, result in results.items():
        click.echo(f"{'--' if check == 'engine' and missing else 'ok'}  {check:8} {result}")


@commands.command()
@click.argument("path", type=click.Path(path_type=Path))
@json_option
def inspect(path: Path, as_json: bool) -> None:
    """Print what a bundle, vector, packed file or checkpoint is, without opening an engine."""
    from qvec_deploy.cli.show import inspect_path, print_document

    document = inspect_path(path)
    if as_json:
        echo_json(document)
    else:
        print_document(document)


@commands.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and how to get the rest."""
    from qvec_deploy.cli.doctor import examine, print_examination

    found = examine()
    if as_json:
        echo_json(found)
    else:
        print_examination(found)


@commands.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from qvec_deploy.recipe import recipe_schema

    echo_json(recipe_schema())


commands.add_command(analyze)
commands.add_command(compile_command)
commands.add_command(donor)
commands.add_command(vector)


def _has_report(directory: Path) -> bool:
    return (directory / "report.html").is_file()


def _show_report(path: Path, as_json: bool) -> None:
    from qvec_deploy.report.document import from_json

    if not path.is_file():
        return
    data = path.read_bytes()
    if as_json:
        click.echo(data.decode())
    else:
        _print_table(from_json(data))


def _print_table(report: Any) -> None:
    from rich.console import Console

    from qvec_deploy.report.console import summary_table, verdict_lines
    from qvec_deploy.report.prose import setup
    from qvec_deploy.report.summary import numbered_warnings

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))
    console.print(summary_table(report))
    console.print("\n" + setup(report), style="dim", highlight=False, markup=False)
    for line in verdict_lines(report):
        console.print(line, highlight=False)
    for doubt in numbered_warnings(report):
        console.print(f"warning: {doubt.title}. {doubt.remedy}", style="yellow", highlight=False, markup=False)
        for subject, detail in doubt.details:
            console.print(f"  {subject}: {detail}", highlight=False, markup=False)
