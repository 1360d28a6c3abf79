"""Stands for the C++ half of TensorRT's plugin protocol: dimension expressions with values, a registry, the builder.

Everything in `tensorrt.plugin` runs as it is; four C++ types that cannot be made without TensorRT's libraries do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tensorrt as trt
import tensorrt.plugin._tensor as plugin_tensor


@dataclass(frozen=True)
class Expression:
    """An integer expression as text over named dimensions, and its value."""

    text: str
    value: int
    constant: bool

    def is_constant(self) -> bool:
        return self.constant

    def get_constant_value(self) -> int:
        return self.value


OPERATIONS = {
    trt.DimensionOperation.SUM: ("+", lambda a, b: a + b),
    trt.DimensionOperation.PROD: ("*", lambda a, b: a * b),
    trt.DimensionOperation.CEIL_DIV: ("ceil/", lambda a, b: -(-a // b)),
}


class Expressions:
    """`IExprBuilder`: what the plugin's arithmetic on shapes becomes."""

    def constant(self, value: int) -> Expression:
        return Expression(str(value), value, True)

    def operation(self, operation: Any, first: Expression, second: Expression) -> Expression:
        sign, compute = OPERATIONS[operation]
        value = compute(first.value, second.value)
        constant = first.constant and second.constant
        return Expression(str(value) if constant else f"({first.text} {sign} {second.text})", value, constant)


class Dimensions(list):
    """`DimsExprs`."""

    def __init__(self, size: int) -> None:
        super().__init__([None] * size)


class Arguments(dict):
    """`ISymExprs`: the kernel's integer arguments."""

    nbSymExprs = 0


class Registry:
    """The plugin registry, which hands back what was put in."""

    def __init__(self) -> None:
        self.creators: list[Any] = []

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self.creators.append(creator)
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        wanted = (name, version, namespace)
        known = {(each.name, each.plugin_version, each.plugin_namespace): each for each in self.creators}
        return known.get(wanted)


def install() -> None:
    """Let the doubles pass for the C++ types. The bindings look these names up when they are used."""
    trt.IDimensionExpr, trt.DimsExprs = Expression, Dimensions
    plugin_tensor.SymExprImpl = lambda expression: expression._expr


def create(creator: Any, name: str, cfg: str, request: Any) -> Any:
    """A plugin as the ONNX parser makes it: string attributes end with NUL."""
    text = cfg.encode() + b"\0"  # a field does not keep its data alive
    fields = trt.PluginFieldCollection([trt.PluginField("cfg", text, trt.PluginFieldType.CHAR)])
    return creator.create_plugin(name, "qvec", fields, trt.TensorRTPhase.BUILD, request)


def shapes(plugin: Any, inputs: list[tuple[Any, list[Expression]]]) -> list[list[Expression]]:
    """Types first and shapes next, as the builder asks for them."""
    plugin.get_output_data_types([kind for kind, _ in inputs], [len(shape) for _, shape in inputs])
    dimensions = []
    for _, shape in inputs:
        dims = Dimensions(len(shape))
        dims[:] = shape
        dimensions.append(dims)
    return plugin.get_output_shapes(dimensions, [], Expressions())


def descriptor(kind: Any, shape: list[int]) -> Any:
    """What the builder tells of a tensor once shapes are known."""
    made = trt.DynamicPluginTensorDesc()
    made.desc.dims, made.desc.type, made.desc.format = trt.Dims(tuple(shape)), kind, trt.TensorFormat.LINEAR
    return made


def offered(plugin: Any, tensors: list[Any], inputs: int) -> tuple[list[str], list[int]]:
    """Types and formats that the plugin offers for its tensors, and the tactics to time.

    The plugin is then configured for the types of `tensors`; tactics are offered for a combination that fits only.
    """
    combinations = plugin.get_supported_format_combinations(tensors, inputs)
    plugin.configure_plugin(tensors[:inputs], tensors[inputs:])
    tactics = plugin.get_valid_tactics()
    return [f"{each.type.name} {each.format.name}" for each in combinations], sorted(tactics)


def compiled(plugin: Any, tensors: list[Any], inputs: int, tactic: int) -> dict[str, Any]:
    """One kernel as the builder takes it: text and value of every launch expression, integer arguments, PTX."""
    plugin.set_tactic(tactic)
    launch, arguments = SimpleNamespace(), Arguments()
    plugin.get_launch_params(None, tensors, inputs, launch, arguments, Expressions())
    name, ptx = plugin.get_kernel([each.desc for each in tensors[:inputs]], [each.desc for each in tensors[inputs:]])
    return {
        "name": name,
        "ptx": ptx.decode(),
        "launch": {key: [value.text, value.value] for key, value in vars(launch).items()},
        "arguments": [[arguments[index].text, arguments[index].value] for index in range(arguments.nbSymExprs)],
    }
