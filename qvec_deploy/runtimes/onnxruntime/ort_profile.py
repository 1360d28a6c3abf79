"""ONNX Runtime's profile of an engine, summed by the layers of the model it came from."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import IncompatibleError, StorageError
from qvec_deploy.io.files import storage_errors
from qvec_deploy.tensors import INPUT_SCALE

if TYPE_CHECKING:
    import onnx

REST = "rest"
_SUFFIX = "_kernel_time"
_PRODUCTS = ("MatMul", "Gemm", "Conv", "QvecLinear")
_OF_A_LAYER = (".weight", ".bias", INPUT_SCALE)
_INLINED = re.compile(r"([A-Za-z]+)_(\d+)")
_INLINED_PRODUCTS = ("MatMul", "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_BESIDE_PRODUCTS = ("QuantizeLinear", "Mul", "Add")


def layer_times(directory: Path, trace: Path, runs: int) -> dict[str, float]:
    """Milliseconds of one run by layer.

    A Linear and a convolution bear their module's name, as in the layers' quantization errors; their bias counts,
    unless the runtime merged it into what follows. The products and the softmax of an attention bear the name of the
    module that its Linears share. Everything else is `rest`.

    Profiling costs a few microseconds for every node, which a small model has in its hundreds: the quickest node,
    which does next to nothing, is taken for that cost, and taken off all of them.

    Raises:
        IncompatibleError: The profile is not of this model.
    """
    import onnx

    from qvec_deploy.runtimes.engine_files import MODEL_FILE
    from qvec_deploy.runtimes.graph.operator import OPERATOR

    graph = onnx.load(directory / MODEL_FILE, load_external_data=False).graph
    layers = _layers_of_nodes(graph)
    inlined = [layers[node.name] for node in graph.node if node.op_type == OPERATOR]
    taken = _median_us(trace, runs)
    names = _names_of_inlined([name for name, _ in taken], set(layers), inlined)
    cost = min((value for _, value in taken), default=0.0)
    times = dict.fromkeys([*dict.fromkeys(layers.values()), REST], 0.0)
    for name, value in taken:
        times[_find(name, layers) or names.get(name, REST)] += (value - cost) / 1e3
    times[REST] = times.pop(REST)
    return times


def _median_us(trace: Path, runs: int) -> list[tuple[str, float]]:
    """Name and median duration of every node, in the order of the first run."""
    durations: dict[str, list[float]] = defaultdict(list)
    for event in _events(trace):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            durations[event["name"].removesuffix(_SUFFIX)].append(event["dur"])
    found = []
    for name, values in durations.items():
        share = len(values) // runs  # nodes that share a name
        sums = [sum(values[start : start + share]) for start in range(0, len(values), share)] if share else values
        found.append((name, float(median(sums))))
    return found


def _events(trace: Path) -> list[dict[str, Any]]:
    """What ONNX Runtime's profiler has written; it does not say when it could not."""
    try:
        with storage_errors(trace):
            events: list[dict[str, Any]] = json.loads(trace.read_bytes())
    except ValueError as error:
        raise StorageError(
            f"{trace.parent}: ONNX Runtime's profile could not be written whole",
            hint="free some space there, or set TMPDIR to a folder that has some",
        ) from error
    return events


def _layers_of_nodes(graph: onnx.GraphProto) -> dict[str, str]:
    """Layer by the name of a node or of what it makes, in the order of the graph: runtimes keep the one or other."""
    unpacking = ("Transpose", "Reshape", "QvecDequantize")
    made = {node.output[0]: node.input[0] for node in graph.node if node.op_type in unpacking}
    weights = {tensor.name for tensor in graph.initializer}
    owners: dict[str, None] = {}
    for node in graph.node:
        if node.op_type in _PRODUCTS:
            operands = [_source(name, made, weights) for name in node.input[:2]]
            owners |= {name.removesuffix(".weight"): None for name in operands if name in weights}
    direct = []
    for node in graph.node:
        operands = [_source(name, made, weights) for name in node.input]
        stems = [name.removesuffix(end) for name in operands if name in weights for end in _OF_A_LAYER]
        direct.append(next((stem for stem in stems if stem in owners), None))
    layers: dict[str, str] = {}
    for index, (node, own) in enumerate(zip(graph.node, direct, strict=True)):
        if own is None and node.op_type in ("MatMul", "Softmax"):
            own = _between(direct, index)
        if own is not None and node.op_type != "Transpose":
            layers |= dict.fromkeys((node.name, node.output[0]), own)
    return layers


def _source(name: str, made: Mapping[str, str], weights: Collection[str]) -> str:
    """The weight that a value is unpacked from; the value itself where it is none."""
    source: str | None = name
    while source is not None and source not in weights:
        source = made.get(source)
    return source or name


def _between(layers: Sequence[str | None], index: int) -> str:
    """What the Linears before and after a node share, which is their attention."""
    before = next((layer for layer in reversed(layers[:index]) if layer), "")
    after = next((layer for layer in layers[index:] if layer), "")
    shared = []
    for one, other in zip(before.split("."), after.split("."), strict=False):
        if one != other:
            break
        shared.append(one)
    return ".".join(shared) or REST


def _names_of_inlined(names: Sequence[str], known: set[str], linears: Sequence[str]) -> dict[str, str]:
    """Layers of the nodes that ONNX Runtime put in the place of our operator.

    They are called by their operator and a number, and only their order says which Linear they are of. Those of one
    Linear have numbers in a row.

    Raises:
        IncompatibleError: There are not as many products as the model has of the operator.
    """
    matches = [found for name in names if name not in known and (found := _INLINED.fullmatch(name))]
    kinds = {int(found[2]): found[1] for found in matches if found[1] in (*_INLINED_PRODUCTS, *_BESIDE_PRODUCTS)}
    products = sorted(number for number, kind in kinds.items() if kind in _INLINED_PRODUCTS)
    if not products:
        return {}
    if len(products) != len(linears):
        raise IncompatibleError(
            f"ONNX Runtime's profile shows {len(products)} packed Linears, the model has {len(linears)}",
            hint="this release names its nodes differently; please report it",
        )
    layers: dict[str, str] = {}
    for product, layer in zip(products, linears, strict=True):
        for step in (-1, 1):
            number = product
            while kinds.get(number) in _BESIDE_PRODUCTS or number == product:
                layers[f"{kinds[number]}_{number}"] = layer
                number += step
    return layers


def _find(name: str, layers: dict[str, str]) -> str | None:
    """The layer of a node of the stored graph, whatever the runtime's fusions appended to its name."""
    return next(
        (layers[key] for key in (name, name.partition("/")[0], name.removesuffix("_nchwc")) if key in layers), None
    )
