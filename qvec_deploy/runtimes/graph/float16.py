"""A float32 graph to float16: constants, casts and the places where images enter and logits leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.errors import IncompatibleError

_NARROW, _WIDE = TensorProto.FLOAT16, TensorProto.FLOAT


def half(name: str, values: NDArray[Any]) -> NDArray[np.float16]:
    """Values as float16.

    Args:
        values: Finite floats.

    Raises:
        IncompatibleError: A value beyond float16's 65504.
    """
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(narrow).all():
        raise IncompatibleError(
            f"{name} holds values up to {np.abs(values).max():g}, beyond float16",
            hint="this model needs float32 arithmetic: use the runtime `onnxruntime`",
        )
    return narrow


def halve_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node of a float32 graph for a float16 one: what it makes of itself becomes float16, the rest is as it was.

    Raises:
        IncompatibleError: A constant beyond float16.
    """
    new = onnx.NodeProto()
    new.CopyFrom(node)
    if node.op_type == "Cast":
        for attribute in new.attribute:
            if attribute.name == "to" and attribute.i == _WIDE:
                attribute.i = _NARROW
    elif node.op_type in ("Constant", "ConstantOfShape"):
        new.ClearField("attribute")
        new.attribute.extend(_halve_constant(node))
    return new


def _halve_constant(node: onnx.NodeProto) -> Iterator[onnx.AttributeProto]:
    if node.op_type == "ConstantOfShape" and not node.attribute:  # its default is a float32 zero
        yield helper.make_attribute("value", numpy_helper.from_array(np.zeros(1, np.float16)))
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name in ("value_float", "value_floats"):
            array = np.asarray(value, np.float32)
        elif attribute.name == "value" and value.data_type == _WIDE:
            array = numpy_helper.to_array(value)
        else:
            yield attribute
            continue
        yield helper.make_attribute("value", numpy_helper.from_array(half(node.output[0], array)))


def cast_at_the_ends(graph: onnx.GraphProto) -> None:
    """Images come and logits leave as float32; between them everything is float16. Changes `graph`."""
    for value in graph.input:
        inside = f"{value.name}_half"
        for node in graph.node:
            node.input[:] = [inside if name == value.name else name for name in node.input]
        graph.node.insert(0, helper.make_node("Cast", [value.name], [inside], name=inside, to=_NARROW))
    for value in graph.output:
        inside = f"{value.name}_half"
        for node in graph.node:
            node.input[:] = [inside if name == value.name else name for name in node.input]
            node.output[:] = [inside if name == value.name else name for name in node.output]
        graph.node.append(helper.make_node("Cast", [inside], [value.name], name=f"{value.name}_cast", to=_WIDE))
