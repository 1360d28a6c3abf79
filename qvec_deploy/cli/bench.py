"""`bench`: bundles side by side."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import json_option, progress_shown, quiet_option
from qvec_deploy.cli.tables import print_report


@click.command()
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
    print_report(report)
    if output is not None:
        click.echo(f"\nreport  {output}/report.html")
