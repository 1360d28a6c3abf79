"""What an engine will compute, from the builder's verbose log, of undocumented format: what is odd is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.session import LinearProduct

_MARK = ", LayerType: "
_LAYER = re.compile(
    r"(?:\[VERBOSE\] )?Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[.*\], TacticName: .*?, StreamId: \d+, "
    r"Metadata: ?(?P<sources>.*)"
)
_TENSOR = re.compile(r"\{ Name: [^{}]*?, Datatype: ([^,{}]+), [^{}]*\}")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_PRODUCTS = frozenset({"gemm", "runtime_fusion", "custom_layer"})
"""Kinds of layers that multiply matrices, the last being our plugin; the others move, convert and add."""


@dataclass(frozen=True)
class ComputedLayer:
    """A layer of an engine.

    Attributes:
        kind: The builder's word for it.
        inputs: Types of what flows in.
        constants: Types of the weights and scales that it reads.
        nodes: Names of the graph's nodes that it computes.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class WantedProduct:
    """A quantized Linear: its node that multiplies, and the types that it is to be multiplied in."""

    linear: str
    node: str
    inputs: str
    weights: str


def read_layers(log: str) -> list[ComputedLayer]:
    """Every layer of the engine that the log is about.

    Raises:
        IncompatibleError: The log has none, or one that is not understood.
    """
    layers = []
    for line in log.splitlines():
        if _MARK not in line:
            continue
        found = _LAYER.fullmatch(line.strip())
        if found is None:
            raise _unknown(f"`{line.strip()[:120]}`")
        types = []
        for part in (found["inputs"], found["constants"] or ""):
            tensors = _TENSOR.findall(part)
            if len(tensors) != part.count("{ Name: "):
                raise _unknown(f"the tensors of `{found['name']}`")
            types.append(tuple(tensors))
        nodes = tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", found["sources"]))
        layers.append(ComputedLayer(found["name"], found["kind"], types[0], types[1], nodes))
    if not layers:
        raise _unknown("no layer")
    return layers


def read_weights_bytes(log: str) -> int:
    """Bytes of weights that the engine stores.

    Raises:
        IncompatibleError: The log does not say.
    """
    found = _WEIGHTS.findall(log)
    if not found:
        raise _unknown("no bytes of weights")
    return int(found[-1])


def check_products(layers: Sequence[ComputedLayer], wanted: Sequence[WantedProduct]) -> tuple[LinearProduct, ...]:
    """Find every quantized Linear's product.

    Raises:
        IncompatibleError: One is nowhere, or is multiplied in other types than it should be.
    """
    found = tuple(_product(layers, each) for each in wanted)
    types = {each.linear: f"{each.inputs} x {each.weights}" for each in wanted}
    expanded = [product for product in found if not product.fused]
    if expanded:
        first = expanded[0]
        computed = f"{' + '.join(first.inputs)} x {' + '.join(first.constants) or 'no constant'}"
        raise IncompatibleError(
            f"{len(expanded)} of {len(found)} Linears are not multiplied as they are stored: `{first.linear}` should "
            f"be {types[first.linear]}, and layer {first.layer} computes {computed}",
            hint="their weights would be expanded at every run: set target.engine.dynamic to true, or use another "
            "lowering or group size",
        )
    return found


def _product(layers: Sequence[ComputedLayer], wanted: WantedProduct) -> LinearProduct:
    matching = [layer for layer in layers if layer.kind in _PRODUCTS and wanted.node in layer.nodes]
    if not matching:
        raise _unknown(f"no product of `{wanted.linear}`")
    for layer in matching:
        if wanted.inputs in layer.inputs and wanted.weights in layer.constants:
            return LinearProduct(wanted.linear, layer.name, layer.inputs, layer.constants, True)
    layer = matching[0]
    return LinearProduct(wanted.linear, layer.name, layer.inputs, layer.constants, False)


def _unknown(what: str) -> IncompatibleError:
    return IncompatibleError(
        f"the builder's log is not understood, so nobody knows what the engine computes: {what}",
        hint="report it with your TensorRT version; the extra `rtx` of qvec-deploy names the versions that are known",
    )
