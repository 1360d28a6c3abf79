"""Files as plain documents, and documents as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.io.state_dict import Weights
from qvec_deploy.io.stored_tensors import TensorInfo


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
    configs = checkpoint.configs() if '"qvec-vector"' not in text else ()
    for config in (config for config in configs[::-1] if config.class_names):
        document |= {"class_names": list(config.class_names), "class_names_from": config.source}
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
