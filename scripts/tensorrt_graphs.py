"""What `scripts/check_tensorrt` builds: one-layer graphs around the plugins, and two models with their weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from plugin_function import device_function

from qvec_deploy.quantize.reference import quantize
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import DOMAIN, INPUT, OUTPUT
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.tensorrt.tensorrt_graph import TensorrtGraph, allowed_bytes
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import to_packed
from qvec_deploy.tensors import QuantizedTensor, Scheme

ROWS = COLUMNS = 768
DENSE_BYTES = 2 * ROWS * COLUMNS
BATCH, BITS = 197, 3
SCHEME = Scheme(BITS, "channel", method="mse")
ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, dict[str, Any]] = {
    "demo": {
        "name": "vit_tiny_patch16_224",
        "args": {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3, "global_pool": "avg"},
        "checkpoint": ROOT / "recipes" / "demo" / "receiver_symbols.safetensors",
    },
    "vit_b": {"name": "vit_base_patch16_224", "args": {}, "checkpoint": None},
}
"""`vit_b` has random weights: its numbers and its speed are those of any ViT-B/16, its answers mean nothing."""


@cache
def _weight() -> tuple[QuantizedTensor, np.ndarray]:
    generator = np.random.default_rng(0)
    weight = generator.normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
    return quantize(weight, SCHEME), generator.normal(0, 0.1, ROWS).astype(np.float16)


def layer_images(batch: int) -> np.ndarray:
    """Inputs of the one-layer graphs: (batch, 1, 1, COLUMNS) float32 that float16 holds exactly."""
    values = np.random.default_rng(1).normal(size=(batch, 1, 1, COLUMNS))
    return values.astype(np.float16).astype(np.float32)


def expected_logits(images: np.ndarray) -> np.ndarray:
    """What `layer_graph` with one layer computes: (batch, ROWS) float32."""
    quantized, bias = _weight()
    product = images.reshape(len(images), COLUMNS).astype(np.float64) @ quantized.dequantize().T.astype(np.float64)
    return (product + bias).astype(np.float32)


def layer_graph(
    *, batch: int | None = BATCH, layers: int = 1, portable: bool = False, namespace: bool = True
) -> TensorrtGraph:
    """QvecLinear, `layers` times with weights of their own, between float32 images and logits.

    Args:
        batch: Images; None leaves it open.
        layers: Linears one behind the other.
        portable: With a function body.
        namespace: Whether the nodes carry `plugin_namespace`.
    """
    quantized, bias = _weight()
    nodes, tensors = [], [numpy_helper.from_array(bias, "bias")]
    packed = []
    for index in range(layers):
        stub = helper.make_node(
            "QvecLinear", [f"x{index}", f"w{index}.weight", "", "bias"], [f"x{index + 1}"], name=f"linear{index}"
        )
        codes = np.roll(quantized.codes, index, axis=0)  # other weights: equal ones could be shared
        made = to_packed(stub, QuantizedTensor(codes, quantized.scale, SCHEME), None)
        nodes += made.nodes
        tensors += made.tensors
        packed.append(sum(len(tensor.raw_data) for tensor in made.tensors))
    for node in nodes if not namespace else ():
        kept = [attribute for attribute in node.attribute if attribute.name != "plugin_namespace"]
        node.ClearField("attribute")
        node.attribute.extend(kept)
    functions = []
    if portable:
        functions = [device_function(choose_layout(ROWS, COLUMNS, BITS).id, BITS)]
        for node in nodes:
            node.overload = functions[0].overload
    return _graph(nodes, tensors, batch, f"x{layers}", packed, functions)


def _graph(
    nodes: list[onnx.NodeProto],
    tensors: list[TensorProto],
    batch: int | None,
    last: str,
    packed: list[int],
    functions: list[onnx.FunctionProto],
) -> TensorrtGraph:
    size = batch if batch is not None else "batch"
    tensors = [*tensors, numpy_helper.from_array(np.array([-1, COLUMNS]), "flat")]
    ends = [
        helper.make_node("Cast", [INPUT], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["half", "flat"], ["x0"]),
        *nodes,
        helper.make_node("Cast", [last], [OUTPUT], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        ends,
        "layer",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [size, 1, 1, COLUMNS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [size, ROWS])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    given = sum(len(tensor.raw_data) for tensor in tensors)
    allowed = allowed_bytes(given, packed, [DENSE_BYTES] * len(packed))
    return TensorrtGraph(model, len(packed), sum(packed), given, allowed)


def write_model(name: str, folder: Path) -> Path:
    """Write what a build leaves of a model of MODELS at 3 bits: graph, weights, kernels, activations, logits.

    Args:
        name: Its name.
        folder: Where to. The logits are written last.
    """
    import torch
    from safetensors.numpy import load_file

    from qvec_deploy.bench.parity import parity_images, reference_logits, write_reference
    from qvec_deploy.models import create, describe, quantized_linears
    from qvec_deploy.packed import Entry, PackedFile, pack, write_packed
    from qvec_deploy.runtimes.graph.activations import calibrate_amax, write_amax
    from qvec_deploy.runtimes.graph.export import export_skeleton
    from qvec_deploy.runtimes.graph.stored import attach_weights
    from qvec_deploy.runtimes.kernels.kernel_file import write_kernels

    folder.mkdir(parents=True, exist_ok=True)
    wanted = MODELS[name]
    model_name, args, checkpoint = wanted["name"], wanted["args"], wanted["checkpoint"]
    torch.manual_seed(0)
    state = load_file(checkpoint) if checkpoint is not None else None
    classes = len(state["head.bias"]) if state is not None else 1000
    model = create(model_name, classes, args)
    if state is None:
        state = {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}
    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    names = {f"{each}.weight" for each in quantized_linears(model, ("head",))}
    layout = {key: Entry(value.shape, SCHEME if key in names else None) for key, value in state.items()}
    tensors = ((key, pack(quantize(value, SCHEME)) if key in names else value) for key, value in state.items())
    write_packed(folder / WEIGHTS_FILE, layout, tensors)
    weights = PackedFile.open(folder / WEIGHTS_FILE)
    shape = describe(model_name, classes, args).input_shape
    skeleton = export_skeleton(model_name, classes, args, ("head",), shape)
    onnx.save(attach_weights(skeleton, weights, WEIGHTS_FILE), folder / MODEL_FILE)
    images = parity_images(shape)
    write_kernels(folder)
    write_amax(folder, calibrate_amax(model, weights, [images]))
    write_reference(folder, reference_logits(weights, model_name, classes, args, images))
    return folder
