"""What ONNX Runtime refuses is told in one line, whatever it says."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import onnxruntime
import pytest

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.runtimes.onnxruntime.ort_loading import open_model


@pytest.mark.parametrize(("error", "told"), [(RuntimeError(" first\nsecond"), "first"), (MemoryError(), "MemoryError")])
def test_an_error_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, told: str
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(IncompatibleError, match=rf"refuses the model in .*: {told}$"):
        open_model(b"", tmp_path, 1)
