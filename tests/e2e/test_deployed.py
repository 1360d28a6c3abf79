"""On the device: a bundle's engine runs in a process that never imports what built it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import json, sys
from pathlib import Path
import numpy as np
from qvec_deploy.bundle.bundle import Bundle

with Bundle.open(Path(sys.argv[1])).session(threads=1) as session:
    logits = session.run(np.zeros((2, *session.input_shape), np.float32))
print(json.dumps({"shape": logits.shape, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_an_engine_runs_without_what_built_it(finished: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, finished], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["shape"] == [2, 10]
    assert "onnxruntime" in told["modules"], "or this test would show nothing"
    assert not set(told["modules"]) & {"torch", "timm", "modelopt", "matplotlib", "sklearn"}
