"""A plan as a document, and as the lines that matter."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from qvec_deploy import formatting
from qvec_deploy.builder.preview import DataPreview, Preview
from qvec_deploy.cli.printing import shape_text
from qvec_deploy.cli.terminal import print_table, say, terminal
from qvec_deploy.planner import Plan
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.recipe import FLOAT_BITS, Evaluate, Recipe
from qvec_deploy.report.page import Table
from qvec_deploy.visible import visible

_INDENT = " " * 12


def plan_document(found: Preview) -> dict[str, Any]:
    """A preview as plain values."""
    plan, recipe = found.plan, found.recipe
    return {
        "recipe": recipe.name,
        "model": plan.architecture.name,
        "classes": plan.architecture.classes,
        "class_names": list(plan.class_names.names),
        "class_names_from": plan.class_names.source,
        "input_shape": list(plan.architecture.input_shape),
        "preprocessing": {name: plan.images.config[name] for name in plan.images.origins},
        "preprocessing_from": dict(plan.images.origins),
        "receiver_weights": plan.receiver_weights,
        "left_aside": list(plan.left_aside),
        "lambda": recipe.lam,
        "vectors": [{"name": name, "weight": weight} for name, weight in plan.sources],
        "skip": list(recipe.quantize.skip),
        "runtime": recipe.target.runtime,
        "lowering": recipe.target.lowering,
        "stored_bytes": plan.stored_bytes,
        "stored_bits_per_weight": plan.stored_bits_per_weight,
        "candidates": list(found.candidates),
        "data": [_data_document(data) for data in found.data],
        "missing": list(found.missing),
        "doubts": list(found.doubts),
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "patched": tensor.patched,
                "scheme": tensor.scheme.as_dict() if tensor.scheme is not None else None,
                "stored_bytes": tensor.stored_bytes,
            }
            for tensor in plan.tensors
        ],
    }


def _data_document(data: DataPreview) -> dict[str, Any]:
    opened = data.opened
    return {
        "block": data.block,
        "dataset": data.settings.dataset,
        "root": data.settings.root,
        "split": data.settings.split,
        "images": len(opened) if opened is not None else None,
        "class_names": list(opened.class_names) if opened is not None else [],
        "without_images": list(opened.missing) if opened is not None else [],
    }


def print_plan(found: Preview) -> None:
    """What goes in, what comes out, what is missing and what is doubtful."""
    width = terminal().width - len(_INDENT)
    for name, text in plan_lines(found):
        lines = textwrap.wrap(visible(text), width, break_long_words=False, break_on_hyphens=False)
        say(*(f"{_INDENT if place else name:{len(_INDENT)}}{line}" for place, line in enumerate(lines)))


def plan_lines(found: Preview) -> Iterator[tuple[str, str]]:
    """A word and what there is to say of it, line by line."""
    plan, recipe = found.plan, found.recipe
    weights = f", {plan.receiver_weights} weights" if plan.receiver_weights is not None else ""
    absent = any(text.startswith("receiver.checkpoint:") for text in found.missing)
    receiver = f"{recipe.receiver.checkpoint}: timm's {plan.architecture.name}, {plan.architecture.classes:,} classes"
    yield "receiver", receiver + (" where it is not there" if absent else weights)
    if plan.left_aside:
        yield "left aside", f"in its file: {formatting.some(plan.left_aside)}"
    yield "images", formatting.preprocessing(plan.images.config, plan.images.origins)
    yield "classes", _classes(found)
    yield "patch", _patch(recipe, plan)
    yield "weights", _grid(recipe, plan)
    yield "engine", _engine(recipe)
    for data in found.data:
        yield "accuracy" if data.block == "evaluate" else "looks at", _data(data)
    yield "size", _size(plan)
    yield "candidates", ", ".join(found.candidates)
    for text in found.missing:
        yield "missing", text
    for text in found.doubts:
        yield "doubt", text


def print_tensors(plan: Plan) -> None:
    """Every tensor's decision."""
    rows = tuple(
        (
            tensor.name,
            shape_text(tensor.shape),
            "yes" if tensor.patched else "no",
            str(tensor.scheme) if tensor.scheme is not None else "float32",
            f"{tensor.stored_bytes:,}",
        )
        for tensor in plan.tensors
    )
    print_table(Table("", ("Tensor", "Shape", "Patched", "Grid", "Stored bytes"), rows, "llllr"))


def _classes(found: Preview) -> str:
    """Which class every output is of, and who says so."""
    named, data = found.plan.class_names, next((data for data in found.data if data.block == "evaluate"), None)
    if named.names:
        return f"{_numbered(named.names)}; from {named.source}"
    opened = data.opened if data is not None else None
    if data is None or opened is None or not opened.class_names:
        return "not named"
    order = ""
    if isinstance(data.settings, Evaluate) and data.settings.dataset in ("", "folder"):
        told = {"natural": "timm's order of the folders", "plain": "torchvision's order of the folders"}
        order = f", numbered in {told.get(data.settings.class_order or '', 'the order of the folders')}"
    return f"{_numbered(opened.class_names)}; not named{order}"


def _numbered(names: Sequence[str]) -> str:
    return formatting.some([f"{label} = {name}" for label, name in enumerate(names)])


def _patch(recipe: Recipe, plan: Plan) -> str:
    if recipe.vector is None or recipe.lam == 0:
        return "none: plain quantization"
    scale = f"lambda {recipe.lam:g}" if recipe.lam is not None else "lambda chosen by the build"
    if not plan.sources:
        return f"{scale}; its vectors are not looked at yet, for something is missing"
    return f"{scale} x ({formatting.some([f'{weight:.3g} {name}' for name, weight in plan.sources], between=' + ')})"


def _grid(recipe: Recipe, plan: Plan) -> str:
    quantize, methods = recipe.quantize, recipe.methods()
    if quantize.bits in FLOAT_BITS:
        return f"float{quantize.bits}: nothing is quantized"
    shared = {"tensor": "a tensor", "channel": "an output channel", "group": f"{quantize.group_size} weights"}
    kept = f"; float: {', '.join(quantize.skip)}, biases, norms" if quantize.skip else ""
    on = ""
    if any(METHODS[method].calibrated for method in methods):
        looked_at = quantize.calibration.on or ("images" if recipe.images is not None else "generated")
        on = f" on {'generated images' if looked_at == 'generated' else looked_at}"
    method = f"method {methods[0]}" if len(methods) == 1 else f"the best of methods {', '.join(methods)}"
    weights = sum(tensor.size for tensor in plan.quantized)
    return (
        f"{quantize.bits} bits, {method}{on}, a scale for {shared[quantize.granularity]}; "
        f"{len(plan.quantized)} layers of {weights / 1e6:.3g} million weights{kept}"
    )


def _engine(recipe: Recipe) -> str:
    target = recipe.target
    threads = f", {target.threads} thread{'s' * (target.threads != 1)}" if target.threads is not None else ""
    sizes = ", ".join(map(str, target.batch_sizes))
    return f"{target.runtime}, lowering {target.lowering}{threads}; latency at batch {sizes}"


def _data(data: DataPreview) -> str:
    settings, opened = data.settings, data.opened
    where = f"{settings.root or settings.dataset}, {settings.split}"
    if opened is None:
        return f"{where}: not opened"
    if not isinstance(settings, Evaluate):
        return f"{where}: {len(opened):,} images, labels aside"
    absent = (
        f", {len(opened.missing):,} of them without an image ({formatting.some(opened.missing)})"
        if opened.missing
        else ""
    )
    return f"{where}: {len(opened):,} images, {opened.classes:,} classes{absent}"


def _size(plan: Plan) -> str:
    full = 4 * sum(tensor.size for tensor in plan.tensors)
    ratio = f", {full / plan.stored_bytes:.3g} times smaller" if plan.quantized else ""
    stored = f"{formatting.megabytes(full)} MB in float32, {formatting.megabytes(plan.stored_bytes)} MB in the bundle"
    return f"{stored}{ratio}; {plan.stored_bits_per_weight:.3g} bits a quantized weight with its scales"
