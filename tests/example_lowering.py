"""How to add a lowering: this one gives ONNX Runtime the exact codes of any width in 8-bit containers, in blocks.

A lowering of `onnxruntime` is a function that makes one node of a packed Linear, and a row that says what it takes.
The row goes among the runtime's lowerings; nothing else is touched.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from qvec_deploy.runtimes.onnxruntime import block_of
from qvec_deploy.runtimes.onnxruntime.ort_lowering import Arrays
from qvec_deploy.runtimes.runtime import EVERY_WIDTH, Lowering
from qvec_deploy.tensors import QuantizedTensor, Scheme


def to_blocks(node: onnx.NodeProto, tensor: QuantizedTensor) -> tuple[onnx.NodeProto, Arrays]:
    """MatMulNBits at 8 bits: codes u = q + 128 in blocks; a block beyond the row is filled with zeros."""
    x, weight, _, bias = node.input
    rows, columns = tensor.codes.shape
    block = block_of(columns, tensor.scheme.group_size)
    blocks = -(-columns // block)
    codes = np.full((rows, blocks * block), 128, np.uint8)
    codes[:, :columns] = (tensor.codes.astype(np.int16) + 128).astype(np.uint8)
    arrays = {
        f"{weight}.codes": codes.reshape(rows, blocks, block),
        f"{weight}.scales": tensor.scale.repeat(blocks // tensor.scale.shape[1], axis=1),
    }
    new = helper.make_node(
        "MatMulNBits",
        [x, *arrays, "", "", bias],
        list(node.output),
        name=node.name,
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=8,
        block_size=block,
        accuracy_level=0,
    )
    return new, arrays


def _bits(rows: int, columns: int, scheme: Scheme) -> float:
    block = block_of(columns, scheme.group_size)
    return 8.0 * rows * -(-columns // block) * (block + 4)


INT8_BLOCKS = Lowering(
    "int8_blocks",
    "the exact codes in 8-bit containers, float32 activations",
    EVERY_WIDTH,
    1e-3,
    "fp32",
    _bits,
    group_multiple=16,
    power_of_two_groups=True,
    implementation="example_lowering:to_blocks",
)
"""The row."""
