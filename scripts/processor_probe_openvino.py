"""As processor_probe.py, with OpenVINO on the CPU in float32."""

import json
import sys
import time

import numpy as np
import openvino

model, images, answers, *sides = sys.argv[1:]
start = time.perf_counter()
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
loaded = time.perf_counter()
logits = compiled(np.fromfile(images, np.float32).reshape([int(side) for side in sides]))[0]
done = time.perf_counter()
logits.tofile(answers)
print(json.dumps({"openvino": openvino.__version__, "load_s": loaded - start, "run_s": done - loaded}))
