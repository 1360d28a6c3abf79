"""What bench_kernels compares: launchers of one Linear, recorded as CUDA graphs and timed by CUDA events."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

BITS = 3
LAUNCHES = 32  # of one graph, at least
ERROR = 1e-2  # largest relative error of a candidate whose speed is reported

Candidates = dict[str, tuple[Callable[[int], Any], int]]


def make_candidates(size: tuple[int, int, int], copies: dict[str, int]) -> tuple[Candidates, str]:
    """Launchers by name, each with the number of copies of the weight it takes turns with; and the tile of `aot`.

    Raises:
        SystemExit: One computes something else.
    """
    import torch
    from torch.nn.functional import linear as dense

    import qvec_deploy.runtimes.kernels.op  # noqa: F401 - registers torch.ops.qvec.linear
    from qvec_deploy.runtimes.kernels import launch
    from qvec_deploy.runtimes.kernels.layouts import choose_layout

    m, n, k = size
    generator = np.random.default_rng(0)
    codes = generator.integers(-3, 4, (n, k), dtype=np.int8)
    scale = generator.uniform(0.01, 0.02, (n, 1)).astype(np.float32)
    layout = choose_layout(n, k, BITS)
    device = torch.device("cuda")
    words = torch.from_numpy(layout.pack(codes, BITS)).to(device).repeat(copies["packed"], 1, 1)
    weight = torch.from_numpy((codes * scale).astype(np.float16)).to(device)
    weights = weight.repeat(copies["fp16"], 1, 1)
    scales = torch.from_numpy(scale).to(device)
    bias = torch.zeros(n, dtype=torch.float16, device=device)
    x = torch.from_numpy(generator.normal(size=(m, k)).astype(np.float16)).to(device)

    def native(i: int) -> Any:
        return torch.ops.qvec.linear(x, words[i], scales, bias, layout.id, BITS, k, 0)

    def dequantized(i: int) -> Any:
        return dense(
            x, launch.dequantize(launch.DeviceWeight(words[i], scales, layout, BITS, k, 0), torch.float16), bias
        )

    tile, ahead = fastest_tile(layout, size, x, words, scales, bias)
    candidates: Candidates = {
        "fp16": (lambda i: dense(x, weights[i], bias), copies["fp16"]),
        "dequant": (dequantized, copies["packed"]),
        "native": (native, copies["packed"]),
        "aot": (ahead, copies["packed"]),
    }
    expected = x.double() @ weight.double().T
    for name, (candidate, count) in candidates.items():
        for i in {0, count - 1}:
            error = float((candidate(i).double() - expected).norm() / expected.norm())
            if not error < ERROR:
                raise SystemExit(f"{name} at {size} is off by {error:.2g}: no speed to speak of")
    return candidates, tile


def fastest_tile(
    layout: Any, size: tuple[int, int, int], x: Any, words: Any, scale: Any, bias: Any
) -> tuple[str, Callable[[int], Any]]:
    """The tile that TensorRT would choose of those that engines carry: it times them, and so does this."""
    import torch

    from qvec_deploy.runtimes.kernels.ahead import SHARED_LIMIT, TILES, compile_ahead

    m, n, k = size
    y = torch.empty((m, n), dtype=torch.float16, device=x.device)
    timed: list[tuple[float, str, Callable[[int], Any]]] = []
    for tile in TILES:
        compiled = compile_ahead(layout=layout, bits=BITS, rows=n, columns=k, tile=tile)
        if compiled.shared_bytes > SHARED_LIMIT:  # an engine could not launch it
            continue
        kernel = DriverKernel(compiled)
        values = {"x": x, "scale": scale, "bias": bias, "m": m, "n": n, "k": k, "y": y}

        def run(i: int, kernel: DriverKernel = kernel, values: dict[str, Any] = values) -> Any:
            kernel.launch(values | {"words": words[i]}, m)
            return y

        launches = max(LAUNCHES, len(words))  # every copy: fewer would stay in the cache that is to be cold
        graph = record_graph(lambda i, run=run: run(i % len(words)), launches)
        timed.append((min(replay_us(graph) for _ in range(5)), str(tile), run))
    _, name, fastest = min(timed, key=lambda entry: entry[0])
    return name, fastest


class DriverKernel:
    """PTX compiled ahead of time, launched as an engine would: by the driver, without Triton."""

    def __init__(self, compiled: Any) -> None:
        self._compiled, self._driver = compiled, ctypes.CDLL("libcuda.so.1")
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._require(self._driver.cuModuleLoadData(ctypes.byref(self._module), compiled.ptx + b"\0"))
        name = compiled.name.encode()
        self._require(self._driver.cuModuleGetFunction(ctypes.byref(self._function), self._module, name))

    def launch(self, values: dict[str, Any], m: int) -> None:
        """Launch on torch's current stream; tensors are passed as pointers, sizes as int32."""
        import torch

        from qvec_deploy.runtimes.kernels.ahead import ARGUMENTS

        arguments = [
            ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_void_p(value.data_ptr())
            for value in (values[name] for name in ARGUMENTS)
        ]
        pointers = (ctypes.c_void_p * len(arguments))(*[ctypes.addressof(argument) for argument in arguments])
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        blocks, threads = self._compiled.grid(m), self._compiled.threads
        shared = self._compiled.shared_bytes
        self._require(
            self._driver.cuLaunchKernel(self._function, *blocks, threads, 1, 1, shared, stream, pointers, None)
        )

    @staticmethod
    def _require(status: int) -> None:
        if status:
            raise SystemExit(f"the CUDA driver refuses the compiled kernel: error {status}")


def record_graph(launch: Callable[[int], Any], launches: int) -> Any:
    """A CUDA graph of so many launches; the first calls, which compile and tune, are outside."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for i in range(3):
            launch(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        for i in range(launches):
            launch(i)
    return graph


def replay_us(graph: Any) -> float:
    """Microseconds of one replay, by events on the GPU."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))
