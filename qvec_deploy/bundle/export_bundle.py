"""A bundle's model as one ONNX file of its own, in any lowering of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.files import atomic_path, storage_errors
from qvec_deploy.io.output_places import require_outside
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.registry import RUNTIMES, check_lowering, find_lowering

if TYPE_CHECKING:
    import onnx

RUNTIME = next(iter(RUNTIMES))
"""ONNX Runtime on the CPU, whose lowerings are ONNX files."""
CALIBRATION_IMAGES = 64
"""Images, at most, that the ranges of activations are taken from."""
LARGEST_FILE = 2**31 - 1
"""Bytes of a protobuf message."""


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX file that was written.

    Attributes:
        calibrated: What the inputs' ranges are of, where the lowering needs them; None where it does not.
    """

    lowering: str
    expanded: bool
    size: int
    calibrated: str | None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: getattr(self, key) for key in ("lowering", "expanded", "size", "calibrated")}


def export_model(
    directory: Path, output: Path, lowering: str | None = None, *, expanded: bool = False, force: bool = False
) -> ExportedModel:
    """Write a bundle's model as one file, its weights inside.

    Args:
        lowering: One of ONNX Runtime on the CPU; the bundle's own by default, where it is one of those.
        expanded: Keep the weights as they are multiplied, for runtimes that do not unpack them once at load.

    Raises:
        IncompatibleError: The lowering cannot take these weights, or the file would be larger than ONNX allows.
        IntegrityError: The bundle is damaged.
        StorageError: The output exists, lies inside the bundle, or cannot be written.
    """
    from qvec_deploy.runtimes.onnxruntime.ort_model import expand, with_weights

    require_new(directory, output, force=force)
    bundle = Bundle.open(directory)
    chosen, model, calibrated = lowered_bundle(bundle, lowering)
    whole = with_weights(model, directory)
    with scratch_folder("export") as scratch, atomic_path(output) as temporary:
        if expanded:
            whole = expand(whole, scratch)
        write_model(whole, temporary, output)
    with storage_errors(output):
        return ExportedModel(chosen, expanded, output.stat().st_size, calibrated)


def require_new(directory: Path, output: Path, *, force: bool) -> None:
    """Refuse a file that lies in the bundle of `directory`, or exists and is not to be replaced.

    Raises:
        StorageError: It is one.
    """
    require_outside(output, directory)
    if output.exists() and not force:
        raise StorageError(f"{output} exists", hint="choose another name, or pass --force to replace it")


def lowered_bundle(bundle: Bundle, lowering: str | None = None) -> tuple[str, onnx.ModelProto, str | None]:
    """A bundle's model as a lowering of ONNX Runtime on the CPU; its weights stay references.

    Args:
        lowering: The bundle's own by default, where it is one of those.

    Returns:
        The lowering, the model, and what its inputs' ranges are of, None where the lowering needs none.

    Raises:
        IncompatibleError: The lowering cannot take these weights.
    """
    from qvec_deploy.runtimes.onnxruntime.ort_model import is_calibrated, lowered_model

    own, grid = bundle.manifest.engine, bundle.recipe.quantize
    chosen = lowering or (own.lowering if own.runtime == RUNTIME else RUNTIMES[RUNTIME].lowerings[1].name)
    check_lowering(RUNTIME, chosen, grid.bits, grid.granularity, grid.group_size)
    ranges = calibrated = None
    if find_lowering(RUNTIME, chosen).calibrates_activations:
        calibrated = "the images of the build"
        if not is_calibrated(bundle.directory):
            ranges, calibrated = _generated_ranges(bundle), f"{CALIBRATION_IMAGES} generated images"
    return chosen, lowered_model(bundle.directory, chosen, ranges), calibrated


def write_model(model: onnx.ModelProto, temporary: Path, output: Path) -> None:
    """Write a model into one file, which is to be called `output`.

    Raises:
        IncompatibleError: It is larger than one ONNX file can be.
    """
    size = model.ByteSize()
    if size > LARGEST_FILE:
        raise IncompatibleError(
            f"{output} would be {size / 1e9:.1f} GB, more than the 2 GB that one ONNX file can be",
            hint="export it without --expanded, or use model.onnx and its weight file from the bundle",
        )
    temporary.write_bytes(model.SerializeToString(deterministic=True))


def _generated_ranges(bundle: Bundle) -> dict[str, tuple[float, float]]:
    from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
    from qvec_deploy.datasets.generated import NAME
    from qvec_deploy.datasets.splits import BATCH
    from qvec_deploy.runtimes.onnxruntime.ort_model import input_ranges

    config = DataConfig.from_mapping(bundle.manifest.model.data_config)
    images = open_dataset(DatasetSpec(NAME, "train", limit=CALIBRATION_IMAGES), config)
    return dict(input_ranges(bundle.directory, [batch for batch, _ in batches(images, BATCH)], available_threads()))
