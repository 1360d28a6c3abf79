"""A plan's weights as an engine gets them: the receiver, patched, put on the grid.

Methods that look at weights, or at second moments of a donor, take one tensor at a time; those that look at activations
need the model whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qvec_deploy.bundle.verify import check_graph
from qvec_deploy.errors import IncompatibleError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import write_bytes
from qvec_deploy.models import structure
from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
from qvec_deploy.planner import Plan
from qvec_deploy.progress import Advance
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.torch_cuda.torch_structure import write_structure
from qvec_deploy.tensors import INPUT_SCALE, Float32, PackedTensor, QuantizedTensor, Scheme, matrix_shape
from qvec_deploy.vectors.patch import mix, patch
from qvec_deploy.vectors.vector_sources import Source

if TYPE_CHECKING:
    from torch import nn

    from qvec_deploy.builder.context import BuildContext

Weight = QuantizedTensor | Float32
Quantize = Callable[[str, Float32, Scheme], QuantizedTensor]


@dataclass(frozen=True)
class CandidateWeights:
    """Everything an engine is made from.

    Attributes:
        layout: Shape and grid of every tensor, in the order of `tensors`.
        tensors: Name and value, made as they are asked for.
        errors: Relative L2 quantization error by layer; filled while `tensors` is read.
        notes: What the method could not do.
    """

    layout: Mapping[str, Entry]
    tensors: Iterator[tuple[str, Weight]]
    errors: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightFacts:
    """What is known of written weights.

    Attributes:
        errors: Relative L2 quantization error by layer.
        notes: What the method could not do.
    """

    errors: dict[str, float]
    notes: list[str]


def write_weights(plan: Plan, context: BuildContext, folder: Path) -> WeightFacts:
    """Write what every lowering of a candidate is made from: its weights, its graph and its structure.

    Raises:
        QvecError: As `make_weights`; the disk refuses; the model cannot be exported.
    """
    from qvec_deploy.runtimes.graph.stored import attach_weights

    recipe = plan.recipe
    with context.progress.stage("quantize", recipe.name) as advance:
        images = context.calibration_images(plan)
        weights = make_weights(plan, context.receiver(recipe), context.sources(recipe), images, advance)
        tensors = _packed(weights.tensors, len(weights.layout), advance)
        write_packed(folder / WEIGHTS_FILE, weights.layout, tensors)
    skeleton = context.skeleton(plan)
    with context.progress.stage("lower", recipe.name):
        model = attach_weights(skeleton, PackedFile.open(folder / WEIGHTS_FILE), WEIGHTS_FILE)
        write_bytes(folder / MODEL_FILE, model.SerializeToString(deterministic=True))
        check_graph(folder)
        write_structure(folder, plan.architecture, recipe.receiver.model_args)
    return WeightFacts(weights.errors, list(weights.notes))


def _packed(
    tensors: Iterator[tuple[str, Weight]], total: int, advance: Advance
) -> Iterator[tuple[str, PackedTensor | Float32]]:
    for count, (name, value) in enumerate(tensors):
        yield name, pack(value) if isinstance(value, QuantizedTensor) else value
        advance(count + 1, total)


def make_weights(
    plan: Plan,
    receiver: Checkpoint,
    sources: Mapping[str, Source],
    images: Sequence[Float32] = (),
    on_layer: Advance | None = None,
) -> CandidateWeights:
    """Patch and quantize as a plan says.

    Args:
        images: Batches (B, C, H, W) for a method that looks at activations .
        on_layer: Told how many layers are done, of how many.

    Raises:
        IntegrityError: NaN or infinity in a weight or a vector.
        IncompatibleError: Calibration by moments that no vector brings.
    """
    patched, settings = patch(receiver, sources, plan), plan.recipe.quantize
    if settings.calibrated and settings.calibration.on != "moments":
        return _calibrated(plan, patched, receiver, images, on_layer)
    quantize = _by_moments(settings.method, sources) if settings.calibrated else _nearest
    errors: dict[str, float] = {}
    layout = {tensor.name: Entry(tensor.shape, tensor.scheme) for tensor in plan.tensors}
    return CandidateWeights(layout, _one_at_a_time(patched, plan, quantize, errors), errors)


def _one_at_a_time(
    weights: Iterator[tuple[str, Float32]], plan: Plan, quantize: Quantize, errors: dict[str, float]
) -> Iterator[tuple[str, Weight]]:
    schemes = {tensor.name: tensor.scheme for tensor in plan.tensors}
    if any(schemes.values()):
        from qvec_deploy.quantize.reference import relative_error
    for name, weight in weights:
        scheme = schemes[name]
        if scheme is None:
            yield name, weight
            continue
        matrix = weight.reshape(matrix_shape(weight.shape))
        quantized = quantize(name, matrix, scheme)
        errors[name.removesuffix(".weight")] = relative_error(matrix, quantized)
        yield name, quantized


def _nearest(name: str, weight: Float32, scheme: Scheme) -> QuantizedTensor:
    from qvec_deploy.quantize.nearest import quantize

    return quantize(weight, scheme)


def _by_moments(method: str, sources: Mapping[str, Source]) -> Quantize:
    """A method on the second moments of the Linears' inputs: the mean over all vectors, for a weight at a time."""
    from qvec_deploy.quantize.calibrated import quantize_by_moment

    if not sources:
        raise RecipeError("quantize.calibration.on: moments needs a `vector` that brings them", hint="name one")

    def quantize(name: str, weight: Float32, scheme: Scheme) -> QuantizedTensor:
        module, parts = name.removesuffix(".weight"), []
        for label, source in sources.items():  # not mixed by the vectors' weights: a negative one would be no moment
            brought = source.moment(module)
            if brought is None:
                raise IncompatibleError(
                    f"{label} brings no second moments of {module}",
                    hint="train the donor with `moments` in its recipe, or calibrate on images",
                )
            parts.append((brought, 1 / len(sources)))
        return quantize_by_moment(module, weight, mix(parts), scheme, method)

    return quantize


def _calibrated(
    plan: Plan,
    patched: Iterator[tuple[str, Float32]],
    receiver: Checkpoint,
    images: Sequence[Float32],
    on_layer: Advance | None,
) -> CandidateWeights:
    from qvec_deploy.quantize.calibrated import calibrate
    from qvec_deploy.quantize.reference import relative_error

    settings = plan.recipe.quantize
    scheme = settings.scheme()
    assert scheme is not None  # noqa: S101 - a calibrated method has a grid
    model, teacher = load_model(plan, patched), None
    if plan.recipe.lam != 0:
        teacher = load_model(plan, ((tensor.name, receiver.read(tensor.name)) for tensor in plan.tensors))
    found = calibrate(model, images, scheme, settings.skip, settings.method, teacher=teacher, on_layer=on_layer)
    state = {name: value.numpy() for name, value in model.state_dict().items() if value.is_floating_point()}
    errors = {
        name.removesuffix(".weight"): relative_error(state[name], quantized)
        for name, quantized in found.codes.items()
        if not METHODS[settings.method].scales_columns
    }
    scales = {f"{name}{INPUT_SCALE}": value for name, value in found.input_scales.items()}
    values: dict[str, Weight] = {**state, **found.floats, **found.codes, **scales}
    layout = {tensor.name: Entry(tensor.shape, tensor.scheme) for tensor in plan.tensors}
    layout |= {name: Entry(value.shape, None) for name, value in scales.items()}
    return CandidateWeights(layout, ((name, values[name]) for name in layout), errors, found.notes)


def load_model(plan: Plan, state: Iterable[tuple[str, Float32]], *, strict: bool = True) -> nn.Module:
    """The plan's timm model with these weights, in evaluation mode; not `strict` where others follow."""
    import torch

    model = structure(plan.architecture.name, plan.architecture.classes, plan.recipe.receiver.model_args)
    tensors = {name: value for name, value in model.state_dict().items() if not value.is_floating_point()}  # counters
    tensors |= ((name, torch.from_numpy(np.array(value, np.float32))) for name, value in state)
    model.load_state_dict(tensors, strict=strict, assign=True)
    return model
