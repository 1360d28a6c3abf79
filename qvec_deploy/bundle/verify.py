"""The formats of a bundle's weight file and graph, checked in full."""

from __future__ import annotations

from pathlib import Path

from qvec_deploy.errors import IntegrityError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE


def check_weights(directory: Path) -> str:
    """Every value of the packed file."""
    weights = PackedFile.open(directory / WEIGHTS_FILE)
    weights.check()
    packed = sum(info.scheme is not None for info in weights.tensors.values())
    return f"{packed} packed and {len(weights.tensors) - packed} float tensors"


def check_graph(directory: Path) -> str:
    """The ONNX model, with onnx's full check and shape inference."""
    import onnx
    from google.protobuf.message import DecodeError

    path = directory / MODEL_FILE
    try:
        onnx.checker.check_model(str(path), full_check=True)
        nodes = len(onnx.load(path, load_external_data=False).graph.node)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError, ValueError) as error:
        raise IntegrityError(f"{path}: {str(error).splitlines()[0]}", hint="build the bundle again") from error
    return f"{nodes} nodes, onnx.checker full check"
