"""Bits that a quantized weight takes where it is multiplied, by runtime and lowering."""

from __future__ import annotations

from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.kernels.layouts import choose_layout
from qvec_deploy.runtimes.onnxruntime import ort_lowering as inmemory
from qvec_deploy.runtimes.tensorrt import tensorrt_graph
from qvec_deploy.tensors import Scheme


def runtime_bits_per_weight(weights: PackedFile, runtime: str, lowering: str) -> float:
    """Bits a quantized weight takes in the engine's memory, its share of the scales included; 32 where none is."""
    if runtime == "onnxruntime":
        return inmemory.runtime_bits_per_weight(weights, lowering)
    if runtime == "tensorrt":
        return tensorrt_graph.runtime_bits_per_weight(weights, lowering)
    bits = count = 0.0
    for info in weights.tensors.values():
        if info.scheme is not None:
            rows, columns = info.shape
            count += rows * columns
            bits += _matrix_bits(lowering, rows, columns, info.scheme)
    return bits / count if count else 16.0


def _matrix_bits(lowering: str, rows: int, columns: int, scheme: Scheme) -> float:
    if lowering == "packed":  # torch-cuda: words of a device layout, and float32 scales
        layout = choose_layout(rows, columns, scheme.bits, scheme.group_size)
        height, width = layout.words_shape(rows, columns, scheme.bits)
        return 32.0 * (height * width + rows * scheme.groups(columns))
    if lowering == "int4":  # onnxruntime-cuda: blocks of at most 128 codes of 4 bits with a float16 scale
        block = min(inmemory.block_of(columns, scheme.group_size), 128)
        return 8.0 * rows * -(-columns // block) * (block // 2 + 2)
    return 16.0 * rows * columns
