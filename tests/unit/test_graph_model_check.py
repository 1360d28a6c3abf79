"""What `verify` says of a model file: every one that is written is taken, and no other, before a runtime sees it."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from shared import make_once
from small_engines import write_engine

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.bundle.verify import check_graph, read_graph
from qvec_deploy.errors import IntegrityError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.graph import DOMAIN
from qvec_deploy.runtimes.graph.model_check import GRAPH_OPERATORS, check_model
from qvec_deploy.runtimes.graph.model_file import MAX_FIELDS, MAX_NODES, MAX_STRUCTURE
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.onnxruntime.ort_model import write_model
from qvec_deploy.runtimes.registry import RUNTIMES
from qvec_deploy.tensors import Scheme

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v0.1.0" / "bundle"
LOWERINGS = [lowering.name for row in RUNTIMES.values() if row.stands_alone for lowering in row.lowerings]

Edit = Callable[[onnx.ModelProto], bytes | None]


@pytest.fixture(scope="module")
def engine() -> Path:
    """Weights and portable graph of the pico model; do not write to it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        write_engine(folder, graph=True, convolutions=True)

    return make_once("checked_engine", make)


@pytest.fixture(scope="module")
def int4(engine: Path) -> Path:
    """The same as `int4`."""

    def make(folder: Path) -> None:
        shutil.copytree(engine, folder)
        write_model(folder, "int4", [], 1)

    return make_once("checked_int4", make)


def _refused(folder: Path, edit: Edit) -> str:
    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    data = edit(model) or model.SerializeToString(deterministic=True)
    start = time.process_time()
    with pytest.raises(Exception) as caught:
        check_model(data, PackedFile.open(folder / WEIGHTS_FILE))
    assert not isinstance(caught.value, AssertionError | MemoryError | RecursionError)
    assert time.process_time() - start < 5
    return str(caught.value)


# What is written is taken


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_is_taken(tmp_path: Path, lowering: str) -> None:
    scheme = None if lowering == LOWERINGS[0] else Scheme(3, "channel")
    write_engine(tmp_path, scheme, graph=True)
    check_graph(tmp_path)
    images = parity_images((3, 32, 32))
    write_model(tmp_path, lowering, [images], 1, {"qvec.class_names": "[]"})
    assert "nodes" in check_graph(tmp_path)


@pytest.mark.parametrize("scheme", [Scheme(2, "tensor"), Scheme(4, "group", 16), Scheme(8, "channel")])
def test_every_scheme_is_taken(tmp_path: Path, scheme: Scheme) -> None:
    write_engine(tmp_path, scheme, graph=True, factors=scheme.bits == 4, convolutions=scheme.bits != 4)
    check_graph(tmp_path)


def test_files_of_0_1_0_are_taken_as_what_they_are() -> None:
    read_graph(GOLDEN, older=True)
    with pytest.raises(IntegrityError, match="means something else"):
        check_graph(GOLDEN)


def test_all_families_are_written_with_these_operators() -> None:
    record = json.loads((ROOT / "scripts" / "families.record.json").read_text())
    written = {name for row in record["families"].values() for name in row.get("operators", "").split()}
    assert len(written) > 40 and written <= GRAPH_OPERATORS


# What is not written is not


def _external(model: onnx.ModelProto, dimensions: int = 1) -> Iterator[TensorProto]:
    return (t for t in model.graph.initializer if t.external_data and len(t.dims) == dimensions)


def _place(key: str, value: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(_external(model))
        (entry,) = (entry for entry in tensor.external_data if entry.key == key)
        entry.value = value

    return edit


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "../weights.qvec.safetensors"),
        ("location", "/etc/passwd"),
        ("location", "model.onnx"),
        ("offset", "8"),
        ("offset", "-1"),
        ("offset", str(1 << 70)),
        ("offset", "eight"),
        ("length", "8"),
        ("length", str(1 << 62)),
    ],
)
def test_a_weight_is_where_the_packed_file_has_it(int4: Path, key: str, value: str) -> None:
    assert "is not where, or not what" in _refused(int4, _place(key, value))


def test_a_weight_is_what_the_packed_file_has(int4: Path) -> None:
    def others(model: onnx.ModelProto) -> None:
        first, second, *_ = _external(model)
        for one, two in zip(first.external_data, second.external_data, strict=True):
            one.value, two.value = two.value, one.value

    def inside(model: onnx.ModelProto) -> None:
        tensor = next(_external(model))
        values = np.zeros(tensor.dims, np.float32)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, values.tobytes(), raw=True))

    def shape(model: onnx.ModelProto) -> None:
        next(_external(model, 2)).dims.reverse()

    def kind(model: onnx.ModelProto) -> None:
        next(_external(model)).data_type = TensorProto.INT32

    def payload(model: onnx.ModelProto) -> None:
        next(_external(model, 3)).data_type = TensorProto.INT8

    for edit in (others, inside, shape, kind):
        assert "is not where, or not what" in _refused(int4, edit)
    assert "declared otherwise" in _refused(int4, payload)


def test_operands_are_a_weight_and_its_own_scale(int4: Path) -> None:
    def operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
        return [node for node in model.graph.node if node.op_type == "QvecLinear"]

    def scales(model: onnx.ModelProto) -> None:
        one, two, *_ = operators(model)
        one.input[2], two.input[2] = two.input[2], one.input[2]

    def codes(model: onnx.ModelProto) -> None:
        node = operators(model)[0]
        node.input[1] = node.input[3]

    def floats(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        node.input[1] = "blocks.0.mlp.fc1.weight"

    def bare(model: onnx.ModelProto) -> None:
        del operators(model)[0].input[2:]

    assert all("a quantized weight and its scale" in _refused(int4, edit) for edit in (scales,))
    assert all(_refused(int4, edit) for edit in (codes, floats, bare))


def test_only_what_is_exported(int4: Path) -> None:
    def operator(name: str, domain: str = "") -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            node = next(node for node in model.graph.node if node.op_type == "Softmax")
            node.op_type, node.domain = name, domain

        return edit

    branch = helper.make_graph([], "branch", [], [])

    def inner(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute("body", branch))

    def graphs(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute("body", [branch]))

    def tensor(model: onnx.ModelProto) -> None:
        model.graph.node[0].attribute.append(helper.make_attribute("value", helper.make_tensor("a", 1, [1], [0.0])))

    never = [("Loop", ""), ("If", ""), ("Scan", ""), ("RandomNormal", ""), ("Softmax", "com.microsoft"), ("X", DOMAIN)]
    for name, domain in never:
        assert "which is never exported" in _refused(int4, operator(name, domain))
    assert {"Loop", "If", "Scan", "SequenceMap", "RandomNormal", "Bernoulli"}.isdisjoint(GRAPH_OPERATORS)
    for edit in (inner, graphs, tensor):
        assert "which is never written" in _refused(int4, edit)


def test_the_operator_means_what_its_lowering_writes(int4: Path, engine: Path) -> None:
    def portable(model: onnx.ModelProto) -> None:
        del model.functions[:]
        model.functions.extend(load_stored(engine).functions)

    def lowering(name: str) -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            (entry,) = (entry for entry in model.metadata_props if entry.key == "qvec.lowering")
            entry.value = name

        return edit

    def another(model: onnx.ModelProto) -> None:
        model.functions[0].node[-1].op_type = "MatMul"

    def more(model: onnx.ModelProto) -> None:
        model.functions.append(model.functions[0])

    def inner(model: onnx.ModelProto) -> None:
        branch = helper.make_graph([], "branch", [], [])
        model.functions[0].node[0].attribute.append(helper.make_attribute("body", branch))

    def domain(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("acme", 1))

    def size(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.domain == DOMAIN)
        next(each for each in node.attribute if each.name == "K").i += 8

    for edit in (portable, another, more, inner):
        assert "means something else than its lowering writes" in _refused(int4, edit)
    assert "which nothing has" in _refused(int4, lowering("int5"))
    assert all("imports other domains" in _refused(int4, edit) for edit in (domain, lowering("packed")))
    assert "says another size or width" in _refused(int4, size)


def test_an_older_definition_is_a_plain_list_of_known_operators() -> None:
    weights = PackedFile.open(GOLDEN / WEIGHTS_FILE)

    def refused(edit: Callable[[onnx.ModelProto], None]) -> str:
        model = onnx.load(GOLDEN / MODEL_FILE, load_external_data=False)
        edit(model)
        with pytest.raises(Exception) as caught:
            check_model(model.SerializeToString(), weights, older=True)
        return str(caught.value)

    def loop(model: onnx.ModelProto) -> None:
        model.functions[0].node[3].op_type = "Loop"

    def branch(model: onnx.ModelProto) -> None:
        inner = helper.make_graph([], "branch", [], [])
        model.functions[0].node[3].attribute.append(helper.make_attribute("body", inner))

    def words(model: onnx.ModelProto) -> None:
        next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT32).dims[0] -= 1

    assert "never written" in refused(loop) and "loops or branches" in refused(branch)
    assert "another type or shape" in refused(words)
    assert "is not where" in refused(lambda model: _place("offset", "8")(model) and None)


def test_the_graph_is_a_list_of_nodes_that_are_used(int4: Path) -> None:
    def cycle(model: onnx.ModelProto) -> None:
        model.graph.node[2].input[0] = model.graph.node[20].output[0]

    def twice(model: onnx.ModelProto) -> None:
        model.graph.node[5].output[0] = model.graph.node[4].output[0]

    def idle(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Identity", ["logits"], ["more"], name="more"))

    def constant(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(TensorProto(name="more", data_type=1, dims=[1 << 40]))

    assert "nothing before it makes" in _refused(int4, cycle)
    assert "for the second time" in _refused(int4, twice)
    assert "nothing reads 'more'" in _refused(int4, idle) and "nothing reads 'more'" in _refused(int4, constant)


def _before(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes between the images and everything else."""
    for node in model.graph.node:
        node.input[:] = [nodes[-1].output[0] if name == "images" else name for name in node.input]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _given(model: onnx.ModelProto, name: str, values: list[int]) -> None:
    data = np.array(values, np.int64).tobytes()
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], data, raw=True))


def test_no_value_is_huge(int4: Path) -> None:
    def expand(model: onnx.ModelProto) -> None:
        _given(model, "much", [1 << 40, 3, 32, 32])
        _before(
            model,
            helper.make_node("Slice", ["images", "zero", "one", "zero"], ["few"], name="few"),
            helper.make_node("Expand", ["few", "much"], ["huge"], name="huge"),
        )
        _given(model, "zero", [0])
        _given(model, "one", [1])

    def tile(model: onnx.ModelProto) -> None:
        _given(model, "much", [1 << 30, 1, 1, 1])
        _before(model, helper.make_node("Tile", ["images", "much"], ["huge"], name="huge"))

    def double(model: onnx.ModelProto) -> None:
        names = ["images", *(f"twice{index}" for index in range(40))]
        _before(
            model,
            *(helper.make_node("Concat", [a, a], [b], name=b, axis=0) for a, b in itertools.pairwise(names)),
        )

    def values(model: onnx.ModelProto) -> None:
        _given(model, "much", [1])
        model.graph.initializer[-1].dims[:] = [1 << 40]
        _before(model, helper.make_node("Tile", ["images", "much"], ["huge"], name="huge"))

    for edit in (expand, tile, double):
        assert "has the shape" in _refused(int4, edit)
    assert "not as many values as its shape says" in _refused(int4, values)


def test_images_that_take_all_memory_are_refused(int4: Path) -> None:
    def large(model: onnx.ModelProto) -> None:
        """The model sees their first corner."""
        sides = model.graph.input[0].type.tensor_type.shape.dim[2:]
        _given(model, "starts", [0, 0])
        _given(model, "ends", [side.dim_value for side in sides])
        _given(model, "axes", [2, 3])
        for side in sides:
            side.dim_value = 1_000_000
        _before(model, helper.make_node("Slice", ["images", "starts", "ends", "axes"], ["corner"], name="corner"))

    assert "its images have the shape [3, 1000000, 1000000]" in _refused(int4, large)


def test_versions_ends_and_metadata(int4: Path) -> None:
    def set_to(path: str, value: object) -> Edit:
        def edit(model: onnx.ModelProto) -> None:
            *parents, name = path.split(".")
            part: object = model
            for parent in parents:
                part = part[int(parent)] if parent.isdigit() else getattr(part, parent)  # type: ignore[index]
            setattr(part, name, value)

        return edit

    side = "graph.input.0.type.tensor_type.shape.dim.1.dim_value"
    expected = {
        "IR version": set_to("ir_version", 1 << 40),
        "opset 20": set_to("opset_import.0.version", 21),
        "images and logits": set_to("graph.input.0.name", "pixels"),
        "another type or shape": set_to("graph.input.0.type.tensor_type.elem_type", TensorProto.STRING),
        "have the shape": set_to(side, 1 << 40),
        "metadata are not ours": set_to("metadata_props.0.key", "acme"),
        "`doc_string`, which is never": set_to("graph.doc_string", "x"),
        "`metadata_props`, which is never": lambda model: model.graph.node[0].metadata_props.add(key="x") and None,
        "`training_info`, which is never": lambda model: model.training_info.add() and None,
        "`sparse_initializer`, which is never": lambda model: model.graph.sparse_initializer.add() and None,
        "more than 512 characters": set_to("graph.node.3.name", "n" * (1 << 20)),
    }
    for match, edit in expected.items():
        assert match in _refused(int4, edit), match


# What is large costs little


def _length(count: int) -> bytes:
    found = b""
    while count > 127:
        found, count = found + bytes([count & 127 | 128]), count >> 7
    return found + bytes([count])


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _length(len(data)) + data


def _nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):  # a graph in an attribute of a node of a graph
        graph = _field(1, _field(5, _field(6, graph)))
    return graph


def test_bytes_beyond_the_limits_are_refused_before_they_are_parsed(int4: Path) -> None:
    def behind(graph: bytes) -> Edit:
        return lambda model: model.SerializeToString() + _field(7, graph)

    assert f"more than {MAX_NODES:,} nodes" in _refused(int4, behind(_field(1, b"") * 1_000_000))
    assert f"more than {MAX_FIELDS:,} fields" in _refused(int4, behind(_field(5, b"") * 1_000_000))
    assert f"more than {MAX_STRUCTURE:,} bytes" in _refused(int4, behind(_field(2, b"x" * (8 << 20))))
    assert "DecodeError" in _told(int4, behind(_nested(2_000)))
    assert "cut off" in _refused(int4, lambda model: model.SerializeToString()[:-5])
    assert "mean nothing" in _refused(int4, lambda model: model.SerializeToString() + b"\xfa\x7f\x03abc")
    assert "opset 20" in _refused(int4, lambda model: model.SerializeToString() * 2)
    for data in (b"", b"\0" * 100, b"\xff" * 100, b"{}"):
        assert _refused(int4, lambda model, data=data: data or b" ")


def _told(folder: Path, edit: Edit) -> str:
    """The kind of the error that a file's damage came from."""
    model = onnx.load(folder / MODEL_FILE, load_external_data=False)
    data = edit(model)
    assert data is not None
    with pytest.raises(Exception) as caught:
        check_model(data, PackedFile.open(folder / WEIGHTS_FILE))
    return type(caught.value).__name__


def test_memory_is_bounded(int4: Path, tmp_path: Path) -> None:
    """The largest structure of the smallest messages that is still parsed."""
    model = onnx.load(int4 / MODEL_FILE, load_external_data=False)
    model.graph.node[0].attribute.extend([onnx.AttributeProto()] * (MAX_STRUCTURE // 2 - 50_000))
    shutil.copytree(int4, tmp_path / "bundle")
    (tmp_path / "bundle" / MODEL_FILE).write_bytes(model.SerializeToString())
    code = (
        "import sys, pathlib\n"
        "from qvec_deploy.bundle.verify import check_graph, read_graph\n"
        "from qvec_deploy.errors import IntegrityError\n"
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(next(l for l in status.read_text().splitlines() if l.startswith('VmHWM')).split()[1])\n"
        "check_graph(pathlib.Path(sys.argv[1]))\n"
        "before = peak()\n"
        "try:\n    check_graph(pathlib.Path(sys.argv[2]))\nexcept IntegrityError:\n    print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(int4), str(tmp_path / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 1 << 20  # kilobytes


def test_it_is_told_as_damage_of_the_file(int4: Path, tmp_path: Path) -> None:
    shutil.copytree(int4, tmp_path / "bundle")
    model = onnx.load(int4 / MODEL_FILE, load_external_data=False)
    _place("offset", "8")(model)
    (tmp_path / "bundle" / MODEL_FILE).write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match=r"model\.onnx is damaged: .* is not where, or not what") as caught:
        check_graph(tmp_path / "bundle")
    assert caught.value.hint == "build or copy the bundle again"
