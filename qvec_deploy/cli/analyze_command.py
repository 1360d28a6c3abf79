"""`qvec-deploy analyze`: what geometry predicts of donors' vectors, beside what they do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qvec_deploy.cli import options
from qvec_deploy.cli.terminal import echo_json, print_table, terminal

if TYPE_CHECKING:
    from qvec_deploy.research.analyze.analysis import Analysis, DonorAnalysis

_METRICS = {"euclidean": "Euclidean", "gauss_newton": "Gauss-Newton", "hessian": "Hessian"}
_POINTS = {
    "ptq": "the quantized receiver",
    "fp": "the receiver's float weights",
    "qat": "the receiver's own QAT, quantized",
}
_LOSSES = {"teacher": "KL to the float receiver", "labels": "cross-entropy"}


@click.command(context_settings={"show_default": True})
@click.option("--receiver", required=True, metavar="CHECKPOINT", help="The receiver's float fine-tune.")
@click.option("--receiver-qat", required=True, metavar="CHECKPOINT", help="Its own QAT fine-tune, latent weights.")
@click.option("--model", required=True, help="timm's name of the model.")
@options.model_arg_option
@click.option("--vector", "vectors", multiple=True, required=True, metavar="FILE", help="A donor's; repeatable.")
@click.option("--data", "dataset", required=True, metavar="DATASET", help="Images: tiny/..., folder, or timm's names.")
@click.option("--root", type=click.Path(path_type=Path), help="The images' folder.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="val", help="Which of them.")
@click.option("--images", type=click.IntRange(2), default=200, help="How many of them.")
@click.option(
    "--loss", type=click.Choice(["teacher", "labels"]), default="teacher", help="KL to the float receiver, or labels."
)
@click.option(
    "--at",
    type=click.Choice(["ptq", "fp", "qat"]),
    default="ptq",
    help="Where curvature is taken: the quantized receiver, its float weights, or its quantized QAT.",
)
@click.option("--batch-size", type=click.IntRange(1), default=20, help="Images at a time; fewer need less memory.")
@options.offline_option
@options.quiet_option
@options.json_option
def analyze(
    arguments: tuple[str, ...],
    dataset: str,
    root: Path | None,
    split: str,
    images: int,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Compare donors' vectors with the receiver's own QAT: predicted and measured gain, and the best lambda."""
    from qvec_deploy.datasets import DatasetSpec
    from qvec_deploy.research.analyze.analysis import analysis_document
    from qvec_deploy.research.analyze.analysis import analyze as run
    from qvec_deploy.research.analyze.analysis_inputs import AnalysisRequest

    data = DatasetSpec(dataset, split, root, images)  # type: ignore[arg-type]  # click has checked the split
    request = AnalysisRequest(data=data, model_args=options.model_arguments(arguments), **settings)
    with options.progress_shown(quiet or as_json).stage("analyze", f"{len(request.vectors)} vectors") as advance:
        analysis = run(request, advance)
    if as_json:
        echo_json(analysis_document(analysis))
    else:
        _print_analysis(analysis)


def _print_analysis(analysis: Analysis) -> None:
    from qvec_deploy.report.page import Table
    from qvec_deploy.research.analyze.response import GRID
    from qvec_deploy.vectors.short_names import short_names

    predictions: list[tuple[str, ...]] = []
    curves: list[tuple[str, ...]] = []
    for donor, name in zip(analysis.donors, short_names([donor.vector for donor in analysis.donors]), strict=True):
        measured = [donor.response.curve[lam] for lam in GRID]
        lines = [("nats", *(f"{one.loss:.3f}" for one in measured))]
        if analysis.labelled:
            lines.append(("top-1 %", *(_percent(one.top1) for one in measured)))
        for table, rows in ((predictions, _prediction_rows(donor, merged=analysis.one_curvature)), (curves, lines)):
            table += [("" if place else name, *row) for place, row in enumerate(rows)]
    console = terminal()
    console.print("Share of the gain of the receiver's own QAT, in the loss", style="bold")
    console.print()
    columns: tuple[str, ...] = (
        "lambda*",
        "Predicted",
        "Measured",
        "Predicted at 1",
        "Measured at 1",
        "Best lambda",
        "Measured",
    )
    print_table(Table("", ("Vector", "Metric", *columns), tuple(predictions), "ll" + "r" * len(columns)), console)
    console.print()
    console.print("Measured by lambda", style="bold")
    console.print()
    columns = tuple(f"{lam:g}" for lam in GRID)
    print_table(Table("", ("Vector", "In", *columns), tuple(curves), "ll" + "r" * len(columns)), console)
    console.print()
    for line in _setting(analysis):
        console.print(line, style="dim")


def _prediction_rows(donor: DonorAnalysis, *, merged: bool) -> list[tuple[str, ...]]:
    """One row a metric, and one for the gradient's estimate; what is the same for all stands in the first."""
    response, gradient = donor.response, donor.gradient

    def measured(lam: float | None) -> str:
        return "-" if lam is None else _percent(response.share(lam), " %")

    rows = []
    for metric, title in _METRICS.items():
        if merged and metric == "hessian":
            continue  # equal to the row above
        alignment = donor.alignments[metric]
        star = alignment.lambda_star
        title += " = Hessian" if merged and metric == "gauss_newton" else ""
        predicted = _percent(alignment.cos_squared, " %"), measured(star), _percent(alignment.share_at(1.0), " %")
        rows.append((title, _number(star), *predicted))
    hat = gradient.lambda_hat
    rows.append((f"gradient: {gradient.sign}", _number(hat), "", measured(hat), ""))
    once = (measured(1.0), f"{response.best:.2f}", measured(response.best))
    return [(*row, *("" if place else text for text in once)) for place, row in enumerate(rows)]


def _setting(analysis: Analysis) -> list[str]:
    request, response = analysis.request, analysis.donors[0].response
    measured = {"float": analysis.float_receiver, "plain": response.plain, "own QAT": response.own}
    top1 = ", ".join(f"{name} {_percent(value.top1)} %" for name, value in measured.items())
    loss = ", ".join(f"{name} {value.loss:.3f}" for name, value in measured.items())
    lines = [
        f"{request.model} on {analysis.images:,} images of {request.data.name} {request.data.split}; {analysis.scheme}",
        f"loss: {_LOSSES[request.loss]}, nats: {loss}",
        f"top-1: {top1}" if analysis.labelled else "top-1: the labels are not those of the receiver's head",
        f"curvature at {_POINTS[request.at]}; predicted and measured on the same images",
    ]
    if response.share(1.0) is None:
        lines.append("the receiver's own QAT is no better than plain quantization here: there is no gain to share")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{100 * value:.1f}{unit}"
