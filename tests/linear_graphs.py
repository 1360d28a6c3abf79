"""Graphs of one Linear as a lowering for TensorRT writes it, for real builders and parsers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.runtime import Lowering
from qvec_deploy.runtimes.tensorrt.builder_log import WantedProduct
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import product_name
from qvec_deploy.tensors import QuantizedTensor, Scheme


def image_shape(columns: int) -> tuple[int, int, int]:
    """The images of a graph: 3 x 4 rows, which it reads as one vector of so many columns."""
    return 3, 4, columns // 12


def linear_graph(lowering: Lowering, columns: int = 96, rows: int = 64, batch: int | str = "batch") -> TensorrtGraph:
    """One Linear of so many columns on images, at 3 bits."""
    generator = np.random.default_rng(0)
    codes = generator.integers(-4, 4, (rows, columns)).astype(np.int8)
    scale = generator.uniform(0.01, 0.1, (rows, 1)).astype(np.float32)
    node = helper.make_node("QvecLinear", ["x", "fc.weight", "s", "bias"], ["y"], name="fc")
    made = lowering.load()(node, QuantizedTensor(codes, scale, Scheme(3, "channel")), 2.0)
    given = [*made.tensors, *made.shared, numpy_helper.from_array(np.zeros(rows, np.float16), "bias")]
    given.append(numpy_helper.from_array(np.array([0, 1, columns]), "shape"))
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["half", "shape"], ["x"]),
        *made.nodes,
        helper.make_node("Cast", ["y"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *image_shape(columns)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 1, rows])],
        given,
    )
    domains = {each.domain: 1 for each in nodes} | {"": made.opset}
    opsets = [helper.make_opsetid(domain, opset) for domain, opset in sorted(domains.items())]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    products = () if made.product is None else (WantedProduct("fc", product_name(node), *made.product),)
    plugins = sum(each.domain == DOMAIN for each in nodes)
    return TensorrtGraph(model, plugins, 0, sum(len(tensor.raw_data) for tensor in given), None, products)
