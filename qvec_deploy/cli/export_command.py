"""`export`: a bundle's model in the form that something else wants."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, json_option, show


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The ONNX file.")
@click.option("--lowering", help="One of ONNX Runtime on the CPU.  [default: the bundle's]")
@click.option("--expanded", is_flag=True, help="With the weights unpacked, for runtimes that cannot do that at load.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def export(bundle: Path, output: Path, lowering: str | None, expanded: bool, force: bool, as_json: bool) -> None:
    """Write a bundle's model as one ONNX file, its weights inside."""
    from qvec_deploy.bundle.export_bundle import export_model

    done = export_model(bundle, output, lowering, expanded=expanded, force=force)

    def print_text() -> None:
        form = f"{done.lowering}, {'unpacked' if done.expanded else 'packed'}"
        click.echo(f"{output}  {form}, {done.size / 1e6:.1f} MB")
        if done.calibrated is not None:
            click.echo(f"activations calibrated on {done.calibrated}")

    show({"file": str(output), **done.as_dict()}, as_json, print_text)
