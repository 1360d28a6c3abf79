"""Recipe and headers to Plan: what happens to every tensor, decided before any weight is read."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.formatting import some
from qvec_deploy.io.checkpoint import Checkpoint, TensorInfo
from qvec_deploy.io.state_dict import Weights
from qvec_deploy.models import (
    HEAD,
    Architecture,
    describe,
    head_names,
    in_head,
    is_running_statistic,
    pretrained_classes,
    trace_forward,
)
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.recipe import Recipe
from qvec_deploy.recipe.blocks import Quantize
from qvec_deploy.recipe.class_names import ClassNames, name_classes
from qvec_deploy.recipe.preprocessing import PreparedImages, prepare_images
from qvec_deploy.runtimes.registry import check_engine, check_lowering
from qvec_deploy.tensors import Scheme, matrix_shape

FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        name: Its name in the state dict.
        patched: Whether lambda * rho is added.
        scheme: The grid it is quantized on; None if it stays float.
    """

    name: str
    shape: tuple[int, ...]
    patched: bool
    scheme: Scheme | None

    @property
    def size(self) -> int:
        """Number of weights."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def stored_bytes(self) -> int:
        """Bytes in the packed file: payload and scales, or float32 values."""
        if self.scheme is None:
            return 4 * self.size
        rows, columns = matrix_shape(self.shape)
        words = self.scheme.bits * -(-columns // 32)
        return 4 * rows * (words + self.scheme.groups(columns))


@dataclass(frozen=True)
class Plan:
    """Everything that will be done, in order of the state dict.

    Attributes:
        sources: Label and mixing weight of every vector.
        images: How images are prepared, and who says so.
        class_names: What the head's classes are called, and who says so.
        receiver_weights: Whether averaged (`ema`) or raw weights are taken, where the receiver's file says.
        left_aside: What the receiver's file holds beside the network.
    """

    recipe: Recipe
    architecture: Architecture
    tensors: tuple[TensorPlan, ...]
    sources: tuple[tuple[str, float], ...]
    images: PreparedImages
    class_names: ClassNames
    receiver_weights: Weights | None = None
    left_aside: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[TensorPlan, ...]:
        """The tensors that are quantized."""
        return tuple(tensor for tensor in self.tensors if tensor.scheme is not None)

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights in the packed file, without its header."""
        return sum(tensor.stored_bytes for tensor in self.tensors)

    @property
    def stored_bits_per_weight(self) -> float:
        """Bits a quantized weight takes in the packed file, its share of the scales included; 32 for float."""
        weights = sum(tensor.size for tensor in self.quantized)
        return 8 * sum(tensor.stored_bytes for tensor in self.quantized) / weights if weights else 32.0


def make_plan(recipe: Recipe, receiver: Checkpoint | None, vectors: Mapping[str, Any] | None = None) -> Plan:
    """Decide everything that headers can decide, and refuse everything that headers show to be wrong.

    Args:
        receiver: The opened receiver; None plans for timm's model itself, with the classes it was pretrained for.
        vectors: Label to opened vector (anything with `header` and `checkpoint`-like `tensors`), in the recipe's order.

    Raises:
        RecipeError: Unknown model, a skip entry that matches nothing, groups that do not divide a row.
        IncompatibleError: Names, shapes or dtypes that do not match; a vector for another grid; a lowering that
            cannot take these bits.
    """
    model = recipe.receiver.model
    classes = count_classes(model, receiver) if receiver is not None else pretrained_classes(model)
    architecture = describe(model, classes, recipe.receiver.model_args)
    if receiver is not None:
        check_tensors(receiver, architecture)
    configs = receiver.configs() if receiver is not None else ()
    images = prepare_images(recipe, architecture, configs)
    names = name_classes(recipe, classes if receiver is not None else None, configs)
    architecture = replace(architecture, data_config=images.config)
    grid, target = recipe.quantize, recipe.target
    check_lowering(target.runtime, target.lowering, grid.bits, grid.granularity, grid.group_size)
    gpus = target.engine.compute_capabilities
    check_engine(target.runtime, target.lowering, gpus, others=target.engine.of_other_gpus)
    scheme = grid.scheme()
    _check_skip(grid, architecture)
    used = dict(vectors or {}) if recipe.lam != 0 else {}
    for label, vector in used.items():
        _check_vector(label, vector, recipe, architecture)
    quantized = _quantized(recipe, architecture)
    _check_forward(recipe, architecture, quantized)
    tensors = tuple(
        TensorPlan(
            name=name,
            shape=shape,
            patched=bool(used) and not in_head(name, architecture.heads) and not is_running_statistic(name),
            scheme=scheme if name in quantized else None,
        )
        for name, shape in architecture.shapes.items()
    )
    for tensor in tensors:
        if tensor.scheme is not None:
            tensor.scheme.groups(matrix_shape(tensor.shape)[1])
    mixing = recipe.vector.mixing() if recipe.vector is not None else ()
    sources = tuple(zip(used, mixing, strict=True)) if used else ()
    weights, aside = (receiver.weights, receiver.aside) if receiver is not None else (None, ())
    return Plan(recipe, architecture, tensors, sources, images, names, weights, aside)


def _check_forward(recipe: Recipe, architecture: Architecture, quantized: set[str]) -> None:
    """Refuse a model that cannot be run on images of its size, or whose weights are used where no grid can follow.

    Raises:
        IncompatibleError: It is one.
    """
    args = json.dumps(recipe.receiver.model_args)
    found = trace_forward(architecture.name, architecture.classes, args, architecture.input_shape)
    size = " x ".join(map(str, architecture.input_shape))
    if found.error is not None:
        raise IncompatibleError(
            f"`{architecture.name}` does not run on images of {size}: {found.error}",
            hint="check receiver.model_args, img_size above all",
        )
    if found.outputs != (2, architecture.classes):
        raise IncompatibleError(
            f"`{architecture.name}` gives {found.outputs or 'no single tensor'} for 2 images of {size}, and no logits "
            f"of {architecture.classes} classes",
            hint="models that tell classes apart are deployed",
        )
    if found.shared:
        raise IncompatibleError(
            f"`{architecture.name}` has one layer under several names ({some(list(found.shared))})",
            hint="a model's weights are stored once, each under one name: use a model without such layers",
        )
    odd = [name for name in found.outside if f"{name}.weight" in quantized]
    if odd:
        raise IncompatibleError(
            f"`{architecture.name}` computes with the weight of {some(odd)} outside of that layer",
            hint=f"leave it float: add `{odd[0].rpartition('.')[2]}` to quantize.skip",
        )


def _quantized(recipe: Recipe, architecture: Architecture) -> set[str]:
    """Names of the weights that go on the grid; none for the float engine.

    Raises:
        IncompatibleError: There are none, or convolutions with a method or a vector that knows Linears alone.
    """
    grid = recipe.quantize
    if grid.scheme() is None:
        return set()
    names = architecture.quantized(grid.skip, convolutions=grid.convolutions)
    if not names:
        more = architecture.quantized(grid.skip, convolutions=True)
        kinds = "Linear or convolution" if grid.convolutions else "Linear"
        raise IncompatibleError(
            f"`{architecture.name}` has no {kinds} to quantize outside {', '.join(grid.skip) or 'nothing'}",
            hint=f"set quantize.convolutions: true, it has {len(more)} of them" if more else "use a shorter skip list",
        )
    if grid.convolutions and grid.calibrated:
        weights_only = ", ".join(name for name, row in METHODS.items() if not row.calibrated)
        raise IncompatibleError(
            f"method `{grid.method}` looks at what reaches Linears, and knows no convolutions",
            hint=f"use {weights_only}, or leave out quantize.convolutions",
        )
    if grid.convolutions and recipe.lam != 0 and recipe.vector is not None:
        raise IncompatibleError(
            "vectors are trained with convolutions in float, and quantize.convolutions puts them on the grid",
            hint="leave out quantize.convolutions, or the vector",
        )
    return {f"{name}.weight" for name in names}


def count_classes(model: str, receiver: Checkpoint) -> int:
    """Number of classes, from the receiver's head; of two heads, from the first.

    Raises:
        IncompatibleError: The checkpoint has no head.
    """
    head = head_names(model)[0]
    weight = receiver.tensors.get(f"{head}.weight")
    if weight is None or len(weight.shape) < 2 or weight.shape[0] < 1:
        near = difflib.get_close_matches(f"{head}.weight", receiver.tensors, n=1)
        raise IncompatibleError(
            f"{receiver.path} has no classes: `{head}.weight` is missing" + (f" (nearest: {near[0]})" if near else ""),
            hint=f"use the fine-tuned checkpoint with its head; `{model}` keeps it in `{head}`",
        )
    return weight.shape[0]


def check_tensors(checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Refuse a checkpoint that is not exactly this architecture's.

    Raises:
        IncompatibleError: Missing or extra tensors, other shapes or dtypes.
    """
    hint = "check the model and its arguments (receiver.model_args, or --model-arg) against the training run"
    missing = [name for name in architecture.shapes if name not in checkpoint.tensors]
    extra = [name for name in checkpoint.tensors if name not in architecture.shapes]
    if missing or extra:
        parts = [f"{len(missing)} missing ({some(missing)})"] * bool(missing)
        parts += [f"{len(extra)} not in the model ({some(extra)})"] * bool(extra)
        raise IncompatibleError(f"{checkpoint.path} is not a `{architecture.name}`: {', '.join(parts)}", hint=hint)
    for name, shape in architecture.shapes.items():
        _check_tensor(f"{checkpoint.path}", name, checkpoint.tensors[name], shape, hint)


def _check_tensor(where: str, name: str, info: TensorInfo, shape: tuple[int, ...], hint: str) -> None:
    if info.shape != shape:
        raise IncompatibleError(f"{where}: {name} has shape {info.shape}, the model has {shape}", hint=hint)
    if info.dtype not in FLOAT_DTYPES:
        raise IncompatibleError(
            f"{where}: {name} has dtype {info.dtype}", hint="weights must be float64, float32, float16 or bfloat16"
        )


def _check_skip(grid: Quantize, architecture: Architecture) -> None:
    modules, kinds = architecture.linears, "Linear"
    if grid.convolutions:
        modules, kinds = (*modules, *architecture.convolutions), "Linear or convolution"
    parts = {HEAD, *(part for name in modules for part in name.split("."))}
    for entry in grid.skip:
        if entry not in parts:
            near = difflib.get_close_matches(entry, parts, n=2)
            raise RecipeError(
                f"quantize.skip: `{entry}` matches no {kinds} of `{architecture.name}`",
                hint=f"names are matched exactly; nearest: {', '.join(near) or ', '.join(sorted(parts)[:5])}",
            )


def _check_vector(label: str, vector: Any, recipe: Recipe, architecture: Architecture) -> None:
    header, scheme = vector.header, recipe.quantize.scheme()
    if scheme is not None and header.scheme != scheme:
        raise IncompatibleError(
            f"{label} was trained for {header.scheme}; the recipe quantizes to {scheme}",
            hint="a vector only works on its own grid: change `quantize`, or use a vector trained for it",
        )
    if set(header.skip) != set(recipe.quantize.skip):
        skipped = ", ".join(recipe.quantize.skip) or "nothing"
        raise IncompatibleError(
            f"{label} left {', '.join(header.skip)} float; the recipe skips {skipped}",
            hint="use the vector's skip list in quantize.skip",
        )
    backbone = architecture.backbone
    hint = "the donor must be a fine-tune of the same model as the receiver"
    odd = sorted(set(backbone) ^ set(vector.tensors))
    if odd:
        raise IncompatibleError(f"{label} does not fit `{architecture.name}`: {some(odd)}", hint=hint)
    for name, shape in backbone.items():
        _check_tensor(label, name, vector.tensors[name], shape, hint)
