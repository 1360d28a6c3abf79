"""Observes the real bindings and our plugins in them; writes JSON, judges nothing. Runs in a child process.

`names RESULT FILE...`: names in sources, and registration without a registry.
`protocol RESULT CASES`: what a builder asks of a plugin, from its creation to its kernel.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import doubles
import numpy as np
import tensorrt as trt
import tensorrt.plugin as trtp
from names import CONVENTION, check_source
from tensorrt.plugin._lib import QDP_CREATORS, QDP_REGISTRY, _TemplatePluginCreator

from qvec_deploy.runtimes.kernels.ahead import assemble
from qvec_deploy.runtimes.kernels.plugins import plugin_errors, register_plugins

AOT = trt.QuickPluginCreationRequest.STRICT_AOT


def outcome(function: Callable[[], Any]) -> Any:
    """What a call returns, or the error it raises, as text."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the observation
        return f"{type(error).__name__}: {error}"


def names(files: list[str]) -> dict[str, Any]:
    """Names in sources, and what lazy registration leaves in the bindings."""
    used: dict[str, list[str]] = {}
    problems: list[str] = []
    for file in files:
        convention = CONVENTION if "kernels" not in Path(file).parts else {}  # a `config` there is of ours
        found = check_source(Path(file).read_text(encoding="utf-8"), file, trt, trtp, convention)
        used[file] = sorted(found.used)
        problems += found.problems
    register_plugins(lazy=True)
    register_plugins(lazy=True)
    return {
        "used": used,
        "problems": problems,
        "registry": str(trt.get_plugin_registry()),
        "creators": sorted(QDP_CREATORS),
        "plugins": {
            name: {
                "inputs": plugin.input_tensor_names,
                "attributes": {key: kind.__name__ for key, kind in plugin.input_attrs.items()},
                "autotune": plugin.autotune_attr_names,
                "aot": plugin.aot_impl_attr_names,
                "jit": plugin.impl_func is not None,
                "outputs": plugin.num_outputs,
                "callable": callable(getattr(trtp.op.qvec, name.partition("::")[2])),
            }
            for name, plugin in QDP_REGISTRY.items()
        },
        "number": outcome(number_attribute),
        "subset": outcome(subset_of_attributes),
    }


def number_attribute() -> int:
    """What becomes of an attribute that is a number."""

    @trtp.register("probe::number", lazy_register=True)
    def describe(x: trtp.TensorDesc, size: int) -> trtp.TensorDesc:
        return x.like()

    @trtp.aot_impl("probe::number")
    def implement(
        x: trtp.TensorDesc, size: int, outputs: tuple[trtp.TensorDesc], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        raise NotImplementedError

    creator = _TemplatePluginCreator("number", "probe", {"size": (True, int)})
    field = trt.PluginField("size", np.array([7], np.int64), trt.PluginFieldType.INT64)
    plugin = creator.create_plugin("number", "probe", trt.PluginFieldCollection([field]), trt.TensorRTPhase.BUILD, AOT)
    return int(plugin.attrs["size"])


def subset_of_attributes() -> str:
    """What becomes of an implementation that takes one of two attributes."""

    @trtp.register("probe::subset", lazy_register=True)
    def describe(x: trtp.TensorDesc, cfg: str, more: str) -> trtp.TensorDesc:
        return x.like()

    @trtp.aot_impl("probe::subset")
    def implement(x, cfg, outputs, tactic) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:  # type: ignore[no-untyped-def]
        return "", "", trtp.KernelLaunchParams(), trtp.SymIntExprs(0)

    creator = _TemplatePluginCreator("subset", "probe", {"cfg": (True, str), "more": (True, str)})
    fields = [trt.PluginField(name, b"a\0", trt.PluginFieldType.CHAR) for name in ("cfg", "more")]
    plugin = creator.create_plugin("subset", "probe", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD, AOT)
    doubles.install()
    shape = [doubles.Expression("m", 4, False), doubles.Expression("8", 8, True)]
    doubles.shapes(plugin, [(trt.float16, shape)])
    tensors = [doubles.descriptor(trt.float16, [4, 8])] * 2
    doubles.compiled(plugin, tensors, 1, 0)
    return "it was called"


def protocol(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Eager registration and, for each case, everything a builder asks up to the kernel."""
    registry = doubles.Registry()
    trt.get_plugin_registry = lambda: registry
    register_plugins()
    register_plugins()
    doubles.install()
    return {
        "creators": [
            [each.name, each.plugin_version, each.plugin_namespace, [field.name for field in each.field_names]]
            for each in registry.creators
        ],
        "cases": {case["id"]: outcome(lambda case=case: replay(registry, case)) for case in cases},
    }


def replay(registry: doubles.Registry, case: dict[str, Any]) -> dict[str, Any]:
    """One node, from its attributes to its PTX. A dimension given as text `m=2` is not known to be constant."""
    with plugin_errors():
        plugin = doubles.create(registry.get_creator(case["op"], "1", "qvec"), case["op"], case["cfg"], AOT)
        inputs, concrete = [], []
        for kind, shape in case["inputs"]:
            expressions = []
            for size in shape:
                text, _, value = size.rpartition("=") if isinstance(size, str) else ("", "", size)
                expressions.append(doubles.Expression(text or str(value), int(value), not text))
            inputs.append((getattr(trt, kind), expressions))
            concrete.append(doubles.descriptor(inputs[-1][0], [each.value for each in expressions]))
        # As printed by TensorRT and swallowed: `plugin_errors` must bring it back.
        outcome_of_shapes = outcome(lambda: doubles.shapes(plugin, inputs))
        if isinstance(outcome_of_shapes, str):
            return {"unreached": outcome_of_shapes}
        (output,) = outcome_of_shapes
        (kind,) = plugin.output_types
        tensors = [*concrete, doubles.descriptor(kind, [each.value for each in output])]
        formats, tactics = doubles.offered(plugin, tensors, len(inputs))
        kernel = doubles.compiled(plugin, tensors, len(inputs), tactics[case["tactic"]])
        return {
            "attribute": plugin.attrs["cfg"],
            "output": [kind.name, [each.text for each in output]],
            "formats": formats,
            "tactics": tactics,
            "kernel": kernel,
            "registers": {sm: assemble(kernel["ptx"].encode(), sm).registers for sm in case["sm"]},
        }


if __name__ == "__main__":
    mode, result, *arguments = sys.argv[1:]
    found = names(arguments) if mode == "names" else protocol(json.loads(Path(arguments[0]).read_text()))
    found |= {"version": trt.__version__, "numpy": np.__version__}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
