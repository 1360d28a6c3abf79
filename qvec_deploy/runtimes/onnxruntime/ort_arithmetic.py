"""Whether this CPU's integer kernels compute what their operators mean.

On CPUs without VNNI, ONNX Runtime adds two products of bytes in 16 bits, which saturate where signed codes of 8 bits
meet large inputs. The lowering's form avoids that. No bound on a model's logits would show it, for the grids of the
activations cost more; a product of the largest codes and inputs does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.packed import VERSION, PackedFile, PackedInfo, Span, pack, scale_name
from qvec_deploy.runtimes.graph import DOMAIN, OPSET
from qvec_deploy.runtimes.graph.operator import OPERATOR, UNIT, OperatorForm, define_operator, padded
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME
from qvec_deploy.runtimes.onnxruntime.ort_loading import open_model
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.tensors import QuantizedTensor, Scheme

ROWS, COLUMNS = 16, 64
_LINEAR = "extreme"


def largest_error(lowering: str) -> float:
    """Of products of the largest codes and inputs, the largest relative error, over all widths of a lowering."""
    row = find_lowering(ONNXRUNTIME.name, lowering)
    return max(product_error(row.load(), bits, calibrated) for bits in row.bits for calibrated in (True, False))


def product_error(form: OperatorForm, bits: int, calibrated: bool) -> float:
    """The same, of one meaning of the operator at one width.

    Args:
        calibrated: Whether the input's grid is given, and not found at every run.
    """
    scheme, name = Scheme(bits, "channel"), f"{_LINEAR}.weight"
    codes = np.full((ROWS, COLUMNS), scheme.qmax, np.int8)
    codes[::2] = scheme.qmin
    payload = pack(QuantizedTensor(codes, np.ones((ROWS, 1), np.float32), scheme)).payload
    info = PackedInfo(name, (ROWS, COLUMNS), scheme, "I32", Span(0, 0), Span(0, 0))
    weights = PackedFile(Path(name), VERSION, {name: info}, {}, np.empty(0, np.uint8))
    constants = {
        name: payload.view(np.uint8).reshape(ROWS, padded(COLUMNS) // UNIT, bits),
        scale_name(name): np.ones((ROWS, 1), np.float32),
        f"{_LINEAR}.bias": np.zeros(ROWS, np.float32),
    }
    node = helper.make_node(OPERATOR, ["x", *constants], ["y"], domain=DOMAIN)
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", size])
        for end, size in (("x", COLUMNS), ("y", ROWS))
    ]
    initializers = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    made = define_operator(model, weights, form, {_LINEAR: (0.0, 1.0)} if calibrated else None)
    return _error(made, codes)


def _error(model: onnx.ModelProto, codes: np.ndarray) -> float:
    x = np.zeros((2, COLUMNS), np.float32)
    x[1] = 1  # the top of its grid; 0 is its bottom
    session = open_model(model.SerializeToString(), Path(), 1)
    found, expected = session.run(None, {"x": x})[0], x @ codes.T.astype(np.float32)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
