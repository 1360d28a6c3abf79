"""The formats of a bundle's weight file and graph, checked in full."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.bundle.manifest import LAMBDA0
from qvec_deploy.formatting import megabytes
from qvec_deploy.io.untrusted import read_limited, understood
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.engine_options import Batches
from qvec_deploy.runtimes.runtime import Runtime

if TYPE_CHECKING:
    import onnx


def check_weights(directory: Path) -> str:
    """Every value of the packed file."""
    weights = PackedFile.open(directory / WEIGHTS_FILE)
    weights.check()
    packed = sum(info.scheme is not None for info in weights.tensors.values())
    return f"{packed} packed and {len(weights.tensors) - packed} float tensors"


def check_graph(directory: Path) -> str:
    """The ONNX model in a directory, which was just written."""
    return f"{len(read_graph(directory).graph.node)} nodes"


def read_graph(directory: Path, *, older: bool = False, offered: Sequence[str] = ()) -> onnx.ModelProto:
    """The ONNX model, held against the packed file beside it and the lowering that it is; no runtime sees it before.

    Args:
        older: An earlier version of this program may have written it.
        offered: Lowerings that are made of it on demand, and are checked too.
    """
    from qvec_deploy.runtimes.graph.model_check import check_forms, check_model
    from qvec_deploy.runtimes.graph.model_file import MAX_FILE

    weights, path = PackedFile.open(directory / WEIGHTS_FILE), directory / MODEL_FILE
    with understood(path):
        model = check_model(read_limited(path, MAX_FILE), weights, older=older)
        check_forms(model, weights, offered)
    return model


def check_engines(directory: Path, row: Runtime) -> str | None:
    """The bytes of every engine that was compiled, made again where a delta is stored; None where there is none."""
    compiler, plain = row.load_compiler(), directory / LAMBDA0
    count = own = stored = 0
    for place in (directory, plain) if plain.is_dir() else (directory,):
        for lowering in row.lowerings:
            for engine in compiler.describe(place, lowering.name):
                own += len(compiler.read(place, lowering.name, Batches.parse(engine["batches"])))
                count, stored = count + 1, stored + engine["stored_bytes"]
    if not count:
        return None
    made = f", made from {megabytes(stored)} MB and the weights" if stored != own else ""
    return f"{count} as built, {megabytes(own)} MB{made}"
