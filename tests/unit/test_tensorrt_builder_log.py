"""The builder's log, on samples that TensorRT for RTX 1.7.1 wrote for one Linear of 96 x 64 and a softmax."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.tensorrt.builder_log import (
    LinearProduct,
    WantedProduct,
    check_products,
    read_layers,
    read_weights_bytes,
)

LOGS = Path(__file__).parents[1] / "data" / "builder_logs"
NODE = "/blocks/fc/y_matmul"
INT4 = WantedProduct("blocks.0.fc", NODE, "Half", "Int4")
INT8 = WantedProduct("blocks.0.fc", NODE, "Int8", "Int8")


def _log(name: str) -> str:
    return (LOGS / f"{name}.txt").read_text(encoding="utf-8")


def test_every_layer_is_read() -> None:
    layers = read_layers(_log("w8a8"))
    assert [layer.kind for layer in layers] == ["kgen", "gemm", "kgen"]
    assert layers[1].inputs == ("Int8",) and layers[1].constants == ("Int8", "Float", "Float")
    assert layers[1].nodes[0] == NODE and len(layers[1].nodes) == 4
    assert layers[0].constants == ("Half",)


@pytest.mark.parametrize(("name", "size"), [("int4", 4880), ("rtx_int4", 4112), ("w8a8", 7186)])
def test_bytes_of_weights(name: str, size: int) -> None:
    assert read_weights_bytes(_log(name)) == size


def test_what_a_linear_is_multiplied_in() -> None:
    (product,) = check_products(read_layers(_log("w8a8")), [INT8])
    assert product == LinearProduct("blocks.0.fc", f"{NODE}_myl0_1", ("Int8",), ("Int8", "Float", "Float"), True)
    (product,) = check_products(read_layers(_log("rtx_int4")), [INT4])
    assert product.fused and product.constants == ("Int4", "Half")


def test_our_plugin_reads_the_words_themselves() -> None:
    words = WantedProduct("fc", "y_matmul", "Half", "Int32")
    (product,) = check_products(read_layers(_log("packed")), [words])
    assert product == LinearProduct("fc", "y_matmul_myl0_2", ("Half",), ("Int32", "Float", "Half"), True)
    assert read_weights_bytes(_log("packed")) == 2688
    unpacked = _log("packed").replace("Datatype: Int32", "Datatype: Half")
    with pytest.raises(IncompatibleError, match=r"1 of 1 .* `fc` should be Half x Int32, and layer y_matmul_myl0_2"):
        check_products(read_layers(unpacked), [words])
    with pytest.raises(IncompatibleError, match="no product of `fc`"):
        check_products(read_layers(_log("packed").replace("custom_layer", "kgen")), [words])


def test_weights_that_are_expanded_at_every_run() -> None:
    """One padded block a column: a layer of its own expands it to float16."""
    with pytest.raises(
        IncompatibleError, match=r"1 of 1 .* `blocks\.0\.fc` should be Half x Int4, and layer"
    ) as caught:
        check_products(read_layers(_log("int4")), [INT4])
    assert "expanded at every run" in caught.value.hint


def test_another_type_than_wanted() -> None:
    with pytest.raises(IncompatibleError, match="should be Int8 x Int8"):
        check_products(read_layers(_log("rtx_int4")), [INT8])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("LayerType", "LayerKind"), "no layer"),
        (("Metadata:", "Origin:"), "Name: "),
        (("Datatype: ", "Type: "), "the tensors of"),
        (("Constants: [ {", "Constants: [ ["), "the tensors of|Name: |no product|should be"),
        (("ONNX Layer: ", "Layer: "), "no product of `blocks.0.fc`"),
        (("runtime_fusion", "fused"), "no product of `blocks.0.fc`"),
    ],
)
def test_a_log_that_changed_is_refused(change: tuple[str, str], what: str) -> None:
    log = _log("rtx_int4")
    assert change[0] in log
    with pytest.raises(IncompatibleError, match=what):
        check_products(read_layers(log.replace(*change)), [INT4])


def test_a_log_without_weights_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="no bytes of weights"):
        read_weights_bytes("[INFO] Total Memory: 12 bytes")
