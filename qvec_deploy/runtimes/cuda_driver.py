"""The CUDA driver through ctypes: what running an engine takes, without torch. It is there wherever a GPU is."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.errors import IncompatibleError

LIBRARY = "libcuda.so.1"

_Out = POINTER(c_void_p)
FUNCTIONS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "cuInit": (c_uint,),
        "cuDriverGetVersion": (POINTER(c_int),),
        "cuDeviceGetCount": (POINTER(c_int),),
        "cuDeviceGet": (POINTER(c_int), c_int),
        "cuDeviceGetName": (c_void_p, c_int, c_int),
        "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
        "cuDeviceGetPCIBusId": (c_void_p, c_int, c_int),
        "cuDevicePrimaryCtxRetain": (_Out, c_int),
        "cuCtxSetCurrent": (c_void_p,),
        "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
        "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
        "cuMemFree_v2": (c_uint64,),
        "cuMemAllocHost_v2": (_Out, c_size_t),
        "cuMemFreeHost": (c_void_p,),
        "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
        "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
        "cuStreamCreate": (_Out, c_uint),
        "cuStreamDestroy_v2": (c_void_p,),
        "cuStreamSynchronize": (c_void_p,),
        "cuStreamBeginCapture_v2": (c_void_p, c_int),
        "cuStreamEndCapture": (c_void_p, _Out),
        "cuGraphInstantiateWithFlags": (_Out, c_void_p, c_uint64),
        "cuGraphLaunch": (c_void_p, c_void_p),
        "cuGraphExecDestroy": (c_void_p,),
        "cuGraphDestroy": (c_void_p,),
        "cuModuleLoadData": (_Out, c_char_p),
        "cuModuleGetFunction": (_Out, c_void_p, c_char_p),
        "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, _Out, _Out),
        "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
        "cuEventCreate": (_Out, c_uint),
        "cuEventRecord": (c_void_p, c_void_p),
        "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
        "cuEventDestroy_v2": (c_void_p,),
        "cuGetErrorName": (c_int, POINTER(c_char_p)),
    }
)
"""Every function that is called, with the types of its arguments; all return a CUresult."""

_OUT_OF_MEMORY = 2
_NON_BLOCKING = 1
_CAPTURE_THIS_THREAD = 1
_L2_BYTES, _SM_MAJOR, _SM_MINOR = 38, 75, 76
_NAME_BYTES = 256


class OutOfDeviceMemory(IncompatibleError):
    """The GPU has no memory left."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as far as engines care.

    Attributes:
        sm: Compute capability, 80 for 8.0.
        driver: CUDA version of the driver, such as `13.0`.
    """

    name: str
    sm: int
    driver: str


class Cuda:
    """The first visible GPU's primary context, which TensorRT uses too.

    Once entered it is kept until the process ends: objects of TensorRT that live on when it goes would fail as they go.

    Raises:
        IncompatibleError: No driver, no GPU, or the driver refuses.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._call("cuInit", 0)
        if not self._get(c_int, "cuDeviceGetCount"):
            raise IncompatibleError("the NVIDIA driver finds no GPU", hint="check nvidia-smi and CUDA_VISIBLE_DEVICES")
        self._device = self._get(c_int, "cuDeviceGet", 0)
        self._context = c_void_p()
        self.gpu = self._describe()

    def _describe(self) -> Gpu:
        version = self._get(c_int, "cuDriverGetVersion")
        major, minor = (self._attribute(code) for code in (_SM_MAJOR, _SM_MINOR))
        return Gpu(self._text("cuDeviceGetName"), 10 * major + minor, f"{version // 1000}.{version % 1000 // 10}")

    def bus_id(self) -> str:
        """Its place on the PCI bus, by which NVML finds it too."""
        return self._text("cuDeviceGetPCIBusId")

    def l2_bytes(self) -> int:
        """Size of its L2 cache."""
        return self._attribute(_L2_BYTES)

    def _attribute(self, code: int) -> int:
        return int(self._get(c_int, "cuDeviceGetAttribute", code, self._device))

    def enter(self) -> None:
        """Make the GPU's context current in this thread."""
        if not self._context:
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Device memory that nobody uses now."""
        free, total = c_size_t(0), c_size_t(0)
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, size: int) -> int:
        """Address of so many bytes of device memory.

        Raises:
            OutOfDeviceMemory: There are not as many.
        """
        return int(self._get(c_uint64, "cuMemAlloc_v2", size))

    def free(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cuMemFree_v2", address)

    def pinned(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 array in host memory that the GPU reads and writes directly; `free_pinned` gives it back."""
        count = int(np.prod(shape))
        buffer = (c_float * count).from_address(self._get(c_void_p, "cuMemAllocHost_v2", 4 * count))
        array: NDArray[np.float32] = np.ctypeslib.as_array(buffer).reshape(shape)
        return array

    def free_pinned(self, array: NDArray[np.float32]) -> None:
        """Give back what `pinned` gave; the array must not be touched afterwards."""
        self._call("cuMemFreeHost", array.ctypes.data)

    def upload(self, address: int, array: NDArray[np.float32], stream: int) -> None:
        """Copy a pinned array to the device; it has arrived when the stream comes to that."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: NDArray[np.float32], address: int, stream: int) -> None:
        """Copy from the device to a pinned array; it has arrived when the stream comes to that."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def fill(self, address: int, size: int, stream: int) -> None:
        """Set so many bytes of device memory to zero; done when the stream comes to that."""
        self._call("cuMemsetD8Async", address, 0, size, stream)

    def load_kernel(self, ptx: bytes, name: str) -> int:
        """Handle of a kernel, compiled by the driver from PTX; it is kept until the process ends."""
        module = self._get(c_void_p, "cuModuleLoadData", ptx + b"\0")
        return int(self._get(c_void_p, "cuModuleGetFunction", module, name.encode("ascii")))

    def launch(
        self,
        kernel: int,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: Sequence[Any],
        stream: int,
    ) -> None:
        """Put a kernel into a stream.

        Args:
            threads: Threads of a block.
            shared_bytes: Dynamic shared memory of a block, 48 KiB at most.
            arguments: Values of ctypes, each of its parameter's type.
        """
        places = (c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self._call("cuLaunchKernel", kernel, *grid, threads, 1, 1, shared_bytes, stream, places, None)

    def new_event(self) -> int:
        """Handle of an event that notes the GPU's time."""
        return int(self._get(c_void_p, "cuEventCreate", 0))

    def record(self, event: int, stream: int) -> None:
        """Have an event note the time when the stream comes to it."""
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two events that have come to pass; half a microsecond is the driver's resolution."""
        return float(self._get(c_float, "cuEventElapsedTime", start, end))

    def end_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cuEventDestroy_v2", event)

    def new_stream(self) -> int:
        """Handle of a stream of its own."""
        return int(self._get(c_void_p, "cuStreamCreate", _NON_BLOCKING))

    def end_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def wait(self, stream: int) -> None:
        """Return when everything in a stream is done."""
        self._call("cuStreamSynchronize", stream)

    @contextlib.contextmanager
    def capture(self, stream: int) -> Iterator[Graph]:
        """Record what the block puts into a stream, instead of running it.

        Yields:
            A graph that can be launched after the block.
        """
        graph, recorded = Graph(self), c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THIS_THREAD)
        try:
            yield graph
        except BaseException:
            self._library.cuStreamEndCapture(stream, ctypes.byref(recorded))  # the block's own error is the one to see
            raise
        self._call("cuStreamEndCapture", stream, ctypes.byref(recorded))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(graph.handle), recorded, 0)
        finally:
            self._call("cuGraphDestroy", recorded)

    def _get(self, kind: Any, name: str, *arguments: Any) -> Any:
        """What a function writes to its first argument, 0 for a null pointer."""
        value = kind()
        self._call(name, ctypes.byref(value), *arguments)
        return value.value or 0

    def _text(self, name: str) -> str:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call(name, text, _NAME_BYTES, self._device)
        return text.value.decode("utf-8", "replace")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory("the GPU is out of memory", hint="free some, or use a smaller batch size")
        if code != 0:
            text = c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            reason = (text.value or b"unknown").decode("ascii", "replace")
            raise IncompatibleError(
                f"the CUDA driver refuses {name.partition('_')[0]}: {reason} ({code})", hint="check the GPU: nvidia-smi"
            )


class Graph:
    """Recorded work."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = c_void_p()

    def launch(self, stream: int) -> None:
        """Put it all into a stream at once."""
        self._cuda._call("cuGraphLaunch", self.handle, stream)

    def destroy(self) -> None:
        """Let go of it."""
        self._cuda._call("cuGraphExecDestroy", self.handle)


def _load() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise IncompatibleError(
            f"no NVIDIA driver is installed ({LIBRARY})", hint="engines are built and run where the GPU is"
        ) from error
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise IncompatibleError(f"the NVIDIA driver has no {name}", hint="install a driver for CUDA 12 or later")
        function.argtypes, function.restype = arguments, c_int
    return library
