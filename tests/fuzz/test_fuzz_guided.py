"""For a while, inputs that coverage leads find nothing new in any reader."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import READERS

SECONDS = 20.0
HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not there: nothing leads the inputs"
)
@pytest.mark.parametrize("kind", READERS)
def test_no_new_input_is_found(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, str(HERE / "fuzz_target.py"), kind, f"--seconds={SECONDS}", f"--out={out}"]
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert out.is_file(), ended.stderr[-2000:]
    found = json.loads(out.read_text())
    assert not found["findings"], found["findings"]
    assert ended.returncode == 0 and found["inputs"] > 20
