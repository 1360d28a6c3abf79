"""Our code and NVIDIA's real Python bindings of TensorRT agree, as far as can be seen without TensorRT's libraries.

The bindings of two releases are installed into scratch folders; the nine functions that they link to are stubs that do
nothing. So names, enums, signatures and all Python code of `tensorrt.plugin` are NVIDIA's own, and the protocol that a
builder follows is replayed with doubles for four C++ types: dimension expressions, their builder, kernel arguments and
the plugin registry.

What this cannot show, and `scripts/check_tensorrt` checks on a machine that has TensorRT and a GPU:

- that TensorRT's ONNX parser prefers the plugin to the function body, and hands attributes over as replayed here;
- that a builder follows the protocol as replayed here, and what it makes of an exception in a plugin;
- that TensorRT loads the PTX, passes arguments in the order inputs, integers, output, and aligns tensors to 16 bytes;
- that the engine keeps weights at their packed size, folds nothing, and runs without Python;
- anything about speed, tactic choice, timing caches, CUDA graphs or memory.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tensorrt_stub.scratch import NO_REGISTRY, scratch

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.ahead import SHARED_LIMIT, TILES, Tile
from qvec_deploy.runtimes.kernels.layouts import LAYOUTS
from qvec_deploy.runtimes.kernels.plugin_config import LINEAR, NAMESPACE, VERSION, PluginConfig
from qvec_deploy.runtimes.kernels.plugins import plugin_errors, register_plugins, tactics
from qvec_deploy.runtimes.tensorrt.tensorrt_linear import to_packed
from qvec_deploy.tensors import QuantizedTensor, Scheme

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OBSERVE = Path(__file__).parent / "tensorrt_stub" / "observe.py"
RELEASES = ("10.16.1.11", "11.4.0.106")
SOURCES = [
    ROOT / "qvec_deploy/runtimes/kernels/plugins.py",
    ROOT / "qvec_deploy/runtimes/tensorrt/plugin_library.py",
    *sorted((ROOT / "qvec_deploy/runtimes/tensorrt").rglob("tensorrt*.py")),
    *(path for path in sorted((ROOT / "scripts").glob("*tensorrt*")) if b"bash" not in path.read_bytes()[:30]),
]
RTX_ONLY = {
    f"{name} does not exist"
    for name in (
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
        "trt.ComputeCapability",
    )
}
"""Names of TensorRT for RTX alone, whose real library tests/contract/test_tensorrt_rtx.py builds with."""
TYPES = {TensorProto.INT32: "int32", TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}

LINEAR_P32 = PluginConfig("p32", 1, 3, 768, 768)
LINEAR_ROWS = PluginConfig("rows", 1, 3, 576, 192)
LINEAR_GROUPS = PluginConfig("p32", 1, 4, 64, 256, group_size=128)


def linear(config: PluginConfig, x: list[int | str], kind: str = "float16") -> list[Any]:
    """Types and shapes of the inputs of `QvecLinear`."""
    bias = [kind, [config.rows]]
    return [[kind, x], ["int32", config.words_shape], ["float32", config.scale_shape], bias]


def case(name: str, op: str, config: PluginConfig | str, inputs: list[Any], tactic: int = 0) -> dict[str, Any]:
    """A node for the child.

    Sizes such as `b=2` are not constant; `tactic` counts those that are offered; `sm` is what its PTX is assembled for.
    """
    return {"id": name, "op": op, "cfg": str(config), "inputs": inputs, "tactic": tactic, "sm": (80, 90, 120)}


CASES = [
    case("p32", LINEAR, LINEAR_P32, linear(LINEAR_P32, ["b=2", 197, 768]), 2),
    case("rows", LINEAR, LINEAR_ROWS, linear(LINEAR_ROWS, [1, 197, 192], "bfloat16"), 0),
    case("groups", LINEAR, LINEAR_GROUPS, linear(LINEAR_GROUPS, [5, 256]), -1),
    case("float x", LINEAR, LINEAR_P32, linear(LINEAR_P32, [2, 197, 768], "float32")),
    case(
        "half scale", LINEAR, LINEAR_P32, [*linear(LINEAR_P32, [2, 768])[:2], ["float16", [768, 1]], ["float16", [768]]]
    ),
    case("other words", LINEAR, LINEAR_P32, [["float16", [2, 768]], ["int32", [72, 768]], *linear(LINEAR_P32, [])[2:]]),
    case("other x", LINEAR, LINEAR_P32, linear(LINEAR_P32, [2, 197, 384])),
    case("flat x", LINEAR, LINEAR_P32, linear(LINEAR_P32, [768])),
    case("later layout", LINEAR, PluginConfig("p32", 2, 3, 768, 768), linear(LINEAR_P32, [2, 768])),
    case("no fields", LINEAR, "bits=3", linear(LINEAR_P32, [2, 768])),
]


def lowered_case() -> tuple[onnx.NodeProto, dict[str, Any]]:
    """A node as the lowering writes it, and the same as TensorRT's parser reads it."""
    generator = np.random.default_rng(0)
    codes = generator.integers(-4, 4, (128, 256), dtype=np.int8)
    tensor = QuantizedTensor(codes, generator.uniform(0.1, 1, (128, 1)).astype(np.float32), Scheme(3, "channel"))
    stored = helper.make_node("QvecLinear", ["x", "fc.weight", "fc.weight.scale", "fc.bias"], ["y"], K=256, N=128)
    lowered = to_packed(stored, tensor, None)
    (node,) = lowered.nodes
    known = {each.name: [TYPES[each.data_type], list(each.dims)] for each in lowered.tensors}
    known |= {"x": ["float16", ["b=4", 16, 256]], "fc.bias": ["float16", [128]]}
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return node, case("lowered", node.op_type, attributes["cfg"].decode(), [known[name] for name in node.input])


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> Path:
    """The scratch folder of one release."""
    cache = request.config.cache
    assert cache is not None
    return scratch(cache.mkdir("tensorrt-bindings"), request.param)


@pytest.fixture(scope="module")
def names(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was observed of names and of lazy registration."""
    return observe(release, tmp_path_factory.mktemp("names"), "names", *map(str, SOURCES))


@pytest.fixture(scope="module")
def protocol(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was observed of eager registration and of every case."""
    folder = tmp_path_factory.mktemp("protocol")
    (folder / "cases.json").write_text(json.dumps([*CASES, lowered_case()[1]]), encoding="utf-8")
    return observe(release, folder, "protocol", str(folder / "cases.json"))


def observe(release: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    mode, *rest = arguments
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "LD_LIBRARY_PATH": str(release / "lib"),
        "PYTHONPATH": os.pathsep.join([str(release / "python"), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(OBSERVE), mode, str(folder / "observed.json"), *rest],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    observed: dict[str, Any] = json.loads((folder / "observed.json").read_text(encoding="utf-8"))
    return observed


def test_every_name_exists(release: Path, names: dict[str, Any]) -> None:
    assert names["version"] in release.name
    assert [text for text in names["problems"] if text.rpartition(": ")[2] not in RTX_ONLY] == []
    used = {name for names_of_file in names["used"].values() for name in names_of_file}
    assert {"tensorrt.plugin.aot_impl", "KernelLaunchParams.shared_mem", "IPluginRegistry.get_creator"} <= used
    assert {"OnnxParser.parse_from_file", "Builder.build_serialized_network", "BuilderFlag.VERSION_COMPATIBLE"} <= used
    assert {"ICudaEngine.create_execution_context", "IExecutionContext.execute_async_v3"} <= used


def test_a_wrong_name_is_found(release: Path, tmp_path: Path) -> None:
    """The scan above can fail: each line of this file is one mistake."""
    mistakes = [
        "trt.BuilderFlag.NO_SUCH_FLAG",
        "trt.Builder(trt.Logger()).create_network(1, 2, 3)",
        "trt.Builder(trt.Logger()).create_builder_config().no_such_method()",
        "builder.create_network(no_such_argument=1)",
        "trtp.cdiv(1)",
        "self._engine.no_such_property",
    ]
    lines = ["import tensorrt as trt", "import tensorrt.plugin as trtp", "def build(self, builder):"]
    source = tmp_path / "mistakes.py"
    source.write_text("\n".join([*lines, *(f"    {line}" for line in mistakes)]), encoding="utf-8")
    problems = observe(release, tmp_path, "names", str(source))["problems"]
    assert [re.search(r":(\d+):", problem)[1] for problem in problems] == [str(4 + i) for i in range(len(mistakes))]  # type: ignore[index]


def test_plugins_register_lazily(names: dict[str, Any]) -> None:
    """Without a registry, as here, only lazy registration is possible; the ONNX parser needs the other, see below."""
    assert (names["registry"], names["creators"]) == ("None", [])
    common = {"attributes": {"cfg": "str"}, "jit": False, "outputs": 1, "callable": True}
    plugin = names["plugins"][f"{NAMESPACE}::{LINEAR}"]
    assert plugin["inputs"] == ["x", "qweight", "scale", "bias"]
    assert {key: plugin[key] for key in common} == common


def test_all_attributes_rule(names: dict[str, Any]) -> None:
    """An implementation that leaves an attribute out passes validation and fails in the build; ours have them all."""
    assert "takes 4 positional arguments but 5 were given" in names["subset"]
    plugin = names["plugins"][f"{NAMESPACE}::{LINEAR}"]
    assert plugin["aot"] == plugin["autotune"] == list(plugin["attributes"])


def test_number_attributes_and_numpy(names: dict[str, Any]) -> None:
    """Releases before 11 do not convert numbers with NumPy from 2.4 on, which is why all of ours are in one string."""
    numpy = tuple(int(part) for part in names["numpy"].split(".")[:2])
    if names["version"].startswith("10.") and numpy >= (2, 4):
        assert names["number"] == "TypeError: only 0-dimensional arrays can be converted to Python scalars"
    else:
        assert names["number"] == 7
    assert set(names["plugins"][f"{NAMESPACE}::{LINEAR}"]["attributes"].values()) == {"str"}


def test_trailing_nul(protocol: dict[str, Any]) -> None:
    """Strings reach the plugin with the NUL that the ONNX parser puts behind them."""
    assert protocol["cases"]["p32"]["attribute"] == f"{LINEAR_P32}\0"
    assert PluginConfig.parse(f"{LINEAR_P32}\0") == PluginConfig.parse(str(LINEAR_P32)) == LINEAR_P32


def test_creators_are_what_nodes_ask_for(protocol: dict[str, Any]) -> None:
    """Op type, version and namespace are how the parser finds a plugin, its field names what it passes on."""
    assert protocol["creators"] == [[LINEAR, VERSION, NAMESPACE, ["cfg"]]]
    node, _ = lowered_case()
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert [node.op_type, attributes["plugin_version"].decode(), attributes["plugin_namespace"].decode()] == [
        LINEAR,
        VERSION,
        NAMESPACE,
    ]
    assert attributes["aot"] == 1


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("p32", "HALF", ["(b + 0)", "197", "768"]),
        ("rows", "BF16", ["1", "197", "576"]),
        ("groups", "HALF", ["5", "64"]),
        ("lowered", "HALF", ["(b + 0)", "16", "128"]),
    ],
)
def test_types_and_shapes(protocol: dict[str, Any], name: str, kind: str, shape: list[str]) -> None:
    """The output's type and shape, and the one combination of types and formats that is offered."""
    observed = protocol["cases"][name]
    assert observed["output"] == [kind, shape]
    assert observed["formats"] == [f"{each} LINEAR" for each in (kind, "INT32", "FLOAT", kind, kind)]


def test_tactics_are_the_tiles(protocol: dict[str, Any]) -> None:
    cases = protocol["cases"]
    for name, config in (("p32", LINEAR_P32), ("rows", LINEAR_ROWS), ("groups", LINEAR_GROUPS)):
        assert cases[name]["tactics"] == list(tactics(config))
        assert list(tactics(config).values()) == list(TILES)
    numbers = [number for name in ("p32", "rows", "groups") for number in cases[name]["tactics"]]
    assert len(numbers) == len(set(numbers))  # the timing cache must not take one for another
    assert all(0 < number < 2**31 for number in numbers)


@pytest.mark.parametrize(
    ("name", "m", "weight", "tile"),
    [
        ("p32", ["(b * 197)", 394], (768, 768), TILES[2]),
        ("rows", ["197", 197], (576, 192), TILES[0]),
        ("groups", ["5", 5], (64, 256), TILES[-1]),
        ("lowered", ["(b * 16)", 64], (128, 256), TILES[0]),
    ],
)
def test_launch_of_linear(
    protocol: dict[str, Any], name: str, m: list[Any], weight: tuple[int, int], tile: Tile
) -> None:
    """The grid covers the output, whatever the batch; integers are those the kernel has between inputs and output."""
    kernel = protocol["cases"][name]["kernel"]
    blocks = -(-m[1] // tile.rows)
    text = f"({m[0]} ceil/ {tile.rows})" if "b" in m[0] else str(blocks)
    assert kernel["launch"]["grid_x"] == [text, blocks]
    assert kernel["launch"]["grid_y"][1] == -(-weight[0] // tile.columns)
    assert kernel["launch"]["block_x"][1] == 32 * tile.warps
    assert [value for _, value in kernel["arguments"]] == [m[1], *weight]
    assert kernel["arguments"][0][0] == m[0]


@pytest.mark.parametrize("name", ["p32", "rows", "groups", "lowered"])
def test_launch_fits_the_kernel(protocol: dict[str, Any], name: str) -> None:
    """Threads are what the PTX declares, and shared memory is what any launch may have."""
    kernel = protocol["cases"][name]["kernel"]
    launch = kernel["launch"]
    assert [launch[key][1] for key in ("grid_z", "block_y", "block_z")] == [1, 1, 1]
    dynamic = ".extern .shared" in kernel["ptx"]
    assert (launch["shared_mem"][1] > 0) == dynamic
    assert launch["shared_mem"][1] <= SHARED_LIMIT
    (declared,) = re.findall(r"\.(?:req|max)ntid\s+(\d+)", kernel["ptx"])
    assert launch["block_x"][1] == int(declared)


@pytest.mark.parametrize("name", ["p32", "rows", "groups", "lowered"])
def test_ptx_is_accepted(protocol: dict[str, Any], name: str) -> None:
    """ptxas takes it for its own architecture and for later ones, and it has no parameter that nobody passes."""
    observed = protocol["cases"][name]
    kernel = observed["kernel"]
    ptx: str = kernel["ptx"]
    assert observed["registers"].keys() == {"80", "90", "120"}
    assert all(0 < registers <= 255 for registers in observed["registers"].values())
    (parameters,) = re.findall(rf"\.entry {kernel['name']}\(([^)]*)\)", ptx)
    kinds = re.findall(r"\.param \.(u64|u32)", parameters)
    inputs = len(observed["formats"]) - 1
    assert kinds == ["u64"] * inputs + ["u32"] * len(kernel["arguments"]) + ["u64"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float x", "x is DataType.FLOAT"),
        ("half scale", "scale is DataType.HALF"),
        ("other words", r"qweight is DataType.INT32 \[72, 768\]; the kernel takes DataType.INT32 \[144, 384\]"),
        ("other x", r"x is DataType.HALF \[2, 197, 384\]"),
        ("flat x", "x has 1 axes"),
        ("later layout", "p32"),
        ("no fields", "cfg"),
    ],
)
def test_errors_come_back(protocol: dict[str, Any], name: str, message: str) -> None:
    """What a plugin refuses reaches the caller as it was raised, though TensorRT only prints it."""
    assert re.match(f"IncompatibleError: .*{message}", protocol["cases"][name])


@pytest.mark.parametrize(("expected", "outcome"), [("0", pytest.fail.Exception), ("1", pytest.skip.Exception)])
def test_no_registry_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv(NO_REGISTRY, expected)
    with pytest.raises(outcome, match=f"tensorrt-cu13-bindings=={RELEASES[0]} cannot") as caught:
        scratch(tmp_path, RELEASES[0])
    assert NO_REGISTRY in str(caught.value)


def test_plugin_errors_without_errors() -> None:
    """Nothing is raised where no plugin did, and other errors pass."""
    with plugin_errors():
        pass
    with pytest.raises(ValueError, match="of the caller"), plugin_errors():
        raise ValueError("of the caller")


def test_registration_needs_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(IncompatibleError, match="cannot be imported"):
        register_plugins()


@pytest.mark.parametrize("layout", list(LAYOUTS.values()), ids=lambda layout: layout.id)
def test_config_round_trip(layout: Any) -> None:
    for bits in (2, 3, 4):
        config = PluginConfig(layout.id, layout.version, bits, 128, 256, 64)
        assert PluginConfig.parse(str(config)) == config
        assert config.words_shape == layout.pack(np.zeros((128, 256), np.int8), bits).shape
        assert config.scale_shape == (128, 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "layout=p32",
        f"{LINEAR_P32};more=1",
        str(LINEAR_P32).replace("bits=3", "bits=-3"),
        str(LINEAR_P32).replace("bits=3", "bits=9"),
        str(LINEAR_P32).replace("rows=768", "rows=100"),
        str(LINEAR_P32).replace("p32", "p64"),
        str(LINEAR_P32).replace("layout_version=1", "layout_version=2"),
        ";".join(reversed(str(LINEAR_P32).split(";"))),
    ],
)
def test_config_refuses(text: str) -> None:
    with pytest.raises(IncompatibleError):
        PluginConfig.parse(text)
