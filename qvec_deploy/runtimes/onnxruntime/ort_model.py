"""The file that ships: the stored graph, its operator defined by a lowering and its inputs calibrated where needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from qvec_deploy.datasets import DataConfig
from qvec_deploy.errors import StorageError
from qvec_deploy.io.files import storage_errors, write_bytes
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import LOWERING_KEY, MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import INPUT
from qvec_deploy.runtimes.graph.operator import INPUT_SCALE_ATTRIBUTE, OPERATOR, STANDARD, Ranges, define_operator
from qvec_deploy.runtimes.graph.pixel_input import take_pixels
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME
from qvec_deploy.runtimes.onnxruntime.ort_loading import PROVIDER, as_taken, open_model
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.tensors import Float32


def write_model(
    directory: Path,
    lowering: str,
    batches: Sequence[Float32],
    threads: int,
    metadata: Mapping[str, str] | None = None,
    pixels: DataConfig | None = None,
) -> None:
    """Make the model in a directory the lowering's own.

    Args:
        batches: Images (B, C, H, W) that inputs are calibrated on, where the lowering needs that.
        metadata: What the file says about itself, beside its lowering.
        pixels: The preprocessing whose normalisation goes into the graph; None leaves it outside.

    Raises:
        IncompatibleError: A scheme that the lowering cannot take.
    """
    ranges = None
    if find_lowering(ONNXRUNTIME.name, lowering).calibrates_activations:
        ranges = input_ranges(directory, batches, threads)
    model = lowered_model(directory, lowering, ranges)
    if pixels is not None:
        take_pixels(model, pixels)
    helper.set_model_props(model, {**(metadata or {}), LOWERING_KEY: lowering})
    write_bytes(directory / MODEL_FILE, model.SerializeToString(deterministic=True))


def lowered_model(directory: Path, lowering: str, ranges: Ranges | None = None) -> onnx.ModelProto:
    """The model in a directory as a lowering; its weights stay references.

    Raises:
        IncompatibleError: There is no such lowering.
        IntegrityError: The model or the packed file is damaged.
    """
    row = find_lowering(ONNXRUNTIME.name, lowering)
    model = load_stored(directory)
    if row.implementation is not None:
        model = define_operator(model, PackedFile.open(directory / WEIGHTS_FILE), row.load(), ranges)
    others = {entry.key: entry.value for entry in model.metadata_props if entry.key != LOWERING_KEY}
    helper.set_model_props(model, {**others, LOWERING_KEY: lowering})
    return model


def input_ranges(directory: Path, batches: Iterable[Float32], threads: int) -> Ranges:
    """Smallest and largest value that reaches each quantized Linear, by its name, over all images.

    The model itself is run, with exact weights and float32 arithmetic.

    Args:
        batches: Images (B, C, H, W).
    """
    model = define_operator(load_stored(directory), PackedFile.open(directory / WEIGHTS_FILE), STANDARD)
    graph = model.graph
    linears = {node.input[1].removesuffix(".weight"): node.input[0] for node in graph.node if node.op_type == OPERATOR}
    names = []
    for linear, value in linears.items():
        for operator in ("ReduceMin", "ReduceMax"):
            names.append(f"{linear}.{operator}")
            graph.node.append(helper.make_node(operator, [value], [names[-1]], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, []))
    session = open_model(model.SerializeToString(), directory, threads)
    found = [session.run(names, {INPUT: as_taken(session, batch)}) for batch in batches]
    extremes = list(zip(*found, strict=True))
    return {
        linear: (float(min(extremes[2 * index])), float(max(extremes[2 * index + 1])))
        for index, linear in enumerate(linears)
    }


def is_calibrated(directory: Path) -> bool:
    """Whether the model in a directory knows the ranges of its quantized Linears' inputs."""
    nodes = [node for node in load_stored(directory).graph.node if node.op_type == OPERATOR]
    return all(any(each.name == INPUT_SCALE_ATTRIBUTE for each in node.attribute) for node in nodes)


def with_weights(model: onnx.ModelProto, directory: Path) -> onnx.ModelProto:
    """The model with its weights inside."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    with storage_errors(directory):
        load_external_data_for_model(whole, str(directory))
    return whole


def expand(model: onnx.ModelProto, scratch: Path) -> onnx.ModelProto:
    """The model with everything computed that depends on constants alone, by ONNX Runtime: codes are unpacked.

    Args:
        model: Its weights are inside.
        scratch: An empty folder.

    Raises:
        StorageError: It cannot be written to, or is full.
    """
    import onnxruntime
    from google.protobuf.message import DecodeError
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidProtobuf

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(scratch / MODEL_FILE)
    options.log_severity_level = 4  # what it would print, with names of the graph as they are, is raised too
    source = scratch / f"packed.{MODEL_FILE}"
    with storage_errors(scratch):
        source.write_bytes(model.SerializeToString())
        try:
            onnxruntime.InferenceSession(str(source), options, providers=[PROVIDER])
        except InvalidProtobuf:  # it cannot write on; or it says nothing
            written = b"?"
        else:
            written = (scratch / MODEL_FILE).read_bytes()
    try:
        expanded = onnx.load_model_from_string(written)
    except DecodeError as error:
        raise StorageError(
            f"{scratch}: ONNX Runtime could not write the whole model",
            hint="free some space there, or set TMPDIR to a folder that has some",
        ) from error
    opsets = [entry for entry in expanded.opset_import if entry.domain in {"", *_domains(expanded)}]
    expanded.ClearField("opset_import")
    expanded.opset_import.extend(opsets)
    return expanded


def _domains(model: onnx.ModelProto) -> set[str]:
    return {node.domain for node in model.graph.node}
