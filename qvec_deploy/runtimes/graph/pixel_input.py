"""Normalisation as the first nodes of a graph: the model takes pixels."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.datasets import DataConfig
from qvec_deploy.runtimes.graph import INPUT

_NORMALISED = f"{INPUT}_normalised"


def take_pixels(model: onnx.ModelProto, config: DataConfig) -> None:
    """Have a model take uint8 images (batch, H, W, C); the arithmetic is that of timm's evaluation transform."""
    graph = model.graph
    channels, height, width = config.input_size
    (batch, *_) = graph.input[0].type.tensor_type.shape.dim
    for node in graph.node:
        node.input[:] = [_NORMALISED if name == INPUT else name for name in node.input]
    steps = (("Div", "pixel_range", 255.0), ("Sub", "pixel_mean", config.mean), ("Div", "pixel_std", config.std))
    nodes = [helper.make_node("Cast", [INPUT], ["pixels_0"], name="pixels_cast", to=TensorProto.FLOAT)]
    for index, (operator, name, value) in enumerate(steps):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
        source, result = f"pixels_{index}", f"pixels_{index + 1}"
        nodes.append(helper.make_node(operator, [source, name], [result], name=f"{name}_step"))
    nodes.append(helper.make_node("Transpose", ["pixels_3"], [_NORMALISED], name="pixels_transpose", perm=[0, 3, 1, 2]))
    later = list(graph.node)
    graph.ClearField("node")
    graph.node.extend([*nodes, *later])
    shape = [batch.dim_param, height, width, channels]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))
