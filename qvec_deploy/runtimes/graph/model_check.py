"""A stored model held to what this program writes, in full and before any runtime sees it.

Everything but the graph of the network follows from the packed file and the lowering, and is compared with what they
give: references to weights, the operator's definition, its attributes, domains. The graph itself must be a plain list
of the exporter's operators, without loops, branches or functions of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto, helper

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.untrusted import MAX_DIMENSIONS
from qvec_deploy.packed import PackedFile
from qvec_deploy.packed.file_layout import scale_name
from qvec_deploy.runtimes.engine_files import LOWERING_KEY, METADATA_PREFIX, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import DOMAIN, INPUT, OPSET, OUTPUT
from qvec_deploy.runtimes.graph.model_file import parse_model
from qvec_deploy.runtimes.graph.operator import (
    DEQUANTIZE,
    INPUT_SCALE_ATTRIBUTE,
    INPUT_ZERO_POINT_ATTRIBUTE,
    OPERATOR,
    STANDARD,
    OperatorForm,
    define_operator,
)
from qvec_deploy.runtimes.graph.stored import weight_references
from qvec_deploy.runtimes.registry import RUNTIMES

_OF_FAMILIES = """
Add AveragePool BatchNormalization Cast Clip Col2Im Concat Constant Conv ConvTranspose Cos CumSum Div Einsum
Equal Exp Expand Gather GatherND Gelu Gemm HardSwish Identity InstanceNormalization LSTM LayerNormalization
MatMul Max MaxPool Min Mul Neg Pad Pow Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape
Resize ScatterND Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tile Transpose Unsqueeze
"""  # in the graphs of all families of scripts/families.record.json, and in what `attach_weights` and `take_pixels` add
_OF_OPTIONS = """
Celu Elu HardSigmoid LeakyRelu Mish PRelu Selu Tanh
"""  # of timm's other activations and pools
_OF_OTHER_VERSIONS = """
Abs And ConstantOfShape Erf Flatten Floor GlobalAveragePool IsNaN Log Not ReduceMin Softplus Sum Where
"""  # what PyTorch's exporter makes of the same modules in other versions
GRAPH_OPERATORS = frozenset((_OF_FAMILIES + _OF_OPTIONS + _OF_OTHER_VERSIONS).split())
"""ONNX's own operators that the graph of a network may have; without loops and branches, and nothing random."""

IR_VERSIONS = range(8, 14)
MAX_NAME = 512
MAX_SIDE = 1 << 20
MAX_IMAGE = 1 << 26
"""Numbers of one image."""
MAX_VALUES = 1 << 30
"""Numbers of any value in the graph, for two images."""
_CONSTANT_TYPES = frozenset(
    [
        *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BOOL),
        *(TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8),
    ]
)
_ATTRIBUTE_TYPES = frozenset(
    [AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.FLOATS, AttributeProto.INTS]
)
# Fields of onnx.proto that are written; whatever else a message has is refused.
_MODEL = {
    *("ir_version", "producer_name", "producer_version", "opset_import", "graph", "functions", "metadata_props"),
}
_GRAPH = {"name", "node", "initializer", "input", "output", "value_info"}
_NODE = {"name", "op_type", "domain", "input", "output", "attribute"}
_ATTRIBUTE = {"name", "type", "f", "i", "s", "floats", "ints"}
_REFERENCE = {"name", "data_type", "dims", "data_location", "external_data"}
_CONSTANT = {"name", "data_type", "dims", "raw_data"}


def check_model(data: bytes, weights: PackedFile, *, older: bool = False) -> onnx.ModelProto:
    """Hold the bytes of a stored model against the packed file and the form of the lowering that it says it is.

    Args:
        older: The operator may be defined as an earlier version of this program did, by operators that it knows.

    Returns:
        The model.

    Raises:
        ValueError: It is anything else than `attach_weights` and a lowering write; onnx raises its own errors.
    """
    model = parse_model(data)
    _require_fields(model, _MODEL, "the model")
    _require_fields(model.graph, _GRAPH, "its graph")
    _require_ends(model)
    _require_nodes(model.graph)
    written = _written(model, weights)
    _require_references(model.graph, written.graph, weights, older=older)
    if older:
        _require_known(model, written)
    elif model != written:
        raise ValueError(_difference(model, written))
    known = onnx.ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    if known.SerializeToString(deterministic=True) != data:
        raise ValueError("it holds bytes that mean nothing")
    _require_types(model)
    return model


def _require_fields(message: Message, allowed: set[str], what: str) -> None:
    for field, _ in message.ListFields():
        if field.name not in allowed:
            raise ValueError(f"{what} has `{field.name}`, which is never written")


def _require_ends(model: onnx.ModelProto) -> None:
    """Versions, the image that goes in, the logits that come out, and what the file says about itself."""
    graph = model.graph
    if model.ir_version not in IR_VERSIONS:
        raise ValueError(f"it has the IR version {model.ir_version}")
    domains = [(entry.domain, entry.version) for entry in model.opset_import]
    if domains.count(("", OPSET)) != 1:
        raise ValueError(f"it is not of opset {OPSET}")
    if [value.name for value in (*graph.input, *graph.output)] != [INPUT, OUTPUT]:
        raise ValueError("it is not a model of images and logits")
    ends = (graph.input[0], (TensorProto.FLOAT, TensorProto.UINT8), 4), (graph.output[0], (TensorProto.FLOAT,), 2)
    for value, types, rank in ends:
        kind = value.type.tensor_type
        (batch, *sides) = kind.shape.dim or [onnx.TensorShapeProto.Dimension()]
        sizes = [side.dim_value for side in sides]
        if kind.elem_type not in types or len(sizes) != rank - 1 or not batch.dim_param:
            raise ValueError(f"its {value.name} have another type or shape")
        if not all(0 < size < MAX_SIDE for size in sizes) or math.prod(sizes) > MAX_IMAGE:
            raise ValueError(f"its {value.name} have the shape {sizes}")
    keys = [entry.key for entry in model.metadata_props]
    if len(set(keys)) != len(keys) or not all(key.startswith(METADATA_PREFIX) for key in keys):
        raise ValueError("its metadata are not ours")


def _require_nodes(graph: onnx.GraphProto) -> None:
    """Known operators without inner graphs, each value made once and before it is used."""
    made = {tensor.name for tensor in graph.initializer}
    if len(made) != len(graph.initializer):
        raise ValueError("two initializers have one name")
    made |= {INPUT}
    for node in graph.node:
        what = f"node {node.name[:80]!r}"
        _require_fields(node, _NODE, what)
        known = (OPERATOR, DEQUANTIZE) if node.domain == DOMAIN else GRAPH_OPERATORS
        if node.domain not in ("", DOMAIN) or node.op_type not in known:
            raise ValueError(f"{what} is a {node.domain[:80]}:{node.op_type[:80]}, which is never exported")
        for attribute in node.attribute:
            _require_fields(attribute, _ATTRIBUTE, f"an attribute of {what}")
            if attribute.type not in _ATTRIBUTE_TYPES:
                raise ValueError(f"an attribute of {what} holds a graph, a tensor or a type")
        if any(len(name) > MAX_NAME for name in (node.name, *node.input, *node.output)):
            raise ValueError(f"a name at {what} has more than {MAX_NAME} characters")
        missing = [name for name in node.input if name and name not in made]
        if missing:
            raise ValueError(f"{what} reads {missing[0][:80]!r}, which nothing before it makes")
        again = [name for name in node.output if name in made]
        if again or not any(node.output):
            raise ValueError(f"{what} makes {f'{again[0][:80]!r} for the second time' if again else 'nothing'}")
        made |= {name for name in node.output if name}
    used = {name for node in graph.node for name in node.input} | {OUTPUT}
    idle = [node.name for node in graph.node if used.isdisjoint(node.output)]
    idle += [tensor.name for tensor in graph.initializer if tensor.name not in used]
    if idle or OUTPUT not in made:
        raise ValueError(f"nothing reads {idle[0][:80]!r}" if idle else f"nothing makes its {OUTPUT}")


def lowering_of(model: onnx.ModelProto) -> str | None:
    """The lowering that a model file says it is; None where it says nothing, and is the portable form."""
    return next((entry.value for entry in model.metadata_props if entry.key == LOWERING_KEY), None)


def check_forms(model: onnx.ModelProto, weights: PackedFile, lowerings: Iterable[str]) -> None:
    """Make lowerings of a checked model, as they are made on demand, and have onnx check each.

    Raises:
        ValueError: One cannot be made; onnx raises its own errors.
    """
    for name in lowerings:
        try:
            _require_types(define_operator(model, weights, _form(name)))
        except IncompatibleError as error:
            raise ValueError(error.message) from error


def _form(name: str | None) -> OperatorForm:
    """The meaning of the operator in the lowering that a model file says it is, from the table."""
    if name is None:
        return STANDARD
    rows = {row.name: row for runtime in RUNTIMES.values() if runtime.stands_alone for row in runtime.lowerings}
    if name not in rows:
        raise ValueError(f"it says that it is of lowering {name[:80]!r}, which nothing has")
    form: OperatorForm = rows[name].load() if rows[name].implementation is not None else STANDARD
    return form


def _written(model: onnx.ModelProto, weights: PackedFile) -> onnx.ModelProto:
    """The model with the operator defined as this program does."""
    for node in model.graph.node:
        if node.domain == DOMAIN:
            _require_operands(node, weights)
    try:
        return define_operator(model, weights, _form(lowering_of(model)))
    except IncompatibleError as error:
        raise ValueError(error.message) from error


def _require_operands(node: onnx.NodeProto, weights: PackedFile) -> None:
    """A quantized weight of the packed file and its own scale, and a calibrated grid that is one."""
    linear = node.op_type == OPERATOR
    name, scale = (
        (node.input[1:3] if linear else node.input[:2]) if len(node.input) == (4 if linear else 2) else ("", "")
    )
    info = weights.tensors.get(name)
    if info is None or info.scheme is None or scale != scale_name(name) or (len(info.shape) == 2) != linear:
        raise ValueError(f"node {node.name[:80]!r} does not read a quantized weight and its scale")
    for attribute in node.attribute:
        if attribute.name == INPUT_SCALE_ATTRIBUTE and not 0 < attribute.f < math.inf:
            raise ValueError(f"the input of {name} has the step {attribute.f}")
        if attribute.name == INPUT_ZERO_POINT_ATTRIBUTE and not 0 <= attribute.i < 256:
            raise ValueError(f"the input of {name} has the zero point {attribute.i}")


def _require_references(graph: onnx.GraphProto, written: onnx.GraphProto, weights: PackedFile, *, older: bool) -> None:
    """Every weight's place, type and shape, as the packed file has it; and constants that are what they say."""
    expected = weight_references(weights, WEIGHTS_FILE)
    quantized = {name for name, info in weights.tensors.items() if info.scheme is not None}
    quantized |= {scale_name(name) for name in quantized}
    found = {tensor.name: tensor for tensor in written.initializer}
    lost = [name for name in expected if name not in found]
    if lost:
        raise ValueError(f"it lacks {lost[0]}, which is in {WEIGHTS_FILE}")
    for tensor, own in zip(graph.initializer, written.initializer, strict=True):
        if own.name not in expected:
            _require_constant(own)
        elif own != expected[own.name]:
            raise ValueError(f"{own.name} is not where, or not what, {WEIGHTS_FILE} has under that name")
        elif older and own.name in quantized:
            _require_older_payload(tensor, own)
    for node in graph.node:
        if node.domain != DOMAIN and not quantized.isdisjoint(node.input):
            raise ValueError(f"node {node.name[:80]!r} reads codes or scales, which are for our operator")


def _require_older_payload(tensor: TensorProto, own: TensorProto) -> None:
    """Codes may be declared as the words that the packed file holds."""
    rows, units, bits = own.dims if len(own.dims) == 3 else (0, 0, 0)
    words = [rows, units * bits // 4]
    if tensor != own and not (tensor.data_type == TensorProto.INT32 and list(tensor.dims) == words):
        raise ValueError(f"{own.name} has another type or shape than in {WEIGHTS_FILE}")
    if list(tensor.external_data) != list(own.external_data):
        raise ValueError(f"{own.name} is elsewhere in {WEIGHTS_FILE}")


def _require_constant(tensor: TensorProto) -> None:
    what = f"the constant {tensor.name[:80]!r}"
    _require_fields(tensor, _CONSTANT, what)
    if len(tensor.name) > MAX_NAME or tensor.data_type not in _CONSTANT_TYPES or len(tensor.dims) > MAX_DIMENSIONS:
        raise ValueError(f"{what} has a name, a type or a shape that is never written")
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) * size != len(tensor.raw_data):
        raise ValueError(f"{what} has not as many values as its shape says")


def _require_known(model: onnx.ModelProto, written: onnx.ModelProto) -> None:
    """The operator as an earlier version defined it: a plain list of operators that are written now too."""
    known = {(node.domain, node.op_type) for function in written.functions for node in function.node}
    known |= {("", name) for name in GRAPH_OPERATORS}
    if [entry.name for entry in model.functions] != [entry.name for entry in written.functions]:
        raise ValueError("it defines other operators than ours")
    for function in model.functions:
        for node in function.node:
            if (node.domain, node.op_type) not in known:
                raise ValueError(f"{function.name} is defined by {node.op_type[:80]}, which is never written")
            if any(each.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for each in node.attribute):
                raise ValueError(f"{function.name} is defined by loops or branches")


def _difference(model: onnx.ModelProto, written: onnx.ModelProto) -> str:
    """What is not as this program writes it."""
    if list(model.opset_import) != list(written.opset_import):
        return "it imports other domains or versions of operators than it uses"
    if list(model.functions) != list(written.functions):
        return "the operator means something else than its lowering writes"
    pairs: Iterable[tuple[onnx.NodeProto, onnx.NodeProto]] = zip(model.graph.node, written.graph.node, strict=True)
    changed = [node.name[:80] for node, own in pairs if node != own]
    return f"node {changed[0]!r} says another size or width" if changed else "its values are declared otherwise"


def _require_types(model: onnx.ModelProto) -> None:
    """The check and the type inference of onnx; weights are given as inputs, so that it reads no other file."""
    given = onnx.ModelProto()
    given.CopyFrom(model)
    graph = given.graph
    external = [tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    inside = [tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    graph.ClearField("initializer")
    graph.initializer.extend(inside)
    graph.input.extend(helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in external)
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2  # what a node makes of a batch has a size, too
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.checker.check_model(given)
    inferred = onnx.shape_inference.infer_shapes(given, check_type=True, strict_mode=True)
    for value in inferred.graph.value_info:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
        if math.prod(max(size, 1) for size in sizes) > MAX_VALUES:
            raise ValueError(f"{value.name[:80]!r} has the shape {sizes[:MAX_DIMENSIONS]}")
