"""8-bit products are exact on every CPU, and an engine whose products saturate is not believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qvec_deploy.bench.parity import EXACT, check_parity
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedInfo
from qvec_deploy.runtimes.graph.operator import OperatorForm, code_rows, whole_rows, width
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME
from qvec_deploy.runtimes.onnxruntime.ort_arithmetic import largest_error, product_error
from qvec_deploy.runtimes.onnxruntime.ort_lowering import CONTRIB, INT8
from qvec_deploy.runtimes.registry import RUNTIMES, find_lowering

INT8_ROW = find_lowering(ONNXRUNTIME.name, "int8")


def _signed_body(linears: Sequence[PackedInfo], calibrated: bool) -> list[str]:
    """Signed codes without a zero point, as a lowering might well write them."""
    bits = width(linears)
    return [
        *code_rows("qweight", bits, whole=whole_rows(linears), at_top=False),
        f"raised = Cast <to = {TensorProto.INT16}> (unsigned)",
        f"middle = Constant <value = int16 {{{1 << (bits - 1)}}}> ()",
        "lowered = Sub (raised, middle)",
        f"weight = Cast <to = {TensorProto.INT8}> (lowered)",
        "flat = Constant <value_ints = [-1]> ()",
        "steps = Reshape (scale, flat)",
        "y = com.microsoft.DynamicQuantizeMatMul (x, weight, steps, , bias)",
    ]


SIGNED = OperatorForm(_signed_body, domains=CONTRIB)


def _kernel_saturates() -> bool:
    """Whether this CPU's kernel does, by a graph that is none of ours: codes of 127 and inputs of 255."""
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    a = helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])
    b = numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b")
    graph = helper.make_graph([node], "g", [a], [y], [b])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((1, 64), 255, np.uint8)})[0]
    return bool((found != 64 * 127 * 255).any())


@pytest.mark.parametrize("bits", INT8_ROW.bits)
@pytest.mark.parametrize("calibrated", [True, False])
def test_every_width_is_exact_here(bits: int, calibrated: bool) -> None:
    assert product_error(INT8, bits, calibrated) <= EXACT


def test_every_lowering_of_the_table_is_exact_here() -> None:
    for row in ONNXRUNTIME.lowerings:
        assert ONNXRUNTIME.load().arithmetic_error(row.name) <= EXACT, row.name  # type: ignore[attr-defined]


def test_what_saturates_is_seen_where_it_does() -> None:
    assert (product_error(SIGNED, 8, False) > 0.1) == _kernel_saturates()
    assert product_error(SIGNED, 6, False) <= EXACT


class _Exact:
    """An engine whose logits are those of PyTorch."""

    input_shape = (3, 32, 32)

    def run(self, images: np.ndarray) -> np.ndarray:
        return np.ones((len(images), 10), np.float32)


def test_an_engine_is_not_believed_where_products_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = np.ones((2, 10), np.float32)
    assert check_parity(_Exact(), ONNXRUNTIME.name, "int8", reference).relative_error == 0
    form = "test_onnxruntime_arithmetic:SIGNED" if _kernel_saturates() else "test_onnxruntime_arithmetic:SATURATING"
    rows = tuple(replace(row, implementation=form) if row.name == "int8" else row for row in ONNXRUNTIME.lowerings)
    monkeypatch.setitem(RUNTIMES, ONNXRUNTIME.name, replace(ONNXRUNTIME, lowerings=rows))
    assert largest_error("int8") > 0.1
    with pytest.raises(IncompatibleError, match="lowering `int8` does not compute here what it means: products of its"):
        check_parity(_Exact(), ONNXRUNTIME.name, "int8", reference)


def _saturating_body(linears: Sequence[PackedInfo], calibrated: bool) -> list[str]:
    """What a kernel that saturates makes of the largest numbers, for CPUs whose kernel does not: half of it."""
    *lines, product = _signed_body(linears, calibrated)
    return [
        *lines,
        product.replace("y =", "whole ="),
        "half = Constant <value_float = 0.5> ()",
        "y = Mul (whole, half)",
    ]


SATURATING = OperatorForm(_saturating_body, domains=CONTRIB)
