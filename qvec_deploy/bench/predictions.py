"""predictions.safetensors: every candidate's class for every image, so that two bundles can be paired without a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvec_deploy.bench.accuracy import Accuracy
from qvec_deploy.datasets import DataConfig, OpenedDataset
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import canonical_json, sha256_bytes, write_bytes
from qvec_deploy.io.untrusted import json_object, read_arrays, understood
from qvec_deploy.tensors import Int32

PREDICTIONS_FILE = "predictions.safetensors"
FORMAT, FORMAT_VERSION = "qvec-predictions", "1.0.0"

_LABELS, _PREDICTED = "labels", "predicted:"
_FIELDS = {"format": str, "version": str, "dataset": str, "split": str, "count": int, "images": str}


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes by candidate, in the order of the images.

    Attributes:
        labels: (count,) int32.
        predicted: Predicted classes (count,) int32 by candidate name.
        images: What tells these images from all others, hex SHA-256: predictions may be paired where it is equal.
    """

    labels: Int32
    predicted: Mapping[str, Int32]
    images: str
    dataset: str
    split: str


def describe_images(images: OpenedDataset, config: DataConfig) -> dict[str, Any]:
    """What tells images from others before they are read: plain values, no path."""
    return {
        "dataset": images.name,
        "split": images.split,
        "count": len(images),
        "identity": images.identity,
        "data_config": asdict(config),
    }


def predictions_of(accuracies: Mapping[str, Accuracy], images: OpenedDataset, config: DataConfig) -> Predictions:
    """What the engines of one run said. Files of images are read once more, so that other pixels are other images."""
    labels = next(iter(accuracies.values())).labels
    described = describe_images(images, config)
    described |= {"labels": sha256_bytes(labels.astype("<i4").tobytes()), "contents": images.contents()}
    return Predictions(
        labels=labels,
        predicted={name: accuracy.predictions for name, accuracy in accuracies.items()},
        images=sha256_bytes(canonical_json(described)),
        dataset=images.name,
        split=images.split,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file, whole or not at all; the same predictions give the same bytes."""
    from safetensors.numpy import save

    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "dataset": predictions.dataset,
        "split": predictions.split,
        "count": len(predictions.labels),
        "images": predictions.images,
    }
    arrays = {_LABELS: predictions.labels}
    arrays |= {_PREDICTED + name: predictions.predicted[name] for name in sorted(predictions.predicted)}
    contiguous = {name: np.ascontiguousarray(array, np.int32) for name, array in arrays.items()}
    write_bytes(path, save(contiguous, {"qvec": canonical_json(header).decode()}))


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote."""
    arrays, metadata = read_arrays(path, "predictions")
    with understood(path):
        header = _header(metadata["qvec"], path)
        labels = arrays.pop(_LABELS)
        if not arrays or not all(name.startswith(_PREDICTED) for name in arrays):
            raise ValueError(f"its tensors are {sorted(arrays)}")
        for array in (labels, *arrays.values()):
            if array.dtype != np.int32 or array.shape != (header["count"],) or array.min() < 0:
                raise ValueError(f"a tensor is not {header['count']} classes")
    predicted = {name.removeprefix(_PREDICTED): array for name, array in arrays.items()}
    return Predictions(labels, predicted, header["images"], header["dataset"], header["split"])


def _header(text: str, path: Path) -> dict[str, Any]:
    values = json_object(text)
    if values["format"] != FORMAT:
        raise IntegrityError(f"{path} is a {values['format']} file", hint="predictions are needed here")
    if str(values["version"]).split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise IncompatibleError(
            f"{path} has predictions format {values['version']}", hint=f"this version reads {FORMAT_VERSION}; upgrade"
        )
    if {name: type(value) for name, value in values.items()} != _FIELDS or values["count"] < 1:
        raise ValueError(f"its header is {values}")
    return values
