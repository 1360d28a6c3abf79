"""Run images through a model with ONNX Runtime: `processor_probe.py MODEL IMAGES ANSWERS SIDE...`.

Images and answers are bare float32 values; the sides are those of the images. Prints versions and seconds as JSON. It
is run where this package is not: on another processor.
"""

import json
import os
import platform
import sys
import time

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is loaded

import onnxruntime

model, images, answers, *sides = sys.argv[1:]
start = time.perf_counter()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
batch = np.fromfile(images, np.float32).reshape([int(side) for side in sides])
logits = session.run(None, {session.get_inputs()[0].name: batch})[0]
done = time.perf_counter()
logits.tofile(answers)
versions = {"python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
print(json.dumps({"machine": platform.machine(), **versions, "load_s": loaded - start, "run_s": done - loaded}))
