"""Plans and files as tables and as plain documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from qvec_deploy.cli.options import print_table
from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.state_dict import Weights
from qvec_deploy.io.stored_tensors import TensorInfo
from qvec_deploy.planner import Plan
from qvec_deploy.report.page import Table


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as plain values."""
    recipe = plan.recipe
    return {
        "recipe": recipe.name,
        "model": plan.architecture.name,
        "classes": plan.architecture.classes,
        "input_shape": list(plan.architecture.input_shape),
        "receiver_weights": plan.receiver_weights,
        "left_aside": list(plan.left_aside),
        "lambda": recipe.lam,
        "vectors": [{"name": name, "weight": weight} for name, weight in plan.sources],
        "skip": list(recipe.quantize.skip),
        "runtime": recipe.target.runtime,
        "lowering": recipe.target.lowering,
        "stored_bytes": plan.stored_bytes,
        "stored_bits_per_weight": plan.stored_bits_per_weight,
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


def print_plan(plan: Plan, *, tensors: bool = True) -> None:
    """Every tensor's decision, if they are wanted, then the sums."""
    if tensors:
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
        click.echo()
    vectors = ", ".join(f"{weight:g} x {name}" for name, weight in plan.sources) or "none"
    weights = sum(tensor.size for tensor in plan.quantized)
    click.echo(
        f"{plan.architecture.name}, {plan.architecture.classes} classes, "
        f"input {shape_text(plan.architecture.input_shape)}\n"
        f"{_taken(plan)}lambda {'selected when built' if plan.recipe.lam is None else f'{plan.recipe.lam:g}'}, "
        f"vectors: {vectors}\n"
        f"{plan.recipe.target.runtime}, lowering {plan.recipe.target.lowering}\n"
        f"{weights:,} weights in {len(plan.quantized)} Linears quantized, {plan.stored_bits_per_weight:.3f} bits each "
        f"with their scales; {plan.stored_bytes / 1e6:.1f} MB in all"
    )


def _taken(plan: Plan) -> str:
    """Lines about a receiver's file that holds more than one network's weights."""
    lines = [f"weights of the receiver: {plan.receiver_weights}"] if plan.receiver_weights is not None else []
    if plan.left_aside:
        first, more = ", ".join(plan.left_aside[:5]), len(plan.left_aside) - 5
        lines.append(f"left aside in its file: {first}" + (f" and {more} more" if more > 0 else ""))
    return "".join(f"{line}\n" for line in lines)


def shape_text(shape: Sequence[int]) -> str:
    """`12 x 34`, or that it is a scalar."""
    return " x ".join(map(str, shape)) or "scalar"


def inspect_path(path: Path, weights: Weights | None = None) -> dict[str, Any]:
    """What a bundle, vector, packed file or checkpoint says about itself; headers only."""
    from qvec_deploy.bundle.manifest import read_manifest
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.vectors.vector_file import QuantizationVector

    with storage_errors(path):
        is_directory, exists = path.is_dir(), path.exists()
    if is_directory:
        return {"kind": "bundle", **read_manifest(path).model_dump(mode="json")}
    if not exists:
        raise StorageError(f"{path} does not exist", hint="name a bundle, a vector, a packed file or a checkpoint")
    checkpoint = Checkpoint.open(path, weights=weights)
    text = checkpoint.metadata.get("qvec", "")
    if '"qvec-packed"' in text:
        return _packed_document(path)
    tensors: Mapping[str, TensorInfo] = checkpoint.tensors
    document: dict[str, Any] = {"kind": "checkpoint", "tensors": len(tensors)}
    if checkpoint.weights is not None:
        document["which_weights"] = checkpoint.weights
    if checkpoint.aside:
        document["left_aside"] = list(checkpoint.aside)
    if '"qvec-vector"' in text:
        vector = QuantizationVector.open(path)
        header, tensors = vector.header, vector.tensors
        document = {
            "kind": "quantization vector",
            "task": header.task,
            "scheme": header.scheme.as_dict(),
            "skip": list(header.skip),
            "seed": header.seed,
            "norm": header.norm,
            "share_of_weight_norm": header.share,
            "made_by": header.made_by,
            "tensors": len(tensors),
        }
    document["weights"] = sum(math.prod(info.shape) for info in tensors.values())
    document["dtypes"] = dict(Counter(info.dtype for info in tensors.values()))
    document["bytes"] = path.stat().st_size
    return document


def document_lines(document: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A document as indented lines."""
    width = max(map(len, document), default=0)
    for key, item in document.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}"
            yield from document_lines(item, f"{indent}  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield f"{indent}{key}"
            yield from (f"{indent}  {'  '.join(map(str, entry.values()))}" for entry in item)
        else:
            yield f"{indent}{key:{width}}  {', '.join(map(str, item)) if isinstance(item, list) else item}"


def _packed_document(path: Path) -> dict[str, Any]:
    from qvec_deploy.packed import PackedFile

    file = PackedFile.open(path)
    packed = {name: info for name, info in file.tensors.items() if info.scheme is not None}
    return {
        "kind": "packed weights",
        "format": file.version,
        "packed_tensors": len(packed),
        "float_tensors": len(file.tensors) - len(packed),
        "schemes": dict(Counter(str(info.scheme) for info in packed.values())),
        "bytes": path.stat().st_size,
    }
