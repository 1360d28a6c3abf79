"""What reads files that may come from anybody: every reader, a real file for it, and what it makes of the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from qvec_deploy.bench.parity import read_reference
from qvec_deploy.bench.predictions import read_predictions
from qvec_deploy.bench.resume import EvaluationJournal
from qvec_deploy.bundle.manifest import check_files, read_manifest
from qvec_deploy.datasets.standalone_run import ImagePreprocessor, RunError, prepare, read_facts, require_pictures
from qvec_deploy.donors.donor_folder import DonorFolder
from qvec_deploy.donors.donor_recipe import load_donor_recipe
from qvec_deploy.errors import IntegrityError
from qvec_deploy.io.build_record import BuildRecord
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.model_config import read_configs
from qvec_deploy.io.partial_results import read_partial, write_partial
from qvec_deploy.io.untrusted import understood
from qvec_deploy.packed import PackedFile
from qvec_deploy.recipe import load_recipe
from qvec_deploy.recipe.class_names import read_names
from qvec_deploy.report.report_json import read_report_json
from qvec_deploy.research.study.cell import TrialLog
from qvec_deploy.research.study.cell_values import Trial
from qvec_deploy.research.study.study_documents import read_cell, read_study
from qvec_deploy.research.study.study_recipe import load_study
from qvec_deploy.research.study.study_store import StudyStore
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.engine_options import Batches
from qvec_deploy.runtimes.graph.activations import read_amax
from qvec_deploy.runtimes.graph.model_check import check_model
from qvec_deploy.runtimes.graph.model_file import read_model
from qvec_deploy.runtimes.graph.operator import STANDARD, define_operator
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
RECIPES = Path(__file__).parents[2] / "recipes"
Values = dict[str, Any]


def _tensors(checkpoint: Checkpoint) -> Values:
    checkpoint.fingerprint()
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def _of_library(path: Path) -> Values | None:
    """Tensors as safetensors reads them; None where it refuses."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).to(torch.float32).numpy() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError):
        return None


def _of_torch(path: Path) -> Values | None:
    """Tensors as torch reads them, by the last of the keys that lead to them; None where it refuses.

    An archive is mapped: where its directory is odd, torch may take a storage that it never read for one.
    """
    try:
        mapped = path.read_bytes().startswith(b"PK")
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
        return dict(_leaves(saved))
    except Exception:  # noqa: BLE001 - of a damaged file
        return None


def _leaves(saved: Any) -> Iterator[tuple[str, Any]]:
    for name, value in saved.items() if isinstance(saved, dict) else ():
        if isinstance(value, torch.Tensor):
            yield str(name), value.detach().to(torch.float32).numpy()
        else:
            yield from _leaves(value)


def _packed(path: Path) -> Values:
    packed = PackedFile.open(path)
    return {
        name: packed.packed(name) if info.scheme is not None else packed.array(name)
        for name, info in packed.tensors.items()
    }


def _vector(path: Path) -> Values:
    vector = QuantizationVector.open(path)
    return {"sketch": vector.sketch(), "moments": vector.moments(), **_tensors(vector.checkpoint)}


def _torch_bytes(*, old: bool) -> Callable[[Path], None]:
    state = {"blocks.0.weight": torch.arange(12.0).reshape(3, 4), "head.bias": torch.ones(3, dtype=torch.float16)}
    saved = {"state_dict": state, "epoch": 3, "arch": "vit_tiny_patch16_224"}
    return lambda path: torch.save(saved, path, _use_new_zipfile_serialization=not old)


def _write_floats(path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    saved = {f"blocks.{at}.weight": torch.arange(6.0).reshape(2, 3).to(kind) for at, kind in enumerate(kinds)}
    save_torch({**saved, "empty": torch.zeros(0, 3)}, path, {"format": "pt"})


def _journal(path: Path) -> object:
    kept = read_partial(path, b"k")
    if kept is None:
        raise IntegrityError("no results", hint="")
    return kept


def _write_released(path: Path) -> None:
    manifest = json.loads((BUNDLE / "manifest.json").read_bytes())
    entry = {"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}
    path.write_text(json.dumps({**manifest, "interface": {"input": entry, "output": {"name": "logits"}}}))


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


def _write_training(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    state = {"model.a": np.arange(6, dtype=np.float32), "moment.a": np.ones(6, np.float32)}
    save_file(state, path, {"qvec": json.dumps({"step": 3, "seconds": 1.5})})


def _training(path: Path) -> Values:
    state = DonorFolder(path.parents[1]).load("a")
    assert state is not None
    return {"step": state.step, **{name: value.float().numpy() for name, value in state.tensors.items()}}


def _write_picture(path: Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def _picture(path: Path) -> object:
    config = {
        "input_size": [3, 8, 8],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    return _on_device(
        lambda: (require_pictures([str(path)]), prepare(str(path), ImagePreprocessor(config), as_pixels=False))
    )


def _on_device(read: Callable[[], object]) -> object:
    """What the program on devices reads; its refusals are told by a class of its own."""
    try:
        return read()
    except RunError as error:
        assert error.exit_code in (5, 6), error.exit_code
        raise IntegrityError(error.message, hint=error.hint) from error


KEY = {"a": 1}


def _write_entry(path: Path) -> None:
    with Cache(path.parents[1]).entry("kind", KEY) as entry:
        (entry.folder / "file").write_bytes(b"x")
        entry.record = {"seconds": 1.5, "names": ["a"]}


def _entry(path: Path) -> object:
    with Cache(path.parents[1]).entry("kind", KEY) as entry:
        if entry.new:
            (entry.folder / "file").write_bytes(b"x")
            entry.record = {"seconds": 1.5, "names": ["a"]}
    return entry.record


def _build_record(path: Path) -> object:
    record = BuildRecord(path, path.parent / "manifest.json", {"a": 1})
    return record.is_ours(), record.is_current()


def _write_build_record(path: Path) -> None:
    with BuildRecord(path, path.parent / "manifest.json", {"a": 1}).making():
        (path.parent / "manifest.json").write_bytes(b"made")


def _write_graph(path: Path) -> None:
    model = define_operator(read_model(BUNDLE / "model.onnx"), PackedFile.open(BUNDLE / WEIGHTS_FILE), STANDARD)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _checked_graph(path: Path) -> object:
    """What `verify` believes is opened and run: no such graph may crash a runtime, or take its time or memory."""
    import onnxruntime

    with understood(path):
        check_model(path.read_bytes(), PackedFile.open(path.with_name(WEIGHTS_FILE)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    with understood(path):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        return session.run(None, {entry.name: np.zeros((2, *entry.shape[1:]), np.float32)})


TRIAL = Trial("plain", "mse", 0.5, right="AA==")


def _trials(path: Path) -> object:
    write_partial(path.with_name("kept"), b"k", path.read_bytes())
    return TrialLog.open(path.with_name("kept"), "k").trials


def _write_answers(path: Path) -> None:
    arrays = {"labels": np.arange(3), "predictions:0": np.arange(3), "seconds:0": np.array([1.5, 0.5])}
    save_file(arrays, path)


def _answers(path: Path) -> object:
    journal = EvaluationJournal(lambda: {"a": 1})
    key = canonical_json([journal.key, ["float"]])
    write_partial(journal.path, key, path.read_bytes())
    answered = journal.read(["float"])
    return None if answered is None else vars(answered["float"])


@dataclass(frozen=True)
class Reader:
    """What reads one kind of file.

    Attributes:
        name: Of the file, which may be in a folder of its own.
        make: Writes a real one.
        sealed: Whether what is read is protected: bytes that were changed blindly are refused, or mean the same.
        reference: What others read from the file, by name; whatever is accepted is the same there.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    sealed: bool = False
    reference: Callable[[Path], Values | None] | None = None


def meaning(value: object) -> str:
    """A digest of what was read."""
    state = hashlib.sha256()
    _feed(state.update, value)
    return state.hexdigest()


def _feed(update: Callable[[bytes], object], value: Any) -> None:
    if isinstance(value, np.ndarray):
        update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            _feed(update, str(name))
            _feed(update, value[name])
    elif isinstance(value, list | tuple):
        update(f"{len(value)}".encode())
        for each in value:
            _feed(update, each)
    elif is_dataclass(value):
        _feed(update, vars(value))
    else:
        update(repr(value).encode("utf-8", "surrogatepass"))


READERS = {
    "packed": Reader("weights.qvec.safetensors", _copy(GOLDEN / "packed" / "v1.1.0.qvec.safetensors"), _packed),
    "vector": Reader("v.safetensors", _copy(GOLDEN / "v0.1.0" / "vector.safetensors"), _vector),
    "safetensors": Reader(
        "c.safetensors",
        _write_floats,
        lambda p: _tensors(Checkpoint.open(p)),
        reference=_of_library,
    ),
    "index": Reader(
        "c.index.json", _json({"weight_map": {"logits": "parity.safetensors"}}), lambda p: _tensors(Checkpoint.open(p))
    ),
    "pt": Reader("c.pt", _torch_bytes(old=False), lambda p: _tensors(Checkpoint.open(p)), True, _of_torch),
    "old pt": Reader("c.pth", _torch_bytes(old=True), lambda p: _tensors(Checkpoint.open(p)), reference=_of_torch),
    "config": Reader(
        "config.json",
        _json({"architecture": "vit", "num_classes": 3, "pretrained_cfg": {"mean": [0.5], "input_size": [3, 8, 8]}}),
        lambda p: read_configs(p, {}, p),
    ),
    "manifest": Reader(
        "manifest.json", _copy(BUNDLE / "manifest.json"), lambda p: check_files(p.parent, read_manifest(p.parent))
    ),
    "released manifest": Reader("manifest.json", _write_released, lambda p: _on_device(lambda: read_facts(p.parent))),
    "recipe": Reader("recipe.yaml", _copy(BUNDLE / "recipe.yaml"), load_recipe),
    "study recipe": Reader("study.yaml", _copy(RECIPES / "study_tiny.yaml"), load_study),
    "donor recipe": Reader("donor.yaml", _copy(RECIPES / "donor_tiny.yaml"), load_donor_recipe),
    "class names": Reader("classes.txt", _json({"0": "a", "1": "b", "2": "c"}), read_names),
    "picture": Reader("p.png", _write_picture, _picture),
    "report": Reader("report.json", _copy(BUNDLE / "report.json"), read_report_json),
    "parity": Reader("parity.safetensors", _copy(BUNDLE / "parity.safetensors"), lambda p: read_reference(p.parent)),
    "predictions": Reader("predictions.safetensors", _copy(BUNDLE / "predictions.safetensors"), read_predictions),
    "structure": Reader("structure.json", _copy(BUNDLE / "structure.json"), lambda p: read_structure(p.parent)),
    "graph": Reader("model.onnx", _copy(BUNDLE / "model.onnx"), lambda p: load_stored(p.parent)),
    "checked graph": Reader("model.onnx", _write_graph, _checked_graph),
    "activations": Reader("activations.json", _json({"amax": {"a": 1.5, "b": 2}}), lambda p: read_amax(p.parent)),
    "sidecar": Reader("e.plan.json", _write_sidecar, lambda p: read_sidecar(p.with_suffix(""))),
    "kernels": Reader("kernels.json.gz", _write_kernels, lambda p: read_kernels(p.parent)),
    "delta": Reader("e.delta", _write_delta, lambda p: read_header(p.read_bytes())),
    "cell": Reader("cell.json", _copy(next((STUDY / "cells").glob("*.json"))), read_cell),
    "study": Reader("run.json", _copy(STUDY / "run.json"), lambda p: read_study(p.parent)),
    "store": Reader(
        "store/version.json", _copy(STUDY / "store" / "version.json"), lambda p: StudyStore.existing(p.parents[1])
    ),
    "log": Reader("log.jsonl", _json({"epoch": 1, "loss": 0.5}), lambda p: DonorFolder(p.parent).read_log()),
    "training": Reader(".state/a.safetensors", _write_training, _training),
    "journal": Reader("journal", lambda p: write_partial(p, b"k", b"payload"), _journal, True),
    "trials": Reader("trials", _json({"trials": [asdict(TRIAL)], "mix": {"a": 0.5}, "seconds": {"b": 1.5}}), _trials),
    "answers": Reader("answers", _write_answers, _answers),
    "build record": Reader("build.json", _write_build_record, _build_record),
    "cache entry": Reader(f"{Cache(Path()).path('kind', KEY)}/entry.json", _write_entry, _entry, True),
}
