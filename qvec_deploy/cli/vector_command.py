"""`qvec-deploy vector`: make, look at, mix and check quantization vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.terminal import echo_json, print_table, say, show
from qvec_deploy.errors import IncompatibleError, RecipeError, StorageError
from qvec_deploy.io.files import storage_errors

if TYPE_CHECKING:
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.tensors import Float32
    from qvec_deploy.vectors.coordinates import Coordinates
    from qvec_deploy.vectors.symmetric_places import Geometry
    from qvec_deploy.vectors.vector_file import QuantizationVector, VectorHeader

_FLOATS = {"F64", "F32", "F16", "BF16"}

output_option = click.option("-o", "--output", type=options.PATH, required=True, help="The vector file to write.")
dtype_option = click.option(
    "--dtype", type=click.Choice(["float32", "float16"]), default="float32", help="How rho is stored."
)
force_option = click.option("--force", is_flag=True, help="Replace the file if it exists.")
model_option = click.option("--model", help="timm's name of the model.")


@click.group()
def vector() -> None:
    """Make, look at, mix and check quantization vectors."""


@vector.command()
@click.option("--fp", required=True, metavar="CHECKPOINT", help="The donor's float fine-tune; a path or hf:// address.")
@click.option("--qat", required=True, metavar="CHECKPOINT", help="Its QAT fine-tune, latent weights.")
@click.option("--bits", type=int, required=True, help="Bits of the QAT.")
@click.option(
    "--granularity", type=click.Choice(["tensor", "channel", "group"]), required=True, help="What has a scale."
)
@click.option("--group-size", type=int, default=0, help="Weights that share a scale, with --granularity group.")
@click.option("--clip", type=float, default=1.0, help="Clip ratio of the QAT's grid.")
@click.option("--method", type=click.Choice(["rtn", "mse"]), default="rtn", help="How its clip ratio came about.")
@click.option("--skip", multiple=True, help="Child that the QAT left float; repeatable. The head by default.")
@click.option("--task", required=True, help="Name of the donor's task.")
@click.option("--seed", type=int, default=0, help="Seed of both fine-tunes.")
@model_option
@options.model_arg_option
@click.option("--base", metavar="CHECKPOINT", help="The pretrained checkpoint both started from.")
@click.option("--moments-from", "moments", metavar="FILE", help="Second moments of the Linears' inputs, to ship along.")
@dtype_option
@output_option
@force_option
@options.offline_option
@options.json_option
def extract(
    fp: str,
    qat: str,
    bits: int,
    granularity: Any,
    group_size: int,
    clip: float,
    method: Any,
    skip: tuple[str, ...],
    model: str | None,
    arguments: tuple[str, ...],
    base: str | None,
    moments: str | None,
    output: Path,
    force: bool,
    offline: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make a vector of a donor's float and QAT checkpoints."""
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.models import HEAD, describe
    from qvec_deploy.tensors import Scheme
    from qvec_deploy.vectors.assumptions import ExtractionInputs, assumptions
    from qvec_deploy.vectors.extract import extract_vector

    _require_output(output, (fp, qat, base, moments), force=force)
    named = _model_args(model, arguments)
    architecture = describe(model, 1, named) if model is not None else None
    scheme = Scheme(bits, granularity, group_size, clip, method)
    opened = Checkpoint.open(base, offline=offline) if base is not None else None
    donor, trained = (Checkpoint.open(file, offline=offline) for file in (fp, qat))
    said = ExtractionInputs(
        scheme,
        skip or (HEAD,),
        _by_default(),
        model,
        has_base=base is not None,
        fp_dtypes=_float_dtypes(donor),
        qat_dtypes=_float_dtypes(trained),
        stored=settings["dtype"],
    )
    header = extract_vector(
        _state(donor),
        _state(trained),
        output,
        scheme=scheme,
        skip=said.skip,
        assumed=assumptions(said),
        architecture=architecture,
        base=(_state(opened), opened.fingerprint()) if opened is not None else None,
        moments=_state(Checkpoint.open(moments, offline=offline)) if moments is not None else None,
        **settings,
    )
    _show_written(output, header, as_json)


@vector.command()
@click.argument("file")
@options.offline_option
@options.json_option
def inspect(file: str, offline: bool, as_json: bool) -> None:
    """Print what a vector fits, and its norms layer by layer."""
    from qvec_deploy.vectors.vector_file import QuantizationVector
    from qvec_deploy.vectors.vector_summary import summarize

    opened = QuantizationVector.open(file, offline=offline)
    summary = summarize(opened)
    show(summary, as_json, lambda: _print_summary(summary, str(opened.header.scheme)))


@vector.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--weight", "weights", type=float, multiple=True, help="One for each vector; equal by default.")
@dtype_option
@output_option
@force_option
@options.offline_option
@options.json_option
def mix(
    files: tuple[str, ...],
    weights: tuple[float, ...],
    dtype: str,
    output: Path,
    force: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Write the mean of several vectors, weighted if asked."""
    from qvec_deploy.vectors.mixing import mix_vectors
    from qvec_deploy.vectors.vector_file import QuantizationVector

    _require_output(output, files, force=force)
    vectors = [QuantizationVector.open(file, offline=offline) for file in files]
    _show_written(output, mix_vectors(vectors, output, weights=weights or None, dtype=dtype), as_json)


@vector.command()
@click.argument("file")
@click.option("--kind", type=click.Choice(["random", "shuffle", "task"]), required=True, help="What takes rho's place.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of `random` and `shuffle`.")
@click.option("--fp", metavar="CHECKPOINT", help="The donor's float fine-tune, for `task`.")
@click.option("--base", metavar="CHECKPOINT", help="The pretrained checkpoint it started from, for `task`.")
@output_option
@force_option
@options.offline_option
@options.json_option
def control(
    file: str,
    kind: str,
    seed: int,
    fp: str | None,
    base: str | None,
    output: Path,
    force: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Write a control with the vector's norms: noise, shuffled rows, or the donor's task vector."""
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.vectors.controls import write_control
    from qvec_deploy.vectors.vector_file import QuantizationVector

    _require_output(output, (file, fp, base), force=force)
    if (fp is None) != (base is None):
        raise RecipeError("a task vector is the difference of two checkpoints", hint="give both --fp and --base")
    donor = None
    if fp is not None and base is not None:
        donor = (_state(Checkpoint.open(fp, offline=offline)), _state(Checkpoint.open(base, offline=offline)))
    opened = QuantizationVector.open(file, offline=offline)
    _show_written(output, write_control(opened, output, kind=kind, seed=seed, donor=donor), as_json)


@vector.command()
@click.argument("receiver")
@click.argument("file", metavar="VECTOR")
@model_option
@options.model_arg_option
@click.option("--base", metavar="CHECKPOINT", help="The pretrained checkpoint that the vector must name as its base.")
@click.option("-o", "--output", type=options.PATH, help="Write the receiver in the donor's coordinates.")
@force_option
@options.offline_option
@options.json_option
def check(
    receiver: str,
    file: str,
    model: str | None,
    arguments: tuple[str, ...],
    base: str | None,
    output: Path | None,
    force: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Say whether a receiver is in the coordinates of a vector's donor; without --model, by distance alone."""
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.vectors.coordinates import check_coordinates, require_undone, sketch_like
    from qvec_deploy.vectors.undo import write_corrected
    from qvec_deploy.vectors.vector_file import QuantizationVector

    if output is not None:
        _require_output(output, (receiver, file, base), force=force)
    opened, donor = Checkpoint.open(receiver, offline=offline), QuantizationVector.open(file, offline=offline)
    if base is not None:
        _require_base(donor, Checkpoint.open(base, offline=offline))
    sketch = donor.sketch()
    if sketch is None:
        raise IncompatibleError(
            f"{file} has no sketch of its donor, so its coordinates are not known",
            hint="extract it again from the donor's checkpoints: qvec-deploy vector extract",
        )
    found = check_coordinates(
        sketch_like(sketch, opened.read), sketch, _geometry(model, arguments), donor.header.scheme
    )
    document = _check_document(found, model, donor.control())
    show(document, as_json, lambda: _print_check(found, model, donor.control()))
    require_undone(found.findings)
    if output is not None:
        write_corrected(opened, found.changes, output)
    elif found.findings:
        raise IncompatibleError(
            "the receiver is not in its donor's coordinates",
            hint="all of it can be undone: pass -o FILE to write a receiver that is",
        )


def _state(checkpoint: Checkpoint) -> dict[str, Float32]:
    """A checkpoint's float tensors; counters and index tables are no weights."""
    return {name: checkpoint.read(name) for name, info in checkpoint.tensors.items() if info.dtype in _FLOATS}


def _float_dtypes(checkpoint: Checkpoint) -> tuple[str, ...]:
    return tuple(sorted({info.dtype for info in checkpoint.tensors.values()} & _FLOATS))


def _by_default() -> set[str]:
    """Options of the command at hand that nobody gave."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is default}


def _require_output(path: Path, inputs: Iterable[str | None], *, force: bool) -> None:
    """Refuse to write over what is read, over what exists, or where there is no folder, before anything is read."""
    with storage_errors(path):
        if not path.parent.exists():
            raise StorageError(f"{path.parent} does not exist", hint="make the folder, or choose another place")
        if not path.parent.is_dir():
            raise StorageError(f"{path.parent} is not a directory", hint="choose another place")
        if not path.exists():
            return
        if path.is_dir():
            raise StorageError(f"{path} is a directory", hint="name the file to write, such as vector.safetensors")
        for source in inputs:
            if source is not None and Path(source).exists() and path.samefile(source):
                raise RecipeError(f"the output {path} is also an input", hint="choose another name for the output")
        if not force:
            raise StorageError(f"{path} exists", hint="pass --force to replace it, or choose another name")


def _model_args(model: str | None, arguments: tuple[str, ...]) -> dict[str, Any]:
    if arguments and model is None:
        raise RecipeError("--model-arg without --model", hint="name the model as well")
    return options.model_arguments(arguments)


def _geometry(model: str | None, arguments: tuple[str, ...]) -> Geometry:
    from qvec_deploy.vectors.symmetric_places import Geometry, find_geometry

    named = _model_args(model, arguments)
    return find_geometry(model, named) if model is not None else Geometry()


def _require_base(donor: QuantizationVector, base: Checkpoint) -> None:
    named = donor.header.base
    if named is None:
        raise IncompatibleError(
            f"{donor.checkpoint.source} does not name its base", hint="leave out --base, or extract it with --base"
        )
    if named != base.fingerprint():
        raise IncompatibleError(
            f"another base: {donor.checkpoint.source} does not come from {base.source}",
            hint=f"its base has the SHA-256 {named}",
        )


def _show_written(path: Path, header: VectorHeader, as_json: bool) -> None:
    from qvec_deploy.vectors.vector_summary import share_warning

    warning = share_warning(header.share)
    if as_json:
        written = {"path": str(path), "norm": header.norm, "share": header.share, "warning": warning}
        echo_json({**written, "assumed": list(header.assumed)})
        return
    say(f"vector  {path}", f"        {header.scheme}, {header.task}, {header.share:.2%} of the weights' norm")
    for each in header.assumed:
        say(f"assumed {each}")
    if warning:
        say(f"warning: {warning}", err=True)


def _print_summary(summary: dict[str, Any], scheme: str) -> None:
    from qvec_deploy.cli.printing import shape_text
    from qvec_deploy.report.page import Table

    rows = []
    for layer in summary["layers"]:
        share = f"{layer['share']:.2%}" if layer["share"] is not None else "not known"
        rows.append((layer["name"], shape_text(layer["shape"]), f"{layer['norm']:.4g}", share))
    print_table(Table("", ("Tensor", "Shape", "Norm", "Share of weight"), tuple(rows), "llrr"))
    lines = {
        "scheme": scheme,
        "skip": ", ".join(summary["skip"]) or "nothing",
        "task": summary["task"],
        "seeds": ", ".join(map(str, summary["seeds"])),
        "base": summary["base"] or "not given",
        "control": summary["control"] and _control(summary["control"]),
        "stored": ", ".join(summary["dtypes"]),
        "sketch": "yes" if summary["sketch"] else "none: coordinates cannot be checked",
        "moments": "yes" if summary["moments"] else None,
        "norm": f"{summary['norm']:.4g}, {summary['share']:.2%} of the weights' norm",
        "made by": summary["made_by"],
    }
    say("", *(f"{key:8} {value}" for key, value in lines.items() if value is not None))
    for each in summary["assumed"]:
        say(f"assumed  {each}")
    if summary["warning"]:
        say(f"warning: {summary['warning']}", err=True)


def _control(what: str) -> str:
    return f"no real vector but a control: {what}"


def _check_document(found: Coordinates, model: str | None, control: str | None) -> dict[str, Any]:
    return {
        "control": control,
        "same_coordinates": not found.findings,
        "symmetries_examined": model is not None,
        "distance": found.distance,
        "distances": dict(found.distances),
        "findings": [vars(finding) for finding in found.findings],
    }


def _print_check(found: Coordinates, model: str | None, control: str | None) -> None:
    if control is not None:
        say(_control(control))
    for finding in found.findings:
        what = "can be undone" if finding.undone else "cannot be undone"
        say(f"{finding.where}: {finding.symmetry} ({finding.units}), {what}")
    if not found.findings:
        say("the receiver is in the donor's coordinates")
    if found.distance is not None:
        worst = max(found.distances, key=found.distances.__getitem__)
        say(f"distance to the donor {found.distance:.1%}; most in {worst}, {found.distances[worst]:.1%}")
    if model is None:
        say("only distances were judged; --model names symmetries")
