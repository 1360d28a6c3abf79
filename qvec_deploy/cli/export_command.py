"""`export`: a bundle's model in the form that something else wants."""

from __future__ import annotations

from pathlib import Path

import click

from qvec_deploy.cli.options import PATH, at_work, json_option
from qvec_deploy.cli.terminal import say, show


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="The file, or Triton's model repository.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "engine", "graph", "triton"]),
    default="onnx",
    show_default=True,
    help="One ONNX file, a compiled engine, the ONNX graph that it is built from, or a model with its configuration in "
    "a repository of Triton Inference Server.",
)
@click.option("--lowering", help="One of ONNX Runtime on the CPU, or of the bundle's engines.  [default: the bundle's]")
@click.option("--expanded", is_flag=True, help="onnx: with the weights unpacked, where that cannot be done at load.")
@click.option("--batch-size", type=click.IntRange(1), help="engine: images that it must take in a run.")
@click.option("--force", is_flag=True, help="onnx, engine, graph: replace an existing file.")
@json_option
def export(
    bundle: Path,
    output: Path,
    form: str,
    lowering: str | None,
    expanded: bool,
    batch_size: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write a bundle's model as one ONNX file with its weights inside, as the engine of a GPU, or for Triton."""
    if expanded and form != "onnx":
        raise click.UsageError("--expanded is for --format onnx")
    if batch_size is not None and form != "engine":
        raise click.UsageError("--batch-size is for --format engine")
    if force and form == "triton":
        raise click.UsageError("--force is for files, which --format triton does not write")
    if form == "onnx":
        _onnx(bundle, output, lowering, expanded, force, as_json)
    elif form in ("engine", "graph"):
        _engine(bundle, output, form, lowering, batch_size, force, as_json)
    else:
        _triton(bundle, output, lowering, as_json)


def _engine(
    bundle: Path, output: Path, form: str, lowering: str | None, batch_size: int | None, force: bool, as_json: bool
) -> None:
    from qvec_deploy.bundle.export_engine import export_engine, export_graph

    with at_work(f"export  {output}"):
        if form == "graph":
            done = export_graph(bundle, output, lowering, force=force)
        else:
            done = export_engine(bundle, output, lowering, batch_size=batch_size, force=force)

    def print_text() -> None:
        say(f"{output}  {done.lowering}, batch {done.batches}, {done.size / 1e6:.1f} MB")

    show({"file": str(output), **done.as_dict()}, as_json, print_text)


def _onnx(bundle: Path, output: Path, lowering: str | None, expanded: bool, force: bool, as_json: bool) -> None:
    from qvec_deploy.bundle.export_bundle import export_model

    with at_work(f"export  {output}"):
        done = export_model(bundle, output, lowering, expanded=expanded, force=force)

    def print_text() -> None:
        form = f"{done.lowering}, {'unpacked' if done.expanded else 'packed'}"
        say(f"{output}  {form}, {done.size / 1e6:.1f} MB")
        _say_calibrated(done.calibrated)

    show({"file": str(output), **done.as_dict()}, as_json, print_text)


def _triton(bundle: Path, repository: Path, lowering: str | None, as_json: bool) -> None:
    from qvec_deploy.bundle.model_repository import export_to_repository

    with at_work(f"export  {repository}"):
        done = export_to_repository(bundle, repository, lowering)

    def print_text() -> None:
        say(f"{done.directory}  {done.lowering}, batches of {done.batches}")
        _say_calibrated(done.calibrated)
        say(f"serve it  tritonserver --model-repository={repository.resolve()}")

    show(done.as_dict(), as_json, print_text)


def _say_calibrated(on: str | None) -> None:
    if on is not None:
        say(f"activations calibrated on {on}")
