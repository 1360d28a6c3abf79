"""A bundle's model in a model repository of Triton Inference Server: its configuration, labels and first version."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.export_bundle import RUNTIME, lowered_bundle
from qvec_deploy.bundle.export_engine import choose_engine
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import copy_file, staging_directory, storage_errors
from qvec_deploy.io.output_places import require_outside
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.registry import find_runtime
from qvec_deploy.runtimes.runtime import TritonBackend

if TYPE_CHECKING:
    import onnx

CONFIG_FILE, LABELS_FILE, VERSION = "config.pbtxt", "labels.txt", "1"
BATCHES = (4, 8)
"""Batches that requests are gathered into where the recipe measures single images only."""
QUEUE_DELAY_US = 1000
"""How long a request waits for others, in microseconds."""


@dataclass(frozen=True)
class ServedModel:
    """A model that was put into a model repository.

    Attributes:
        batches: Images that one run takes at most; of a static engine, exactly.
        calibrated: What the inputs' ranges are of, where the lowering needs them; None where it does not.
    """

    directory: Path
    lowering: str
    batches: int
    calibrated: str | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "directory": str(self.directory)}


def export_to_repository(directory: Path, repository: Path, lowering: str | None = None) -> ServedModel:
    """Put a bundle's model into a model repository as REPOSITORY/NAME, which appears whole or not at all.

    Args:
        lowering: The bundle's own by default; one of ONNX Runtime on the CPU where Triton has no backend for its
            runtime.

    Raises:
        IncompatibleError: The lowering cannot take these weights, or its engine has not been built.
        IntegrityError: The bundle is damaged.
        StorageError: The model is there already, the repository is in the bundle, or the disk refuses.
    """
    require_outside(repository, directory)
    bundle = Bundle.open(directory)
    if find_runtime(bundle.manifest.engine.runtime).compiles:
        return _export_compiled(bundle, repository, lowering)
    chosen, model, calibrated = lowered_bundle(bundle, lowering)
    sizes = tuple(sorted(size for size in set(bundle.recipe.target.batch_sizes) if size > 1)) or BATCHES
    row = find_runtime(RUNTIME)
    backend = _backend(row.triton)
    config = _config(bundle, model, backend, "KIND_CPU", sizes)
    target = repository / bundle.manifest.name
    with staging_directory(target) as staging, storage_errors(target):
        version = _begin(staging, bundle, config)
        (version / backend.file).write_bytes(model.SerializeToString(deterministic=True))
        copy_file(directory / WEIGHTS_FILE, version / WEIGHTS_FILE)
    return ServedModel(target, chosen, sizes[-1], calibrated)


def _export_compiled(bundle: Bundle, repository: Path, lowering: str | None) -> ServedModel:
    row = find_runtime(bundle.manifest.engine.runtime)
    backend = _backend(row.triton)
    chosen, batches = choose_engine(bundle, lowering)
    plan = row.load_compiler().read(bundle.directory, chosen, batches)
    sizes = () if batches.static else (batches.largest,)
    config = _config(bundle, load_stored(bundle.directory), backend, "KIND_GPU", sizes, static=batches.largest)
    target = repository / bundle.manifest.name
    with staging_directory(target) as staging, storage_errors(target):
        version = _begin(staging, bundle, config)
        (version / backend.file).write_bytes(plan)
    return ServedModel(target, chosen, batches.largest, None)


def _backend(backend: TritonBackend | None) -> TritonBackend:
    if backend is None:
        raise IncompatibleError("Triton has no backend for this runtime", hint="export it as an ONNX file")
    return backend


def _begin(staging: Path, bundle: Bundle, config: str) -> Path:
    """Write what is said about the model; the folder of its version."""
    names = bundle.manifest.model.class_names
    (staging / CONFIG_FILE).write_text(config, encoding="utf-8")
    if names:
        (staging / LABELS_FILE).write_text("".join(f"{' '.join(name.split())}\n" for name in names), encoding="utf-8")
    version = staging / VERSION
    version.mkdir()
    return version


def _config(
    bundle: Bundle,
    model: onnx.ModelProto,
    backend: TritonBackend,
    kind: str,
    sizes: tuple[int, ...],
    static: int = 0,
) -> str:
    """config.pbtxt.

    Args:
        sizes: Batches that requests are gathered into, the largest last; without any the model has `static` images in
            its own shape.
    """
    manifest = bundle.manifest
    inputs, outputs = (_tensor(value[0], 0 if sizes else static) for value in (model.graph.input, model.graph.output))
    labels = f' label_filename: "{LABELS_FILE}"' if manifest.model.class_names else ""
    parameters = dict(backend.parameters)
    if backend.threads is not None:
        parameters[backend.threads] = str(manifest.engine.threads or 0)  # 0 is all cores
    warm = "\n".join(_warm_up(size, *inputs) for size in dict.fromkeys((1, *sizes)))
    lines = [
        f"# {manifest.name}, written by qvec-deploy from the bundle of {manifest.created}.",
        f'name: "{manifest.name}"',
        backend.setting,
        f"max_batch_size: {sizes[-1] if sizes else 0}",
        'input [ {{ name: "{}" data_type: {} dims: {} }} ]'.format(*inputs),
        'output [ {{ name: "{}" data_type: {} dims: {}{} }} ]'.format(*outputs, labels),
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    if sizes:
        delay = f"max_queue_delay_microseconds: {QUEUE_DELAY_US}"
        lines.append(f"dynamic_batching {{ preferred_batch_size: {list(sizes)} {delay} }}")
    lines += [
        f'parameters {{ key: "{name}" value: {{ string_value: "{value}" }} }}'
        for name, value in sorted(parameters.items())
    ]
    return "\n".join([*lines, warm]) + "\n"


def _tensor(value: onnx.ValueInfoProto, batch: int) -> tuple[str, str, list[int]]:
    """Name, type and shape of an input or output; the batch is a part of the shape where it is given."""
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.UINT8: "TYPE_UINT8"}
    tensor = value.type.tensor_type
    sides = [side.dim_value for side in tensor.shape.dim[1:]]
    return value.name, kinds[tensor.elem_type], [batch, *sides] if batch else sides


def _warm_up(size: int, name: str, kind: str, dims: list[int]) -> str:
    values = f"data_type: {kind} dims: {dims} random_data: true"
    return (
        f'model_warmup [ {{ name: "batch_{size}" batch_size: {size} '
        f'inputs {{ key: "{name}" value: {{ {values} }} }} }} ]'
    )
