"""Plans and files as tables and as plain documents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from qvec_deploy.cli.wide_console import wide_console
from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.planner import Plan, TensorPlan


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as plain values."""
    recipe = plan.recipe
    return {
        "recipe": recipe.name,
        "model": plan.architecture.name,
        "classes": plan.architecture.classes,
        "input_shape": list(plan.architecture.input_shape),
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
    console = wide_console()
    if tensors:
        console.print(_tensor_table(plan))
        console.print()
    vectors = ", ".join(f"{weight:g} x {name}" for name, weight in plan.sources) or "none"
    console.print(
        f"{plan.architecture.name}, {plan.architecture.classes} classes, "
        f"input {' x '.join(map(str, plan.architecture.input_shape))}\n"
        f"lambda {'selected when built' if plan.recipe.lam is None else f'{plan.recipe.lam:g}'}, vectors: {vectors}\n"
        f"{plan.recipe.target.runtime}, lowering {plan.recipe.target.lowering}\n"
        f"{_count(plan.quantized)} quantized, {plan.stored_bits_per_weight:.3f} bits each with their scales; "
        f"{plan.stored_bytes / 1e6:.1f} MB in all",
        highlight=False,
        markup=False,
    )


def _tensor_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("Tensor", "Shape", "Patched", "Grid"):
        table.add_column(title)
    table.add_column("Stored bytes", justify="right")
    for tensor in plan.tensors:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        grid = str(tensor.scheme) if tensor.scheme is not None else "float32"
        patched = "yes" if tensor.patched else "no"
        table.add_row(Text(tensor.name), shape, patched, grid, f"{tensor.stored_bytes:,}")
    return table


def inspect_path(path: Path) -> dict[str, Any]:
    """What a bundle, vector, packed file or checkpoint says about itself; headers only.

    Raises:
        StorageError, IntegrityError, IncompatibleError: As the file deserves.
    """
    from qvec_deploy.bundle.manifest import read_manifest
    from qvec_deploy.io.checkpoint import Checkpoint
    from qvec_deploy.vectors.vector_file import QuantizationVector

    with storage_errors(path):
        is_directory, exists = path.is_dir(), path.exists()
    if is_directory:
        return {"kind": "bundle", **read_manifest(path).model_dump(mode="json")}
    if not exists:
        raise StorageError(f"{path} does not exist", hint="name a bundle, a vector, a packed file or a checkpoint")
    checkpoint = Checkpoint.open(path)
    text = checkpoint.metadata.get("qvec", "")
    if '"qvec-packed"' in text:
        return _packed_document(path)
    tensors = checkpoint.tensors
    document: dict[str, Any] = {"kind": "checkpoint", "tensors": len(tensors)}
    if '"qvec-vector"' in text:
        vector = QuantizationVector.open(path)
        header = vector.header
        document = {
            "kind": "quantization vector",
            "task": header.task,
            "scheme": header.scheme.as_dict(),
            "skip": list(header.skip),
            "seed": header.seed,
            "norm": header.norm,
            "share_of_weight_norm": header.norm / header.weight_norm if header.weight_norm else 0.0,
            "made_by": header.made_by,
            "tensors": len(vector.tensors),
        }
        tensors = vector.tensors
    document["weights"] = sum(_product(info.shape) for info in tensors.values())
    document["dtypes"] = dict(Counter(info.dtype for info in tensors.values()))
    document["bytes"] = path.stat().st_size
    return document


def print_document(document: dict[str, Any]) -> None:
    """A document as indented lines."""
    console = wide_console()

    def show(value: dict[str, Any], indent: int) -> None:
        width = max((len(key) for key in value), default=0)
        for key, item in value.items():
            if isinstance(item, dict) and item:
                console.print(f"{' ' * indent}{key}", highlight=False, markup=False)
                show(item, indent + 2)
            elif isinstance(item, list) and item and isinstance(item[0], dict):
                console.print(f"{' ' * indent}{key}", highlight=False, markup=False)
                for entry in item:
                    text = "  ".join(map(str, entry.values()))
                    console.print(f"{' ' * indent}  {text}", highlight=False, markup=False, soft_wrap=True)
            else:
                text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
                console.print(f"{' ' * indent}{key:{width}}  {text}", highlight=False, markup=False, soft_wrap=True)

    show(document, 0)


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


def _count(tensors: tuple[TensorPlan, ...]) -> str:
    return f"{sum(tensor.size for tensor in tensors):,} weights in {len(tensors)} Linears"


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count
