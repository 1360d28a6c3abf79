"""What a graph and the TensorRT plugin agree on: names, and the attribute that says how a weight is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.ahead import BASELINE_SM
from qvec_deploy.runtimes.kernels.layouts import DeviceLayout, layout_named

NAMESPACE, VERSION = "qvec", "1"
"""Node attributes `plugin_namespace` and `plugin_version`; TensorRT knows quickly deployable plugins as version 1."""

LINEAR = "QvecLinear"
"""The plugin, and the operator of its nodes: inputs (x, qweight, scale, bias).

x is float16 or bfloat16; qweight int32, the words of a device layout; scale (rows, groups) float32; bias (rows,) of
x's type. The output is y (..., rows), of x's type.
"""

CONFIG = "cfg"
"""Its one attribute: the text of a `PluginConfig`."""


@dataclass(frozen=True)
class PluginConfig:
    """How the weight of a node is stored, and for which GPUs its kernel is compiled.

    It is one string because TensorRT hands over numbers badly: before release 11, with NumPy 2.4, not at all.

    Attributes:
        layout: Id of the device layout of the words.
        group_size: Weights that share a scale; 0 is a scale per row.
        sm: Lowest architecture that the kernel runs on.
    """

    layout: str
    layout_version: int
    bits: int
    rows: int
    columns: int
    group_size: int = 0
    sm: int = BASELINE_SM

    def __str__(self) -> str:
        """The value of the attribute."""
        return ";".join(f"{name}={value}" for name, value in asdict(self).items())

    @classmethod
    def parse(cls, text: str) -> PluginConfig:
        """Read what `str` wrote; TensorRT's ONNX parser puts a NUL behind strings."""
        values: dict[str, Any] = {}
        for part in text.rstrip("\0").split(";"):
            name, _, value = part.partition("=")
            values[name] = value if name == "layout" else int(value) if value.isdecimal() else None
        if list(values) != list(cls.__dataclass_fields__) or None in values.values():
            raise IncompatibleError(
                f"a plugin's `{CONFIG}` is {text!r}, not {list(cls.__dataclass_fields__)}",
                hint="lower the bundle again with this version",
            )
        config = cls(**values)
        if not config.device_layout.takes(config.rows, config.columns, config.bits, config.group_size):
            raise IncompatibleError(
                f"layout {config.layout} takes no weight as in `{config}`",
                hint="lower the bundle again with this version",
            )
        return config

    @property
    def device_layout(self) -> DeviceLayout:
        """The layout of the words."""
        return layout_named(self.layout, self.layout_version)

    @property
    def words_shape(self) -> tuple[int, int]:
        """Shape of the qweight input."""
        return self.device_layout.words_shape(self.rows, self.columns, self.bits)

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of the scale input."""
        return self.rows, self.columns // self.group_size if self.group_size else 1
