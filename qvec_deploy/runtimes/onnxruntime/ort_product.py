"""A bare matrix product in ONNX Runtime on the CPU: what an arithmetic rate is measured with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qvec_deploy.tensors import Float32

_OPERATORS = {"fp32": ("MatMul", np.float32, np.float32), "int8": ("MatMulInteger", np.uint8, np.int8)}


class Product:
    """A loaded product of two square matrices; runs like an engine."""

    def __init__(self, session: Any, left: Any) -> None:
        self._session, self._left = session, left
        self.flops = 2 * len(left) ** 3

    def run(self, images: Float32) -> Float32:
        """Multiply once; `images` are not looked at."""
        self._session.run(None, {"x": self._left})
        return images


def open_product(arithmetic: str, threads: int) -> Product:
    """The product in `fp32`, or in `int8` with 8-bit activations and 32-bit sums."""
    import onnxruntime
    from onnx import helper, numpy_helper

    # Every thread's share is that of 512 rows and columns, a millisecond or two: less than a scheduler's time slice.
    size = 64 * math.ceil(8 * threads ** (1 / 3))
    operator, left, right = _OPERATORS[arithmetic]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(left))
    result = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32 if arithmetic == "fp32" else np.int32))
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, (size, size))],
        [helper.make_tensor_value_info("y", result, (size, size))],
        [numpy_helper.from_array(np.ones((size, size), right), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Product(session, np.ones((size, size), left))
