"""Bad input, through the command line: one clear line, one hint, the right exit code, and nothing left behind."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from manifests import edit_manifest
from safetensors.numpy import save_file

from qvec_deploy.bench.run import BenchResult
from qvec_deploy.bundle.manifest import FORMAT_VERSION
from qvec_deploy.errors import StorageError
from qvec_deploy.packed import PackedFile
from qvec_deploy.report.report_json import from_json
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.vector_file import VectorHeader, write_vector

WEIGHTS = "weights.qvec.safetensors"
FLOAT = ("--set", "quantize.bits=32", "--set", "target.lowering=float", "--set", "lambda=0")  # one candidate only

Refused = Callable[..., tuple[str, str]]
State = dict[str, np.ndarray]


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Refused:
    """Run a command that must be refused with `code`; the error line and the hint line, which are all it prints."""

    def call(code: int, *arguments: object) -> tuple[str, str]:
        actual, out, err = run(*arguments)
        assert actual == code, err
        assert out == ""
        lines = err.splitlines()
        assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], err
        error, hint = (line.partition(": ")[2] for line in lines)
        assert error and hint
        return error, hint

    return call


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder that bundles are written into; empty."""
    folder = tmp_path / "shop"
    folder.mkdir()
    return folder


@pytest.fixture
def build(refused: Refused, shop: Path, pico_recipe: Callable[..., Path]) -> Refused:
    """A build that must be refused, with `--set` overrides and recipe fields; nothing is left of it."""

    def call(code: int, *overrides: str, **fields: Any) -> tuple[str, str]:
        words = [word for override in overrides for word in ("--set", override)]
        lines = refused(code, "build", "--recipe", pico_recipe(**fields), "-o", shop / "pico", "--quiet", *words)
        assert _tree(shop) == {}
        return lines

    return call


def _tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: relative path to contents, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# The recipe and the command line


def _line(path: Path, key: str) -> int:
    """Number of the only line with a key."""
    (line,) = [n for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:")]
    return line


@pytest.mark.parametrize(
    ("fields", "key", "nearest"),
    [
        ({"quantise": {"bits": 3}}, "quantise", "quantize"),
        ({"quantize__granularty": "channel"}, "quantize.granularty", "granularity"),
        ({"vector__file": "a"}, "vector.file", "files"),
    ],
)
def test_an_unknown_key(
    build: Refused, pico_recipe: Callable[..., Path], fields: dict[str, Any], key: str, nearest: str
) -> None:
    error, hint = build(2, **fields)
    path = pico_recipe(**fields)
    assert error == f"{path}:{_line(path, key.split('.')[-1])}: {key}: no such field"
    assert f"`{nearest}`" in hint


def test_an_unknown_key_in_an_override(build: Refused) -> None:
    error, hint = build(2, "quantize.bit=3")
    assert "quantize.bit: no such field" in error and "`bits`" in hint


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("quantize__bits", "three", "integer"),
        ("quantize__bits", 3.5, "integer"),
        ("lambda", "1", "number"),
        ("quantize__skip", "head", "array"),
        ("target__runtime", "onnx", "onnxruntime"),
        ("receiver", "model.safetensors", "object"),
    ],
)
def test_a_wrong_type(build: Refused, pico_recipe: Callable[..., Path], key: str, value: object, wanted: str) -> None:
    error, _ = build(2, **{key: value})
    path = pico_recipe(**{key: value})
    assert error.startswith(f"{path}:{_line(path, key.split('__')[-1])}: {key.replace('__', '.')}: ")
    assert wanted in error


@pytest.mark.parametrize("override", ["lambda", "quantize.bits", "=3"])
def test_an_override_without_value(build: Refused, override: str) -> None:
    error, hint = build(2, override)
    assert f"--set {override}" in error and "field.name=value" in hint


def test_a_missing_recipe(refused: Refused, tmp_path: Path, shop: Path) -> None:
    error, _ = refused(6, "build", "--recipe", tmp_path / "absent.yaml", "-o", shop / "pico")
    assert f"{tmp_path}/absent.yaml does not exist" in error
    assert _tree(shop) == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vit_tiny_patch16_225", "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224.augreg_in22k_ft_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    ],
)
def test_an_unknown_model(build: Refused, name: str, nearest: str) -> None:
    error, hint = build(2, f"receiver.model={name}")
    assert f"`{name}`" in error and nearest in hint


def test_a_lowering_that_cannot_take_these_bits(build: Refused) -> None:
    error, hint = build(4, "quantize.bits=8", "lambda=0")
    assert "`int4`" in error and "8 bits" in error
    assert "int8" in hint, "what does take 8 bits"


def test_a_core_that_is_not_there_is_refused_before_anything_is_built(build: Refused) -> None:
    error, hint = build(4, "measure.cores=[9999]")
    assert "no core 9999" in error and "measure.cores" in hint


def test_a_lowering_that_cannot_take_this_granularity(build: Refused) -> None:
    settings = ("quantize.granularity=group", "quantize.group_size=16", "target.lowering=int8", "lambda=0")
    error, hint = build(4, *settings)
    assert "`int8`" in error and "`group`" in error and "channel" in hint


def test_a_lowering_that_cannot_take_a_bundle(refused: Refused, bundle: Path) -> None:
    error, _ = refused(4, "bench", bundle, "--lowering", "float", "--quiet")
    assert str(bundle) in error and "`float`" in error and "3 bits" in error


# Checkpoints


class _Payload:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")


BAD_CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("notes.txt", lambda path: path.write_text("not a checkpoint")),
    "no safetensors": ("a.safetensors", lambda path: path.write_bytes(b"not a checkpoint" * 100)),
    "nothing": ("a.safetensors", lambda path: path.write_bytes(b"")),
    "endless header": ("a.safetensors", lambda path: path.write_bytes(b"\xff" * 8 + b"{}")),
    "no tensors": ("a.safetensors", lambda path: save_file({}, path)),
    "no pt": ("a.pt", lambda path: path.write_bytes(b"not a checkpoint" * 100)),
    "zip": ("a.pt", _zip),
    "list": ("a.pt", lambda path: torch.save([1, 2], path)),
    "pickled module": ("a.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path)),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_not_a_checkpoint(build: Refused, tmp_path: Path, kind: str) -> None:
    name, write = BAD_CHECKPOINTS[kind]
    write(tmp_path / name)
    error, _ = build(5, f"receiver.checkpoint={tmp_path / name}")
    assert str(tmp_path / name) in error


def test_pickled_code_is_never_run(build: Refused, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(10, 32), "epoch": _Payload(tmp_path / "was")}, tmp_path / "a.pt")
    error, hint = build(5, f"receiver.checkpoint={tmp_path}/a.pt")
    assert f"{tmp_path}/a.pt holds pickled code" in error and "state_dict" in hint
    assert not (tmp_path / "was").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "was").exists(), "this file would have shown nothing"


@pytest.mark.parametrize("which", ["receiver", "vector"])
@pytest.mark.parametrize("kept", [-1, 0.5, 20])
def test_a_truncated_safetensors_file(
    build: Refused, pico_folder: Path, tmp_path: Path, which: str, kept: float
) -> None:
    data = (pico_folder / f"{which}.safetensors").read_bytes()
    path = tmp_path / "short.safetensors"
    path.write_bytes(data[: int(kept * len(data)) if kept == 0.5 else int(kept)])
    field = {"receiver": f"receiver.checkpoint={path}", "vector": f"vector.files=[{path}]"}[which]
    error, hint = build(5, field)
    assert str(path) in error and "again" in hint


def test_a_truncated_pt_file(build: Refused, tmp_path: Path, pico_states: dict[str, State]) -> None:
    path = tmp_path / "short.pt"
    torch.save({name: torch.from_numpy(value) for name, value in pico_states["receiver"].items()}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    error, hint = build(5, f"receiver.checkpoint={path}")
    assert str(path) in error and "again" in hint


@pytest.mark.parametrize("which", ["receiver", "vector"])
def test_a_file_that_is_not_the_pinned_one(build: Refused, which: str) -> None:
    field = {"receiver": "receiver.sha256", "vector": "vector.sha256"}[which]
    value = "0" * 63 + "a"
    error, hint = build(5, f"{field}={value if which == 'receiver' else f'[{value}]'}")
    assert f"the recipe wants {value}" in error and "change `sha256`" in hint


@pytest.mark.parametrize("which", ["receiver", "vector"])
def test_a_missing_file(build: Refused, tmp_path: Path, which: str) -> None:
    field = {"receiver": "receiver.checkpoint=absent.pt", "vector": "vector.files=[absent.pt]"}[which]
    error, _ = build(6, field)
    assert f"{tmp_path}/absent.pt does not exist" in error, "relative to the recipe's folder"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blocks.1.mlp.fc2.weight", "head.bias"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_weight_that_is_not_a_number(
    build: Refused, tmp_path: Path, pico_states: dict[str, State], value: float, name: str, suffix: str
) -> None:
    state = {key: array.copy() for key, array in pico_states["receiver"].items()}
    state[name].flat[3] = value
    path = tmp_path / f"diverged{suffix}"
    if suffix == ".pt":
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, path)
    else:
        save_file(state, path)
    error, _ = build(5, f"receiver.checkpoint={path}")
    assert str(path) in error and name in error and "NaN" in error


def test_no_classes_in_the_head(build: Refused, tmp_path: Path, pico_states: dict[str, State]) -> None:
    path = tmp_path / "backbone.safetensors"
    save_file({key: value for key, value in pico_states["receiver"].items() if not key.startswith("head.")}, path)
    error, hint = build(4, f"receiver.checkpoint={path}")
    assert str(path) in error and "`head.weight`" in error and "head" in hint


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_a_checkpoint_of_another_model(
    build: Refused, tmp_path: Path, pico_states: dict[str, State], change: str
) -> None:
    state = dict(pico_states["receiver"])
    name = "blocks.0.attn.qkv.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        name = "blocks.9.attn.qkv.weight"
        state[name] = np.zeros((2, 2), np.float32)
    else:
        state[name] = state[name][:-1] if change == "shape" else state[name].astype(np.int32)
    save_file(state, tmp_path / "other.safetensors")
    error, _ = build(4, f"receiver.checkpoint={tmp_path}/other.safetensors")
    assert f"{tmp_path}/other.safetensors" in error and name in error


# Vectors


@pytest.mark.parametrize("setting", ["quantize.bits=4", "quantize.method=mse", "quantize.granularity=tensor"])
def test_a_vector_with_another_scheme(build: Refused, pico_folder: Path, setting: str) -> None:
    error, hint = build(4, setting)
    assert f"{pico_folder}/vector.safetensors was trained for 3 bits per channel, rtn" in error
    assert setting.partition("=")[2] in error.partition(";")[2] and "`quantize`" in hint


def test_a_vector_with_another_skip_list(build: Refused, pico_folder: Path) -> None:
    error, hint = build(4, "quantize.skip=[head,fc2]")
    assert f"{pico_folder}/vector.safetensors left head float" in error and "head, fc2" in error
    assert "quantize.skip" in hint


def test_a_checkpoint_in_place_of_a_vector(build: Refused, pico_folder: Path) -> None:
    error, hint = build(5, f"vector.files=[{pico_folder}/qat.safetensors]")
    assert f"{pico_folder}/qat.safetensors is not a quantization vector" in error and "vector.donors" in hint


# Images


@pytest.mark.parametrize("kind", ["missing", "empty", "folders without images"])
def test_an_evaluation_folder_without_images(build: Refused, tmp_path: Path, kind: str) -> None:
    root = tmp_path / "images"
    if kind != "missing":
        (root / ("" if kind == "empty" else "test/class0")).mkdir(parents=True)
    error, hint = build(6, evaluate={"dataset": "folder", "root": str(root)})
    assert str(root) in error and "per class" in hint


def test_an_evaluation_folder_with_other_classes(build: Refused, tmp_path: Path) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "images" / "test" / label).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / "test" / label / "0.png")
    error, hint = build(2, evaluate={"dataset": "folder", "root": str(tmp_path / "images")})
    assert "has 2 classes and the model's head 10; with pictures: cat, dog; without: none" in error
    assert "receiver.classes" in hint


# Where it is written


@pytest.fixture
def quick(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that end early or late in a fraction of the time: nothing is measured."""
    report = from_json((finished / "report.json").read_bytes())
    monkeypatch.setattr("qvec_deploy.builder.pipeline.measure_engines", lambda *_: BenchResult(report, None))


@pytest.mark.parametrize(
    ("kind", "force"),  # --force over a bundle is what it is for: test_build.py
    [("bundle", False), ("folder", False), ("file", False), ("folder", True), ("file", True)],
)
def test_an_output_that_exists(
    refused: Refused, pico_recipe: Callable[..., Path], bundle: Path, kind: str, force: bool
) -> None:
    target = bundle
    if kind != "bundle":
        target = bundle.parent / "mine"
        precious = target / "thesis" if kind == "folder" else target
        precious.parent.mkdir(exist_ok=True)
        precious.write_text("mine")
    before = _tree(bundle.parent)
    words = ("--force",) if force else ()
    error, hint = refused(6, "build", "--recipe", pico_recipe(), "-o", target, "--quiet", *words)
    assert error == f"{target} {'is not a bundle' if force else 'exists'}"
    assert "--force" in hint and "another directory" in hint
    assert _tree(bundle.parent) == before


@pytest.mark.parametrize("inner", ["pico", "deeper/pico"])
def test_an_unwritable_output(refused: Refused, pico_recipe: Callable[..., Path], shop: Path, inner: str) -> None:
    (shop / "file").write_text("mine")  # root may write anywhere but here
    error, _ = refused(6, "build", "--recipe", pico_recipe(), "-o", shop / "file" / inner, "--quiet")
    assert str(shop / "file") in error
    assert _tree(shop) == {"file": b"mine"}


def test_an_unwritable_report(refused: Refused, finished: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = from_json((finished / "report.json").read_bytes())
    monkeypatch.setattr("qvec_deploy.bundle.side_by_side.bench_bundles", lambda *_, **__: report)
    (shop / "file").write_text("mine")
    error, _ = refused(6, "bench", finished, "-o", shop / "file" / "report", "--quiet")
    assert str(shop / "file") in error
    assert _tree(shop) == {"file": b"mine"}


class _FullDisk(io.FileIO):
    """A file on a disk that fills up: half of what is written arrives."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: memoryview(data).nbytes // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "name", [WEIGHTS, "model.onnx", "parity.safetensors", "recipe.yaml", "report.html", "manifest.json"]
)
def test_a_full_disk(
    refused: Refused,
    pico_recipe: Callable[..., Path],
    bundle: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    force: bool,
) -> None:
    before = _tree(bundle.parent)
    real = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        if "w" in mode and name in self.name:
            return _FullDisk(self, "w")
        return real(self, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)
    where = (bundle, "--force") if force else (bundle.parent / "other",)
    error, hint = refused(6, "build", "--recipe", pico_recipe(), *FLOAT, "--quiet", "-o", *where)
    monkeypatch.undo()
    # What is not yet whole is told by the name that it will have.
    assert error.startswith(f"{bundle.parent}/") and "No space left" in error and "free some space" in hint
    assert _tree(bundle.parent) == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system refuses files of more than 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_a_vector(shop: Path, small_files: None) -> None:
    header = VectorHeader(Scheme(3, "channel"), ("head",), "pico", 0, 1.0, 1.0, "test")
    with pytest.raises(StorageError, match="too large"):
        write_vector(shop / "vector.safetensors", header, [("a", np.ones((100, 100), np.float32))])
    assert _tree(shop) == {}


# Ctrl-C, and what nobody foresaw

STAGES = [
    "builder.context.BuildContext.plan",
    "builder.weights.patch",
    "builder.context.BuildContext.skeleton",
    "builder.weights.check_graph",
    "builder.pipeline.make_engine",
    "builder.pipeline.measure_engines",
    "bundle.write.write_report",
    "bundle.write.write_manifest",
]


def _fail_at(stage: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stage of the pipeline raise."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"qvec_deploy.{stage}", fail)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c(
    run: Callable[..., tuple[int, str, str]],
    pico_recipe: Callable[..., Path],
    bundle: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    force: bool,
) -> None:
    before = _tree(bundle.parent)
    _fail_at(stage, KeyboardInterrupt(), monkeypatch)
    where = (bundle, "--force") if force else (bundle.parent / "other",)
    code, out, err = run("build", "--recipe", pico_recipe(), *FLOAT, "--quiet", "-o", *where)
    assert code == 130 and out == ""
    assert "interrupted" in err and "Traceback" not in err
    assert _tree(bundle.parent) == before


def test_ctrl_c_while_weights_are_written(
    run: Callable[..., tuple[int, str, str]],
    pico_recipe: Callable[..., Path],
    shop: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qvec_deploy.builder import weights as candidate

    real = candidate.patch
    written = []

    def patch(*arguments: Any) -> Iterator[Any]:
        for index, item in enumerate(real(*arguments)):
            if index == 7:
                written.extend(path.name for path in shop.rglob("*") if WEIGHTS in path.name)
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(candidate, "patch", patch)
    assert run("build", "--recipe", pico_recipe(), "-o", shop / "pico", "--quiet")[0] == 130
    assert written and WEIGHTS not in written, "half of it was there, under another name"
    assert _tree(shop) == {}


@pytest.mark.parametrize(
    "stage", ["builder.context.BuildContext.plan", "builder.weights.check_graph", "bundle.write.write_manifest"]
)
def test_a_bug_is_called_a_bug(
    run: Callable[..., tuple[int, str, str]],
    pico_recipe: Callable[..., Path],
    bundle: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    before = _tree(bundle.parent)
    _fail_at(stage, RuntimeError("the moon is full"), monkeypatch)
    code, out, err = run("build", "--recipe", pico_recipe(), *FLOAT, "-o", bundle.parent / "other", "--quiet")
    assert code == 1 and out == ""
    assert "Traceback (most recent call last)" in err and "RuntimeError: the moon is full" in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == ["error: this is a bug in qvec-deploy"]
    assert [line for line in err.splitlines() if line.startswith("hint: ")]
    assert _tree(bundle.parent) == before


# Finished bundles


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened of a bundle beyond its hashes; opening fails."""
    seen: list[str] = []

    def guard(name: str) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            seen.append(name)
            raise RuntimeError(f"{name} was opened")

        return fail

    monkeypatch.setattr(onnxruntime, "InferenceSession", guard("session"))
    monkeypatch.setattr("qvec_deploy.bench.run.probe", guard("probe"))
    monkeypatch.setattr(PackedFile, "open", guard("weights"))
    monkeypatch.setattr(onnx, "load", guard("graph"))
    return seen


COMMANDS = [("verify",), ("bench", "--quiet")]


@pytest.mark.parametrize("command", COMMANDS, ids=["verify", "bench"])
def test_the_guard_sees_what_is_opened(
    run: Callable[..., tuple[int, str, str]], bundle: Path, opened: list[str], command: tuple[str, ...]
) -> None:
    assert run(*command, bundle)[0] == 1
    assert opened


def _flip(path: Path, where: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "first bit flipped": lambda path: _flip(path, 0),
    "middle bit flipped": lambda path: _flip(path, 0.5),
    "last bit flipped": lambda path: _flip(path, 1),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("command", COMMANDS, ids=["verify", "bench"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name",
    ["model.onnx", WEIGHTS, "parity.safetensors", "recipe.yaml", "report.json", "report.md", "report.html"],
)
def test_a_bundle_changed_after_the_build(
    refused: Refused, bundle: Path, opened: list[str], name: str, change: str, command: tuple[str, ...]
) -> None:
    CHANGES[change](bundle / name)
    error, hint = refused(5, *command, bundle)
    expected = "is missing" if change == "removed" else "was changed after the build"
    assert error == f"{bundle / name} {expected}" and "again" in hint
    assert opened == []


def test_the_second_bundle_is_checked_before_the_first_is_opened(
    refused: Refused, bundle: Path, finished: Path, opened: list[str]
) -> None:
    _flip(bundle / WEIGHTS, 0.5)
    error, _ = refused(5, "bench", finished, bundle, "--quiet")
    assert str(bundle / WEIGHTS) in error
    assert opened == []


def _edit(bundle: Path, **values: object) -> None:
    edit_manifest(bundle, **values)


@pytest.mark.parametrize("command", [*COMMANDS, ("inspect",)], ids=["verify", "bench", "inspect"])
def test_a_bundle_of_a_later_major_version(
    refused: Refused, bundle: Path, opened: list[str], command: tuple[str, ...]
) -> None:
    _edit(bundle, version="2.0.0", something="new")
    error, hint = refused(4, *command, bundle)
    assert f"{bundle}/manifest.json" in error and "2.0.0" in error and FORMAT_VERSION in hint
    assert opened == []


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        lambda path: _edit(path.parent, format="qvec-packed"),
        lambda path: _edit(path.parent, files=3),
        lambda path: _edit(path.parent, something="new"),
        lambda path: path.write_text("[" * 200_000),
    ],
    ids=["truncated", "a list", "empty", "another format", "wrong type", "unknown field", "deep"],
)
def test_a_damaged_manifest(
    refused: Refused, bundle: Path, opened: list[str], change: Callable[[Path], object]
) -> None:
    change(bundle / "manifest.json")
    error, _ = refused(5, "verify", bundle)
    assert f"{bundle}/manifest.json" in error
    assert opened == []


@pytest.mark.parametrize("name", ["model.onnx", WEIGHTS, "parity.safetensors", "recipe.yaml"])
@pytest.mark.parametrize("command", COMMANDS, ids=["verify", "bench"])
def test_a_manifest_that_lists_not_all_that_is_opened(
    refused: Refused, bundle: Path, opened: list[str], name: str, command: tuple[str, ...]
) -> None:
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    _edit(bundle, files={key: entry for key, entry in files.items() if key != name})
    error, _ = refused(5, *command, bundle)
    assert error == f"{bundle}: the manifest lacks {name}"
    assert opened == []


def test_a_manifest_that_names_a_file_elsewhere(refused: Refused, bundle: Path, opened: list[str]) -> None:
    entry = json.loads((bundle / "manifest.json").read_text())["files"]["model.onnx"]
    (bundle / "model.onnx").rename(bundle.parent / "model.onnx")
    _edit(bundle, files={"../model.onnx": entry})
    error, _ = refused(5, "verify", bundle)
    assert str(bundle) in error and "../model.onnx" in error
    assert opened == []


@pytest.mark.parametrize("command", [*COMMANDS, ("inspect",)], ids=["verify", "bench", "inspect"])
def test_a_directory_that_is_no_bundle(refused: Refused, shop: Path, command: tuple[str, ...]) -> None:
    (shop / "notes").write_text("mine")
    error, hint = refused(6, *command, shop)
    assert f"{shop} is not a bundle" in error and "qvec-deploy build" in hint


@pytest.mark.parametrize("name", ["absent", "x" * 300], ids=["absent", "too long"])
@pytest.mark.parametrize("command", [*COMMANDS, ("inspect",)], ids=["verify", "bench", "inspect"])
def test_a_bundle_that_is_not_there(refused: Refused, tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    error, _ = refused(6, *command, tmp_path / name)
    assert str(tmp_path / name) in error


@pytest.mark.parametrize("kept", [1.0, 0.5, 0.01])
def test_a_truncated_packed_file(refused: Refused, bundle: Path, kept: float) -> None:
    """Without its bundle, so without the manifest's hash."""
    data = (bundle / WEIGHTS).read_bytes()
    (bundle.parent / WEIGHTS).write_bytes(data[: int(kept * len(data)) - 1])
    error, hint = refused(5, "inspect", bundle.parent / WEIGHTS)
    assert str(bundle.parent / WEIGHTS) in error and "again" in hint
