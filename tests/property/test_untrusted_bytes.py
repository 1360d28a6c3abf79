"""Whatever is done to a file that comes from others: its reader answers, or refuses with a documented error."""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvec_deploy.bench.parity import read_reference
from qvec_deploy.bench.predictions import read_predictions
from qvec_deploy.bundle.manifest import check_files, read_manifest
from qvec_deploy.donors.donor_folder import DonorFolder
from qvec_deploy.errors import QvecError, RecipeError
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.model_config import read_configs
from qvec_deploy.packed import PackedFile
from qvec_deploy.recipe import load_recipe
from qvec_deploy.report.report_json import from_json
from qvec_deploy.research.study.study_documents import read_cell, read_study
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.runtimes.engine_options import Batches
from qvec_deploy.runtimes.graph.activations import read_amax
from qvec_deploy.runtimes.graph.stored import load_stored
from qvec_deploy.runtimes.kernels.kernel_file import StoredKernel, read_kernels
from qvec_deploy.runtimes.session import LinearProduct
from qvec_deploy.runtimes.tensorrt.engine_delta import MAGIC, read_header
from qvec_deploy.runtimes.tensorrt.sidecar import Sidecar, read_sidecar, write_sidecar
from qvec_deploy.runtimes.tensorrt.tensorrt_library import Machine
from qvec_deploy.runtimes.torch_cuda.torch_structure import read_structure
from qvec_deploy.vectors.vector_file import QuantizationVector

GOLDEN = Path(__file__).parents[1] / "golden"
BUNDLE, STUDY = GOLDEN / "v0.1.0" / "bundle", GOLDEN / "study_0.1.0"
EXAMPLES = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MOST_SECONDS, MOST_KILOBYTES = 5.0, 1 << 20
TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\\?"[^"\\]*\\?"|true|false|null')
HOSTILE = (
    *(b"1e999", b"1" + b"0" * 400, b"NaN", b"-Infinity", b"-1", b"0", b"4611686018427387904", b"1.5", b"1e-400"),
    *(b"null", b"true", b"[]", b"{}", b'""', b'"\\ud800"', b'"x"', b'"\\u0000"', b'"../../x"', b'"\xff"'),
    *(
        b"[" * 100_000,
        b"[" * 100 + b"]" * 100,
        b'{"a":' * 2000,
        b'"' + b"x" * 5000 + b'"',
        b"[[[]]]",
        b'{"a": 1, "a": 2}',
    ),
)


def _read_all(checkpoint: Checkpoint) -> None:
    checkpoint.fingerprint()
    for name in checkpoint.tensors:
        checkpoint.read(name)


def _read_packed(path: Path) -> None:
    packed = PackedFile.open(path)
    for name, info in packed.tensors.items():
        packed.packed(name) if info.scheme is not None else packed.array(name)


def _read_vector(path: Path) -> None:
    vector = QuantizationVector.open(path)
    vector.sketch()
    vector.moments()
    _read_all(vector.checkpoint)


def _torch_bytes(*, old: bool) -> Callable[[Path], None]:
    state = {"blocks.0.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.ones(3, dtype=torch.float16)}
    saved = {"state_dict": state, "epoch": 3, "arch": "vit_tiny_patch16_224"}
    return lambda path: torch.save(saved, path, _use_new_zipfile_serialization=not old)


def _json(values: Any) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(values))


def _copy(source: Path) -> Callable[[Path], object]:
    return lambda path: shutil.copyfile(source, path)


SPAN = {"offset": 0, "name": "a", "axes": [0, 1], "last": 4}


def _write_delta(path: Path) -> None:
    header = json.dumps(
        {"engine_bytes": 8, "engine_sha256": "0" * 64, "constants_sha256": "0" * 64, "spans": [SPAN]}
    ).encode()
    path.write_bytes(MAGIC + len(header).to_bytes(4, "little") + header)


def _write_kernels(path: Path) -> None:
    kernel = StoredKernel("linear", 1, 3, 0, 80, ("n",), "64x64", "name", 1024, ".version 8.0")
    document = {"format": "qvec-kernels", "version": 1, "kernels": [asdict(kernel)]}
    path.write_bytes(gzip.compress(json.dumps(document).encode(), mtime=0))


def _write_sidecar(path: Path) -> None:
    built = Machine("1.7.1.116", "GPUs of compute capability 8.6, 8.9", 0, "0.0")
    sidecar = Sidecar(
        built, "int4", Batches.of(1), (3, 32, 32), "this", False, True, 0, 1, 1, None, 1, 0, "", "", "", 1.0,
        (8.6, 8.9), (LinearProduct("fc", "gemm", ("Half",), ("Int4",), True),),
    )  # fmt: skip
    write_sidecar(path.with_suffix(""), sidecar)


def _read_store(path: Path) -> None:
    StudyStore.existing(path.parents[1])


@dataclass(frozen=True)
class Reader:
    """What reads one kind of file.

    Attributes:
        name: Of the file, which may be in a folder of its own.
        make: Writes a real one.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


READERS = {
    "packed": Reader("weights.qvec.safetensors", _copy(GOLDEN / "packed" / "v1.1.0.qvec.safetensors"), _read_packed),
    "vector": Reader("v.safetensors", _copy(GOLDEN / "v0.1.0" / "vector.safetensors"), _read_vector),
    "safetensors": Reader(
        "c.safetensors", _copy(GOLDEN / "v0.1.0" / "receiver.safetensors"), lambda p: _read_all(Checkpoint.open(p))
    ),
    "index": Reader(
        "c.index.json", _json({"weight_map": {"logits": "parity.safetensors"}}), lambda p: _read_all(Checkpoint.open(p))
    ),
    "pt": Reader("c.pt", _torch_bytes(old=False), lambda p: _read_all(Checkpoint.open(p))),
    "old pt": Reader("c.pth", _torch_bytes(old=True), lambda p: _read_all(Checkpoint.open(p))),
    "config": Reader(
        "config.json",
        _json({"architecture": "vit", "num_classes": 3, "pretrained_cfg": {"mean": [0.5], "input_size": [3, 8, 8]}}),
        lambda p: read_configs(p, {}, p),
    ),
    "manifest": Reader(
        "manifest.json", _copy(BUNDLE / "manifest.json"), lambda p: check_files(p.parent, read_manifest(p.parent))
    ),
    "recipe": Reader("recipe.yaml", _copy(BUNDLE / "recipe.yaml"), load_recipe),
    "report": Reader("report.json", _copy(BUNDLE / "report.json"), lambda p: from_json(p.read_bytes(), p)),
    "parity": Reader("parity.safetensors", _copy(BUNDLE / "parity.safetensors"), lambda p: read_reference(p.parent)),
    "predictions": Reader("predictions.safetensors", _copy(BUNDLE / "predictions.safetensors"), read_predictions),
    "structure": Reader("structure.json", _copy(BUNDLE / "structure.json"), lambda p: read_structure(p.parent)),
    "graph": Reader("model.onnx", _copy(BUNDLE / "model.onnx"), lambda p: load_stored(p.parent)),
    "activations": Reader("activations.json", _json({"amax": {"a": 1.5, "b": 2}}), lambda p: read_amax(p.parent)),
    "sidecar": Reader("e.plan.json", _write_sidecar, lambda p: read_sidecar(p.with_suffix(""))),
    "kernels": Reader("kernels.json.gz", _write_kernels, lambda p: read_kernels(p.parent)),
    "delta": Reader("e.delta", _write_delta, lambda p: read_header(p.read_bytes())),
    "cell": Reader("cell.json", _copy(next((STUDY / "cells").glob("*.json"))), read_cell),
    "study": Reader("run.json", _copy(STUDY / "run.json"), lambda p: read_study(p.parent)),
    "store": Reader("store/version.json", _copy(STUDY / "store" / "version.json"), _read_store),
    "log": Reader("log.jsonl", _json({"epoch": 1, "loss": 0.5}), lambda p: DonorFolder(p.parent).read_log()),
}


def _edited(data: bytes, edit: tuple[str, float, int, bytes]) -> bytes:
    kind, share, bit, token = edit
    if kind == "token":
        return _with_token(data, share, token)
    at = int(share * len(data))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] if data else data
    return {"cut": data[:at], "insert": data[:at] + token[:64] + data[at:], "drop": data[:at] + data[at + 1 + bit :]}[
        kind
    ]


def _with_token(data: bytes, share: float, token: bytes) -> bytes:
    """A value of its JSON replaced, also where that is the header of a safetensors file or compressed."""
    if data.startswith(b"\x1f\x8b"):
        try:
            return gzip.compress(_with_token(gzip.decompress(data), share, token), mtime=0)
        except (OSError, EOFError, zlib.error):
            return data
    length = int.from_bytes(data[:8], "little")
    binary = data[8:9] == b"{" and length <= len(data)
    text, rest = (data[8 : 8 + length], data[8 + length :]) if binary else (data, b"")
    found = list(TOKEN.finditer(text[: 1 << 16]))
    if not found:
        return data
    at = found[int(share * len(found))]
    text = text[: at.start()] + token + text[at.end() :]
    if not binary:
        return text
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["token", "token", "token", "flip", "flip", "cut", "insert", "drop"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 7),
        st.sampled_from(HOSTILE),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
def test_a_changed_file_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    reader = READERS[kind]
    for source in (STUDY, BUNDLE):
        shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    path = tmp_path / reader.name
    reader.make(path)
    reader.read(path)  # else it would refuse everything, and show nothing
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @EXAMPLES
    @given(EDITS)
    def check(edits: list[tuple[str, float, int, bytes]]) -> None:
        changed = data
        for edit in edits:
            changed = _edited(changed, edit)
        path.write_bytes(changed)
        start = time.process_time()
        try:
            reader.read(path)
        except QvecError as error:
            assert len(error.message) < 4100, error.message[:100]
            assert kind == "recipe" or not isinstance(error, RecipeError), error.message
        assert time.process_time() - start < MOST_SECONDS

    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES
