"""The operator as a TensorRT plugin. Its compiled kernels go into the engine, which then needs neither Python nor us.

TensorRT reads the annotations of the functions below when they are registered: they must be objects, not strings.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.kernels.ahead import TILES, Compiled, Float, Tile, compile_ahead
from qvec_deploy.runtimes.kernels.kernel_file import CompiledKernels
from qvec_deploy.runtimes.kernels.layouts import LAYOUTS
from qvec_deploy.runtimes.kernels.plugin_config import LINEAR, NAMESPACE, VERSION, PluginConfig

_raised: list[Exception] = []
_registered: list[str] = []
_compiled: list[CompiledKernels] = []


@contextlib.contextmanager
def plugin_errors(kernels: CompiledKernels | None = None) -> Iterator[None]:
    """Raise what a plugin raised while TensorRT ran within the `with`: TensorRT only prints it.

    Args:
        kernels: What plugins find their kernels in; None has Triton compile them.

    Raises:
        Exception: The first error of a plugin; it takes precedence over whatever TensorRT made of it.
    """
    _raised.clear()
    _compiled[:] = [] if kernels is None else [kernels]
    try:
        yield
    finally:
        errors = list(_raised)
        _raised.clear()
        _compiled.clear()
        if errors:
            raise errors[0]


def register_plugins(*, lazy: bool = False) -> None:
    """Make the plugin known to TensorRT; calling it again does nothing.

    Args:
        lazy: Declare it to TensorRT's Python package only. Its ONNX parser would not find it.
    """
    try:
        import tensorrt as trt
        import tensorrt.plugin as trtp
    except ImportError as error:
        raise IncompatibleError(
            f"TensorRT's plugins cannot be imported: {error}", hint="install TensorRT 10.9 or later"
        ) from error
    if not hasattr(trtp, "aot_impl"):
        raise IncompatibleError(
            f"TensorRT {trt.__version__} takes no compiled plugins",
            hint="install TensorRT 10.9 or later, or use the lowering `int4`",
        )
    if _registered:
        return
    _declare(trt, trtp, lazy)
    if not lazy and trt.get_plugin_registry().get_creator(LINEAR, VERSION, NAMESPACE) is None:
        raise IncompatibleError(
            f"TensorRT {trt.__version__} did not register the plugin {LINEAR}", hint="use the lowering `int4`"
        )
    _registered.append(LINEAR)


def tactics(config: PluginConfig) -> dict[int, Tile]:
    """The tiles that TensorRT times, by positive numbers.

    Its timing cache tells plugins apart by name, shapes, types and tactics but not by attributes, so the numbers say
    everything else that makes a kernel faster or slower.
    """
    kind = (list(LAYOUTS).index(config.layout) * 10 + config.layout_version) * 1000 + config.sm
    return {(kind * 10 + config.bits) * 100 + number: tile for number, tile in enumerate(TILES, start=1)}


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose exceptions are kept for `plugin_errors`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _raised.append(error)
            raise

    return call


def _declare(trt: Any, trtp: Any, lazy: bool) -> None:
    def describe(
        x: trtp.TensorDesc, qweight: trtp.TensorDesc, scale: trtp.TensorDesc, bias: trtp.TensorDesc, cfg: str
    ) -> trtp.TensorDesc:
        config = PluginConfig.parse(cfg)
        _half(trt, x)
        if x.ndim < 2:
            raise IncompatibleError(f"x has {x.ndim} axes; the kernels take 2 or more", hint="lower the bundle again")
        _check("x", x, x.dtype, (None,) * (x.ndim - 1) + (config.columns,))
        _check("qweight", qweight, trt.int32, config.words_shape)
        _check("scale", scale, trt.float32, config.scale_shape)
        _check("bias", bias, x.dtype, (config.rows,))
        y = x.like()
        y.shape_expr[x.ndim - 1] = config.rows
        return y

    def tune(
        x: trtp.TensorDesc,
        qweight: trtp.TensorDesc,
        scale: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        cfg: str,
        outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:
        half = _half(trt, x)
        types = f"{half}, INT32, FP32, {half}, {half}"
        return [trtp.AutoTuneCombination(types, "LINEAR", list(tactics(PluginConfig.parse(cfg))))]

    def make(
        x: trtp.TensorDesc,
        qweight: trtp.TensorDesc,
        scale: trtp.TensorDesc,
        bias: trtp.TensorDesc,
        cfg: str,
        outputs: tuple[trtp.TensorDesc],
        tactic: int,
    ) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        return _kernel(trt, trtp, x, cfg, tactic)

    plugin = f"{NAMESPACE}::{LINEAR}"
    trtp.register(plugin, lazy_register=lazy)(remembered(describe))
    trtp.autotune(plugin)(remembered(tune))
    trtp.aot_impl(plugin)(remembered(make))


def _kernel(trt: Any, trtp: Any, x: Any, cfg: str, tactic: int) -> tuple[str, bytes, Any, Any]:
    """What TensorRT asks of a plugin: a kernel's name, its PTX, how to launch it, and its integer arguments."""
    config = PluginConfig.parse(cfg)
    known = tactics(config)
    if tactic not in known:
        raise IncompatibleError(
            f"TensorRT asks for tactic {tactic} of `{config}`, which has {list(known)}",
            hint="delete the timing cache: another version wrote it",
        )
    kernel = _compile(config, known[tactic], "float16" if _half(trt, x) == "FP16" else "bfloat16")
    m = x.shape_expr[0]
    for axis in range(1, x.ndim - 1):
        m *= x.shape_expr[axis]
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y = trtp.cdiv(m, kernel.tile.rows), kernel.column_blocks
    params.block_x, params.shared_mem = kernel.threads, kernel.shared_bytes
    sizes = trtp.SymIntExprs(3)
    for position, size in enumerate((m, config.rows, config.columns)):
        sizes[position] = trtp.SymInt32(size)  # plain integers are refused
    return kernel.name, kernel.ptx, params, sizes


def _compile(config: PluginConfig, tile: Tile, dtype: Float) -> Compiled:
    """A kernel out of the bundle, or compiled now where it brings none."""
    for kernels in _compiled:
        return kernels.find(config, tile, dtype)
    return compile_ahead(
        layout=config.device_layout,
        bits=config.bits,
        rows=config.rows,
        columns=config.columns,
        group_size=config.group_size,
        dtype=dtype,
        tile=tile,
        sm=config.sm,
    )


def _half(trt: Any, x: Any) -> str:
    """TensorRT's name for the type of x."""
    names = {trt.float16: "FP16", trt.bfloat16: "BF16"}
    if x.dtype not in names:
        raise IncompatibleError(f"x is {x.dtype}; the kernels take float16 and bfloat16", hint="lower the bundle again")
    return names[x.dtype]


def _check(name: str, tensor: Any, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Refuse another type or shape; None is any size, and sizes are not known at every stage of a build."""
    sizes = [None if size.is_fake or not size.is_constant else size.constant_value() for size in tensor.shape_expr]
    fits = len(sizes) == len(shape) and all(
        None in (size, wanted) or size == wanted for size, wanted in zip(sizes, shape, strict=True)
    )
    if fits and tensor.dtype == dtype:
        return
    raise IncompatibleError(
        f"{name} is {tensor.dtype} {sizes}; the kernel takes {dtype} {list(shape)}",
        hint="lower the bundle again with this version",
    )
