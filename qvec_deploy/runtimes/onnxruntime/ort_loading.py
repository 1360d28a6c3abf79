"""How ONNX Runtime opens a model: the options that are measured are the options that are recommended."""

from __future__ import annotations

import os
import re
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qvec_deploy.datasets.pixels import pixels_of
from qvec_deploy.errors import IncompatibleError, StorageError, first_line
from qvec_deploy.io.untrusted import json_object, understood
from qvec_deploy.runtimes.engine_files import PREPROCESSING_KEY
from qvec_deploy.runtimes.onnxruntime import ONNXRUNTIME
from qvec_deploy.tensors import Float32

PROVIDER = "CPUExecutionProvider"
_SYSTEM_ERROR = re.compile(r"\bSystemError : (\d{1,3})\b")
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


def installed_twice() -> str | None:
    """What to say where both distributions of ONNX Runtime are installed; None where that is not so."""
    if all(list(distributions(name=name)) for name in _DISTRIBUTIONS):
        return (
            f"{' and '.join(_DISTRIBUTIONS)} are both installed, and the later one overwrote files of the other: "
            f"pip uninstall -y {' '.join(_DISTRIBUTIONS)}, then install one"
        )
    return None


def open_model(source: str | bytes, directory: Path, threads: int, *, profile: Path | None = None) -> Any:
    """A session of a model, given as a file or as its bytes, whose weights are in `directory`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised; printed too, they would show names of the graph as they are
    for name, number in ONNXRUNTIME.session_options:
        setattr(options, name, number)
    for name, text in ONNXRUNTIME.session_config:
        options.add_session_config_entry(name, text)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory.resolve()))
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[PROVIDER])
    except Exception as error:
        reason = first_line(error)
        refused = _SYSTEM_ERROR.search(reason)
        if refused is not None:
            raise StorageError(
                f"{directory}: {os.strerror(int(refused[1]))}, says ONNX Runtime", hint="check the path and the disk"
            ) from error
        raise IncompatibleError(
            f"ONNX Runtime {onnxruntime.__version__} refuses the model in {directory}: {reason}",
            hint="`qvec-deploy verify` checks the bundle",
        ) from error
    if session.get_providers() != [PROVIDER]:
        raise IncompatibleError(f"the engine runs on {session.get_providers()}", hint=f"{PROVIDER} was asked for")
    return session


def takes_pixels(session: Any) -> bool:
    """Whether the model of a session normalises images itself."""
    return bool(session.get_inputs()[0].type == "tensor(uint8)")


def as_taken(session: Any, images: Float32) -> NDArray[Any]:
    """Normalised images as the model of a session takes them."""
    if not takes_pixels(session):
        return images
    with understood(f"the entry {PREPROCESSING_KEY} of the model's metadata"):
        config = json_object(session.get_modelmeta().custom_metadata_map[PREPROCESSING_KEY])
        return pixels_of(images, config["mean"], config["std"])
