"""`predict`: what a bundle's engine sees in pictures."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, at_work, json_option, threads_option
from qvec_deploy.cli.terminal import say, show


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes of each picture.")
@threads_option
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Pictures in a run.")
@json_option
def predict(
    bundle: Path, images: tuple[Path, ...], top: int, threads: int | None, batch_size: int, as_json: bool
) -> None:
    """Name what is in pictures, as the released run.py does on a device."""
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.datasets.standalone_run import as_text

    with at_work(f"predict  {bundle}"):
        found = Bundle.open(bundle).predict(images, top=top, threads=threads, batch_size=batch_size)
    document = {"predictions": [prediction.as_dict() for prediction in found]}
    show(document, as_json, lambda: say(*as_text(found).split("\n")))
