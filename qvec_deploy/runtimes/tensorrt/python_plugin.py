"""The operator as a plugin in Python, for TensorRT for RTX, which takes none that is compiled ahead. Experimental.

NVIDIA says that plugins are not supported there. The builder takes this one all the same (1.7.1); at run time it
launches the bundle's compiled kernels, which nobody has seen on a GPU yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.scratch import scratch_folder
from qvec_deploy.runtimes.cuda_driver import Cuda
from qvec_deploy.runtimes.kernels.ahead import Compiled, usual_tile
from qvec_deploy.runtimes.kernels.kernel_file import CompiledKernels
from qvec_deploy.runtimes.kernels.plugin_config import CONFIG, LINEAR, NAMESPACE, VERSION, PluginConfig
from qvec_deploy.runtimes.kernels.plugins import remembered

NAME = "libtensorrt_rtx.so"
"""Where the parser looks plugins up. NVIDIA's wheel gives the library another name, and the parser then aborts."""

_PACKAGE, _LIBRARY = "tensorrt_rtx_libs", "libtensorrt_rtx.so.1"

Launch = Callable[[PluginConfig, int, Sequence[int], int], None]
"""Starts the kernel of a weight: rows of x, addresses of x, words, scale, bias and y, and the stream."""

_creators: list[Any] = []
_launches: list[Launch] = []


class KernelLauncher:
    """Starts a bundle's kernels on a GPU; each is loaded when it is first needed."""

    def __init__(self, kernels: CompiledKernels, cuda: Cuda) -> None:
        self._kernels, self._cuda = kernels, cuda
        self._functions: dict[bytes, int] = {}

    def __call__(self, config: PluginConfig, m: int, addresses: Sequence[int], stream: int) -> None:
        """As `Launch`."""
        if not m:
            return
        kernel = self._kernels.find(config, usual_tile(m))
        *inputs, y = (ctypes.c_uint64(address) for address in addresses)
        sizes = (ctypes.c_int32(size) for size in (m, config.rows, config.columns))
        self._cuda.launch(
            self._function(kernel),
            kernel.grid(m),
            kernel.threads,
            kernel.shared_bytes,
            (*inputs, *sizes, y),
            stream,
        )

    def _function(self, kernel: Compiled) -> int:
        if kernel.ptx not in self._functions:
            self._functions[kernel.ptx] = self._cuda.load_kernel(kernel.ptx, kernel.name)
        return self._functions[kernel.ptx]


@contextlib.contextmanager
def library_folder() -> Iterator[Path]:
    """A folder with the library under the name that the parser looks for, for LD_LIBRARY_PATH of a new process."""
    found = importlib.util.find_spec(_PACKAGE)
    places = [Path(place) / _LIBRARY for place in (found and found.submodule_search_locations) or ()]
    here = next((place for place in places if place.is_file()), None)
    if here is None:
        raise IncompatibleError(f"{_LIBRARY} of TensorRT for RTX is not where its wheel puts it", hint=_HINT)
    with scratch_folder("rtx") as folder:
        (folder / NAME).symlink_to(here)
        yield folder


def register_python_plugin(trt: Any, launch: Launch | None = None) -> None:
    """Make the plugin known to TensorRT for RTX; a later call changes what it launches.

    Args:
        launch: What starts kernels; None where engines are built and not run.

    Raises:
        IncompatibleError: The parser would abort this process, or the plugin is not taken.
    """
    if launch is None:
        _require_name()
    if not _creators:
        creator = _make_creator(trt)
        if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
            raise IncompatibleError(f"TensorRT for RTX {trt.__version__} does not take our plugin", hint=_HINT)
        _creators.append(creator)
    _launches[:] = [] if launch is None else [launch]


_HINT = "use the lowering `int4`, which needs no plugin"


def _require_name() -> None:
    try:
        ctypes.CDLL(NAME)
    except OSError as error:
        raise IncompatibleError(
            f"the parser of TensorRT for RTX finds plugins in a library named {NAME} and aborts without: {error}",
            hint="build in a process of its own, as `qvec-deploy build` and `compile` do, or use the lowering `int4`",
        ) from error


class _LinearPlugin:
    """What TensorRT asks of a plugin; its bases are TensorRT's, which are there only once that is imported."""

    trt: ClassVar[Any]

    def __init__(self, config: PluginConfig) -> None:
        _initialise(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = LINEAR, VERSION, NAMESPACE
        self.num_outputs, self.config = 1, config
        self.text = str(config).encode()  # with the fields kept alive: TensorRT only borrows them
        self.fields = [self.trt.PluginField(CONFIG, self.text, self.trt.PluginFieldType.CHAR)]
        self.collection = self.trt.PluginFieldCollection(self.fields)

    def clone(self) -> Any:
        return type(self)(self.config)

    def attach_to_context(self, context: Any) -> Any:
        return self.clone()

    def get_capability_interface(self, kind: Any) -> Any:
        return self

    def get_fields_to_serialize(self) -> Any:
        return self.collection

    def get_output_data_types(self, given: Any) -> list[Any]:
        return [given[0]]

    @remembered
    def get_output_shapes(self, inputs: Any, shape_inputs: Any, expressions: Any) -> list[Any]:
        x = inputs[0]
        shape = self.trt.DimsExprs(len(x))
        for axis in range(len(x) - 1):
            shape[axis] = x[axis]
        shape[len(x) - 1] = expressions.constant(self.config.rows)
        return [shape]

    def supports_format_combination(self, position: int, tensors: Any, inputs: int) -> bool:
        half, tensor = self.trt.float16, tensors[position].desc
        types = (half, self.trt.int32, self.trt.float32, half, half)
        return bool(tensor.format == self.trt.TensorFormat.LINEAR and tensor.type == types[position])

    @remembered
    def configure_plugin(self, given: Any, made: Any) -> None:
        x, *others = (tuple(each.desc.dims) for each in given)
        config = self.config
        if x[-1:] != (config.columns,) or others != [config.words_shape, config.scale_shape, (config.rows,)]:
            raise IncompatibleError(f"{LINEAR} is given {[x, *others]} for `{config}`", hint="build the bundle again")

    def get_workspace_size(self, given: Any, made: Any) -> int:
        return 0

    def set_tactic(self, tactic: int) -> None:
        """There is one."""

    def on_shape_change(self, given: Any, made: Any) -> None:
        """Nothing depends on it."""

    @remembered
    def enqueue(
        self, given: Any, made: Any, inputs: Sequence[int], outputs: Sequence[int], workspace: int, stream: int
    ) -> None:
        if not _launches:
            raise IncompatibleError("the engine runs where nothing launches its kernels", hint=_HINT)
        _launches[0](self.config, math.prod(tuple(given[0].dims)[:-1]), (*inputs, outputs[0]), stream)


class _LinearCreator:
    """What TensorRT makes plugins by."""

    trt: ClassVar[Any]

    def __init__(self, plugin: Any) -> None:
        _initialise(self)
        self.name, self.plugin_version, self.plugin_namespace = LINEAR, VERSION, NAMESPACE
        self.fields = [self.trt.PluginField(CONFIG, b"", self.trt.PluginFieldType.CHAR)]
        self.field_names = self.trt.PluginFieldCollection(self.fields)
        self.plugin = plugin

    @remembered
    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        (data,) = (field.data for field in fields if field.name == CONFIG)
        return self.plugin(PluginConfig.parse(data if isinstance(data, str) else bytes(data).decode()))


def _initialise(new: Any) -> None:
    """TensorRT's bases want to be initialised each."""
    bases: tuple[Any, ...] = type(new).__bases__[1:]
    for base in bases:
        base.__init__(new)


def _make_creator(trt: Any) -> Any:
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)
    plugin = type("LinearPlugin", (_LinearPlugin, *bases), {"trt": trt})
    creator = type("LinearCreator", (_LinearCreator, trt.IPluginCreatorV3One), {"trt": trt})
    return creator(plugin)
