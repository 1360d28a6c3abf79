"""One engine of `bench_peers.py` in a process and environment of its own: makes it, then answers and times on request.

Imports nothing but numpy and the peer's packages. Requests and answers are JSON, one a line.

    peer_worker.py make PEER FLOAT.onnx CALIBRATION.npy OUT
    peer_worker.py serve PEER MODEL THREADS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[Any], Any]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is loaded


def quantize_dynamic(source: Path, images: Any, out: Path, **options: Any) -> None:
    """ONNX Runtime's dynamic quantization to int8 weights, as its documentation starts."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kind = options.pop("kind", "QInt8")
    quantize_dynamic(source, out, weight_type=getattr(QuantType, kind), **options)


def quantize_openvino(source: Path, images: Any, out: Path) -> None:
    """OpenVINO's post-training quantization by NNCF, calibrated on the images."""
    import nncf
    import openvino

    model = openvino.convert_model(source)
    data = nncf.Dataset([image[None] for image in images])
    openvino.save_model(nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER), out)


def compress_openvino(source: Path, images: Any, out: Path) -> None:
    """OpenVINO's int4 weights, one scale a channel."""
    import nncf
    import openvino

    mode = nncf.CompressWeightsMode.INT4_SYM
    openvino.save_model(nncf.compress_weights(openvino.convert_model(source), mode=mode, group_size=-1), out)


def quantize_olive(source: Path, images: Any, out: Path, *, kind: str, **settings: Any) -> None:
    """One of Olive's passes."""
    import shutil

    from olive.workflows import run

    folder = out.parent / f"{out.stem}.olive"
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(source)},
            "passes": {"quantize": {"type": kind, **settings}},
            "output_dir": str(folder),
            "evaluate_input_model": False,
        }
    )
    (made,) = folder.rglob("*.onnx")
    shutil.copyfile(made, out)
    for data in made.parent.glob("*.data"):
        shutil.copyfile(data, out.with_name(data.name))


def quantize_modelopt(source: Path, images: Any, out: Path) -> None:
    """ModelOpt's own int4 ONNX files: round to nearest, blocks of 128."""
    import onnx
    from modelopt.onnx.quantization.int4 import quantize

    onnx.save(quantize(onnx.load(source), "rtn_dq", block_size=128), out, save_as_external_data=True)


MAKERS: dict[str, Callable[[Path, Any, Path], None]] = {
    "ort-dynamic": quantize_dynamic,
    "ort-dynamic-7bit": lambda *a: quantize_dynamic(*a, reduce_range=True),
    "ort-dynamic-u8": lambda *a: quantize_dynamic(*a, kind="QUInt8"),
    "openvino-ptq": quantize_openvino,
    "openvino-int4": compress_openvino,
    "olive-int8": lambda *a: quantize_olive(*a, kind="OnnxDynamicQuantization"),
    "modelopt-int4": quantize_modelopt,
    "olive-int4": lambda *a: quantize_olive(*a, kind="OnnxBlockWiseRtnQuantization"),
}


def open_onnxruntime(model: Path, threads: int) -> Run:
    """The engine as a function; options as the product's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def open_openvino(model: Path, threads: int) -> Run:
    """The engine as a function, compiled for latency."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(model), "CPU", settings)
    return lambda images: compiled(images)[0]


def serve(run: Run) -> None:
    """Answer requests until the parent closes the pipe."""
    for line in sys.stdin:
        request = json.loads(line)
        images = np.load(request["images"])
        if "logits" in request:
            np.save(request["logits"], np.concatenate([run(images[i : i + 1]) for i in range(len(images))]))
            print(json.dumps({}), flush=True)
            continue
        wall, cpu = [], []
        for _ in range(request["runs"]):
            start, busy = time.perf_counter(), time.process_time()
            run(images)
            wall.append(1e3 * (time.perf_counter() - start))
            cpu.append(1e3 * (time.process_time() - busy))
        print(json.dumps({"ms": wall, "cpu_ms": cpu}), flush=True)


def main() -> None:
    """Make an engine, or serve one."""
    command, peer, *rest = sys.argv[1:]
    if command == "make":
        source, calibration, out = map(Path, rest)
        MAKERS[peer](source, np.load(calibration), out)
        return
    model, threads = Path(rest[0]), int(rest[1])
    serve(open_openvino(model, threads) if model.suffix == ".xml" else open_onnxruntime(model, threads))


if __name__ == "__main__":
    main()
