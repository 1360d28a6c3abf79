"""What a manifest says, held against the files that say it too: recipe, structure, weights, graph and report.

Whoever changes one of them has to change the others in the same sense. That proves no origin: a signature does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.results import Patch, Report
from qvec_deploy.bench.run import stored_bits_per_weight
from qvec_deploy.bench.selection import Selection
from qvec_deploy.bundle.interface import metadata_of
from qvec_deploy.bundle.manifest import Manifest
from qvec_deploy.datasets.generated import PREFIX as GENERATED
from qvec_deploy.errors import IntegrityError, RecipeError
from qvec_deploy.packed import PackedFile
from qvec_deploy.recipe import Recipe
from qvec_deploy.report.report_json import read_report_json
from qvec_deploy.runtimes.engine_files import LOWERING_KEY, MODEL_FILE, STRUCTURE_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime, products_of, runtime_bits_per_weight
from qvec_deploy.runtimes.torch_cuda.torch_structure import read_structure

if TYPE_CHECKING:
    import onnx

REPORT_FILE = "report.json"

Claim = tuple[str, Any, str, Any]
"""What is claimed, what the manifest says, where else it stands, and what stands there."""


def unverified(recipe: Recipe, shipped: Recipe, selection: Selection | None) -> str | None:
    """Why nobody knows whether the patch helps this receiver; None where there is no patch, or images have shown it."""
    confirmed = selection is not None and not selection.images.startswith(GENERATED)
    if shipped.lam == 0 or recipe.evaluate is not None or confirmed:
        return None
    return "the patch was tried on no image of the receiver's task"


def check_claims(directory: Path, manifest: Manifest, recipe: Recipe, model: onnx.ModelProto) -> str:
    """Hold a bundle's manifest against everything beside it.

    Args:
        model: The bundle's, checked.

    Raises:
        IntegrityError: Two of its files contradict each other.
    """
    count = 0
    for what, said, where, found in _claims(directory, manifest, recipe, model):
        count += 1
        if said != found:
            raise contradiction(directory, f"its manifest has another {what} than {where}")
    if REPORT_FILE in manifest.files:
        report = read_report(directory)
        check_report(directory, manifest, report)
        if manifest.gates:
            check_gates(directory, manifest, recipe, report)
        return f"the manifest agrees with its files in {count} things, and with its report"
    return f"the manifest agrees with its files in {count} things"


def read_report(directory: Path) -> Report:
    """A bundle's report, which names what is shipped."""
    report = read_report_json(directory / REPORT_FILE)
    if report.selected is None:
        raise contradiction(directory, "its report names no shipped candidate")
    return report


def check_report(directory: Path, manifest: Manifest, report: Report) -> None:
    """Refuse a report that is about something else than the manifest."""
    own, engine = report[report.selected or ""], manifest.engine
    patch = own.patch or Patch(0.0, ())
    said = (
        (manifest.name, manifest.lam, manifest.control, [vector.weight for vector in manifest.vectors]),
        (engine.runtime, engine.lowering, manifest.method, manifest.selection),
        (manifest.stored_bytes, manifest.stored_bits_per_weight, manifest.runtime_bits_per_weight),
        {layer.name: layer.error for layer in manifest.layers},
    )
    told = (
        (report.recipe, patch.lam, patch.control, [donor.weight for donor in patch.donors]),
        (own.runtime, own.lowering, own.method, report.selection),
        (own.stored_bytes, own.stored_bits_per_weight, own.runtime_bits_per_weight),
        {each.layer: each.error for each in own.layer_errors},
    )
    if said != told:
        raise contradiction(directory, "its report is about another engine than its manifest")
    if report.environment.packages != manifest.versions:
        raise contradiction(directory, "its report was made with other versions of packages than its manifest says")
    if [(gate.name, gate.passed) for gate in report.gates] != [(gate.name, gate.passed) for gate in manifest.gates]:
        raise contradiction(directory, "its report has other gates than its manifest")


def check_gates(directory: Path, manifest: Manifest, recipe: Recipe, report: Report) -> Report:
    """The report with the recipe's gates judged anew from it, refused where the manifest says otherwise."""
    try:
        gates = judge(recipe.gates, report)
    except RecipeError as error:
        raise contradiction(directory, f"its gates cannot be judged from its report: {error.message}") from error
    if [(gate.name, gate.passed) for gate in gates] != [(gate.name, gate.passed) for gate in manifest.gates]:
        raise contradiction(directory, "its gates, judged anew from its report, are not those of its manifest")
    return replace(report, gates=gates)


def contradiction(directory: Path, what: str) -> IntegrityError:
    """The error of a bundle whose parts contradict each other."""
    return IntegrityError(
        f"{directory}: {what}", hint="it was edited, or built by another version of this program; build it again"
    )


def _claims(directory: Path, manifest: Manifest, recipe: Recipe, model: onnx.ModelProto) -> Iterator[Claim]:
    yield from _of_recipe(manifest, recipe)
    yield from _of_weights(directory, manifest, recipe)
    yield from _of_graph(manifest, recipe, model)
    if STRUCTURE_FILE in manifest.files:
        own, structure = manifest.model, read_structure(directory)
        said = (own.name, own.classes, own.args, own.input_shape)
        found = (structure.name, structure.classes, structure.args, structure.input_shape)
        yield "architecture", said, STRUCTURE_FILE, found


def _of_recipe(manifest: Manifest, recipe: Recipe) -> Iterator[Claim]:
    where, receiver = "its recipe", recipe.receiver
    if receiver.model is not None:
        yield "model", manifest.model.name, where, receiver.model
    yield "arguments of the model", manifest.model.args, where, receiver.model_args
    yield "method", manifest.method, where, recipe.quantize.method
    yield "verification", manifest.unverified, where, unverified(recipe, recipe, manifest.selection)
    yield "receiver", receiver.checkpoint in manifest.sources, where, True
    if receiver.sha256 is not None:
        yield "SHA-256 of the receiver", manifest.sources.get(receiver.checkpoint), where, receiver.sha256
    vector = recipe.vector if manifest.lam else None
    if vector is not None:
        names = vector.files or [f"{donor.qat} - {donor.fp}" for donor in vector.donors]
        mixture = list(zip(names, vector.mixing(), strict=True))
        yield "mixture of vectors", [(each.name, each.weight) for each in manifest.vectors], where, mixture
    else:
        yield "mixture of vectors", manifest.vectors if not recipe.vector else (), where, ()


def _of_weights(directory: Path, manifest: Manifest, recipe: Recipe) -> Iterator[Claim]:
    weights, engine = PackedFile.open(directory / WEIGHTS_FILE), manifest.engine
    quantized = {name.removesuffix(".weight"): info for name, info in weights.tensors.items() if info.scheme}
    size = sum((directory / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE))
    yield "size", manifest.stored_bytes, "its files", size
    where = WEIGHTS_FILE
    yield "number of stored bits", manifest.stored_bits_per_weight, where, stored_bits_per_weight(weights)
    run_bits = runtime_bits_per_weight(weights.tensors.values(), engine.runtime, engine.lowering)
    yield "number of run-time bits", manifest.runtime_bits_per_weight, where, run_bits
    names = {layer.name for layer in manifest.layers}
    yield "list of layers", names | quantized.keys(), where, set(quantized)
    grids = {
        (info.scheme.bits, info.scheme.granularity, info.scheme.group_size)
        for info in quantized.values()
        if info.scheme
    }
    wanted = recipe.quantize.scheme()
    yield "grid", {(wanted.bits, wanted.granularity, wanted.group_size)} if wanted is not None else set(), where, grids
    if engine.products or manifest.digest is not None:  # they are younger than some bundles
        yield "arithmetic", engine.products, "its engines", products_of(engine.runtime, directory, engine.lowering)


def _of_graph(manifest: Manifest, recipe: Recipe, model: onnx.ModelProto) -> Iterator[Claim]:
    (given,), (made,) = model.graph.input, model.graph.output
    sides = [dim.dim_value for dim in given.type.tensor_type.shape.dim[1:]]
    channels, *size = manifest.model.input_shape
    pixels = recipe.target.preprocessing == "in_graph"
    yield "shape of images", [*size, channels] if pixels else [channels, *size], MODEL_FILE, sides
    yield "number of classes", manifest.model.classes, MODEL_FILE, made.type.tensor_type.shape.dim[1].dim_value
    interface = manifest.interface
    if interface is None:
        return
    yield "model file", (interface.model, interface.weights), "its files", (MODEL_FILE, WEIGHTS_FILE)
    types = {1: "float32", 2: "uint8"}  # of TensorProto
    for spec, value in ((interface.input, given), (interface.output, made)):
        kind = value.type.tensor_type
        found = (value.name, types[kind.elem_type], *(dim.dim_value or dim.dim_param for dim in kind.shape.dim))
        yield "interface", (spec.name, spec.dtype, *spec.shape), MODEL_FILE, found
    row = find_runtime(manifest.engine.runtime)
    options = (dict(row.session_options), dict(row.session_config))
    yield "session", (interface.session_options, interface.session_config), "its runtime's row", options
    written = {entry.key: entry.value for entry in model.metadata_props}
    if row.stands_alone and not manifest.older:
        said = metadata_of(manifest.model, interface, manifest.engine.threads)
        yield "description of the model", said, MODEL_FILE, {name: written.get(name) for name in said}
        yield "lowering", manifest.engine.lowering, MODEL_FILE, written.get(LOWERING_KEY)
