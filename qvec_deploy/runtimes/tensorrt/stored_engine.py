"""The engines of a bundle as files: written whole or as deltas to the graph, read back byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.errors import IntegrityError, errors_about
from qvec_deploy.io.files import sha256_bytes, storage_errors, write_bytes
from qvec_deploy.runtimes.tensorrt.sidecar import REBUILD, Sidecar, delta_path, stored_path

if TYPE_CHECKING:
    import onnx

WHOLE = "its graph's constants were not found in it, or too few of them"


def store_engine(engine: Path, plan: bytes, model: onnx.ModelProto | None) -> str | None:
    """Write an engine.

    Args:
        model: The graph that it was built from, where it is to be a delta to that.

    Returns:
        Why it is stored whole all the same; None where it is a delta, or was not to be one.
    """
    from qvec_deploy.runtimes.tensorrt.engine_delta import encode

    delta = encode(model, plan) if model is not None else None
    if delta is not None:
        write_bytes(delta_path(engine), delta)
        return None
    write_bytes(engine, plan)
    return WHOLE if model is not None else None


def read_engine(engine: Path, sidecar: Sidecar, graph: Callable[[], onnx.ModelProto]) -> bytes:
    """An engine's bytes, which are those that were built.

    Args:
        graph: Makes the graph that it was built from; called where a delta is stored.

    Raises:
        IncompatibleError: The graph is not the one that it was built from.
        IntegrityError: What is stored is damaged or was altered.
    """
    path = stored_path(engine)
    with storage_errors(path):
        data = path.read_bytes()
    if path != engine:
        from qvec_deploy.runtimes.tensorrt.engine_delta import decode

        with errors_about(str(path)):
            data = decode(graph(), data)
    if sha256_bytes(data) != sidecar.sha256:
        raise IntegrityError(f"{path} was changed after it was built", hint=REBUILD)
    return data
