"""What an engine computes, on the CPU: the graph that TensorRT reads, its number formats bit by bit.

Codes, scales and the grids of activations are the engine's own. Sums and everything that is not quantized are float32
where the engine has float16. So it shows what a format costs in accuracy, and nothing about speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.graph.activations import read_amax
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.onnxruntime.ort_loading import open_model
from qvec_deploy.runtimes.onnxruntime.ort_session import OnnxSession
from qvec_deploy.runtimes.registry import find_lowering, find_runtime
from qvec_deploy.runtimes.session import Session
from qvec_deploy.runtimes.tensorrt import NVFP4_BLOCK
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import tensorrt_graph
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import DYNAMIC_QUANTIZE, E2M1_MAX

_NARROW, _WIDE = TensorProto.FLOAT16, TensorProto.FLOAT
_DOMAIN, _NVFP4 = "qvec.emulation", "Nvfp4"
_OPSET = 23


@contextlib.contextmanager
def open_emulation(directory: Path, runtime: str, lowering: str, threads: int) -> Iterator[Session]:
    """Emulate a lowering of the model and weights in a directory; our plugin computes what float weights do.

    Raises:
        IncompatibleError: As `tensorrt_graph`.
        IntegrityError: A file is damaged.
    """
    from qvec_deploy.packed import PackedFile

    stored, weights = load_stored(directory), PackedFile.open(directory / WEIGHTS_FILE)
    amax = read_amax(directory) if find_lowering(runtime, lowering).calibrates_activations else None
    graph = tensorrt_graph(stored, weights, lowering, runtime=runtime, amax=amax)
    if graph.plugin_layers:
        graph = tensorrt_graph(stored, weights, find_runtime(runtime).baseline.name, runtime=runtime)
    with scratch_folder("emulation") as scratch:
        path = scratch / "model.onnx"
        onnx.save_model(emulated_model(graph.model), path, save_as_external_data=True)
        del graph, weights, stored
        yield OnnxSession(open_model(str(path), scratch, threads))


def emulated_model(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A graph for TensorRT in operators that ONNX Runtime has on the CPU, in float32.

    Weights are what their codes stand for; float16 constants keep their values.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()  # values that the emulated quantization has no use for
    for node in model.graph.node:
        if node.op_type == DYNAMIC_QUANTIZE:
            replaced.update(node.output)
            x, step = node.input
            codes, _ = node.output
        elif node.op_type == "DequantizeLinear" and node.input[0] in replaced:
            if node.input[0] == codes:
                nodes.append(helper.make_node(_NVFP4, [x, step], list(node.output), domain=_DOMAIN))
        elif node.op_type == "DequantizeLinear" and all(name in tensors for name in node.input):
            tensors[node.output[0]] = _dequantized(node, tensors)
        else:
            nodes.append(_widened(node))
    used = {name for node in nodes for name in node.input}
    constants = [_wide(tensor) for name, tensor in tensors.items() if name in used]
    for part, values in (("node", nodes), ("initializer", constants), ("value_info", [])):
        model.graph.ClearField(part)
        getattr(model.graph, part).extend(values)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_DOMAIN, 1)]
    for field, entries in (("opset_import", opsets), ("functions", [_nvfp4_function(opsets)])):
        model.ClearField(field)
        getattr(model, field).extend(entries)
    return model


def _dequantized(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> TensorProto:
    """What a DequantizeLinear makes of constants."""
    codes, scale = (numpy_helper.to_array(tensors[name]).astype(np.float32) for name in node.input[:2])
    named = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    axis = named.get("axis", 1)
    if "block_size" in named:
        scale = scale.repeat(named["block_size"], axis=axis)
    elif scale.ndim:
        scale = scale.reshape([-1 if each == axis else 1 for each in range(codes.ndim)])
    return numpy_helper.from_array(np.ascontiguousarray(codes * scale), node.output[0])


def _widened(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node, in float32 where it was in float16."""
    for attribute in node.attribute:
        if attribute.name == "to" and attribute.i == _NARROW:
            attribute.i = _WIDE
        elif attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_wide(attribute.t))
    return node


def _wide(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != _NARROW:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _nvfp4_function(opsets: list[Any]) -> onnx.FunctionProto:
    """NVFP4 of `x` along its last axis, its values: what TensorRT's two-level dynamic quantization computes.

    A block of 16 has the scale amax / 6, kept as E4M3 in steps of `step`; its values over that scale are rounded to the
    nearest of 0, 0.5, 1, 1.5, 2, 3, 4 and 6, ties to the even code, larger ones to 6.
    """
    body = f"""
        <domain: "{_DOMAIN}", opset_import: ["" : {_OPSET}]>
        {_NVFP4} (x, step) => (y) {{
            zero = Constant <value_float = 0.0> ()
            half = Constant <value_float = 0.5> ()
            one = Constant <value_float = 1.0> ()
            two = Constant <value_float = 2.0> ()
            four = Constant <value_float = 4.0> ()
            six = Constant <value_float = {E2M1_MAX}> ()
            block = Constant <value_ints = [-1, {NVFP4_BLOCK}]> ()
            last = Constant <value_ints = [-1]> ()
            shape = Shape (x)
            leading = Shape <end = -1> (x)
            blocked = Concat <axis = 0> (leading, block)
            blocks = Reshape (x, blocked)
            sizes = Abs (blocks)
            amax = ReduceMax <keepdims = 1> (sizes, last)
            wanted = Div (amax, six)
            scale_codes = QuantizeLinear <output_dtype = {TensorProto.FLOAT8E4M3FN}> (wanted, step)
            scale = DequantizeLinear (scale_codes, step)
            empty = Equal (scale, zero)
            divisor = Where (empty, one, scale)
            ratio = Div (blocks, divisor)
            ratios = Abs (ratio)
            held = Min (ratios, six)
            under_four = Less (held, four)
            under_two = Less (held, two)
            wide_steps = Where (under_four, one, two)
            steps = Where (under_two, half, wide_steps)
            counted = Div (held, steps)
            rounded = Round (counted)
            magnitudes = Mul (rounded, steps)
            signs = Sign (ratio)
            codes = Mul (magnitudes, signs)
            values = Mul (codes, scale)
            y = Reshape (values, shape)
        }}
    """
    return onnx.parser.parse_function(body)
