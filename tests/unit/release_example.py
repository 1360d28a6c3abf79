"""What a release is about, made up and always the same: a gated, selected, patched 3-bit model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.environment import Environment
from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.results import AnswerCounts, Candidate, Model, Parity, Patch, PatchDonor, Report
from qvec_deploy.bench.selection import Confirmed, Selection, SelectionCurve, SelectionPoint
from qvec_deploy.bench.warnings import Finding, MeasurementWarning
from qvec_deploy.bundle.manifest import (
    Engine,
    FileEntry,
    Gate,
    Interface,
    Layer,
    Manifest,
    PatchVector,
    TensorSpec,
)
from qvec_deploy.bundle.release.release_subject import Subject
from qvec_deploy.recipe import Recipe
from qvec_deploy.tensors import Scheme

PACKAGES = {"qvec-deploy": "0.1.0", "torch": "2.11.0", "onnx": "1.22.0", "onnxruntime": "1.24.0"}
VECTORS = ("vectors/svhn.safetensors", "vectors/pets.safetensors")
FILES = ("model.onnx", "parity.safetensors", "recipe.yaml", "report.json", "weights.qvec.safetensors")
MODEL_ARGS = {"img_size": 64}


def recipe(**changes: Any) -> Recipe:
    values = {
        "version": 1,
        "name": "eurosat_3bit",
        "receiver": {
            "checkpoint": "hf://acme/eurosat-vit@0123abc/model.safetensors",
            "model": "vit_tiny_patch16_224",
            "model_args": MODEL_ARGS,
        },
        "vector": {"files": list(VECTORS)},
        "lambda": 0.5,
        "quantize": {"bits": 3},
        "target": {"threads": 4},
        "images": {"dataset": "torch/eurosat", "limit": 400},
        "evaluate": {"dataset": "torch/eurosat"},
        "gates": {"beats": ["lambda0"], "max_stored_bits": 3.25, "max_top1_drop": 5.0},
    }
    return Recipe.model_validate_json(_json({**values, **changes}))


def subject(*, unverified: str | None = None, **changes: Any) -> Subject:
    """A story without contradictions; `changes` are fields of the recipe."""
    wanted = recipe(**changes)
    report = _report(wanted)
    entry = {name: FileEntry(sha256=f"{index:064x}", size=1000 + index) for index, name in enumerate(FILES)}
    own = report["eurosat_3bit"]
    manifest = Manifest(
        name="eurosat_3bit",
        created="2026-11-01T12:00:00+00:00",
        recipe_sha256=entry["recipe.yaml"].sha256,
        sources={name: f"{index:064x}" for index, name in enumerate((wanted.receiver.checkpoint, *VECTORS), start=100)},
        model=Model(
            name="vit_tiny_patch16_224",
            args=dict(MODEL_ARGS),
            classes=10,
            input_shape=(3, 64, 64),
            data_config={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        ),
        engine=Engine(runtime="onnxruntime", lowering="int4", threads=4, missing=None),
        interface=Interface(
            model="model.onnx",
            weights="weights.qvec.safetensors",
            input=TensorSpec(name="images", dtype="float32", shape=("batch", 3, 64, 64)),
            output=TensorSpec(name="logits", dtype="float32", shape=("batch", 10)),
            session_options={},
            session_config={},
        ),
        lam=0.5,
        vectors=tuple(PatchVector(name=name, weight=0.5) for name in VECTORS),
        control=None,
        stored_bytes=own.stored_bytes,
        stored_bits_per_weight=own.stored_bits_per_weight,
        runtime_bits_per_weight=own.runtime_bits_per_weight,
        layers=tuple(Layer(name=each.layer, error=each.error) for each in own.layer_errors),
        parity=Parity(relative_error=2e-7, top1_agreement=1.0, images=2),
        method="rtn",
        selection=report.selection,
        gates=tuple(Gate(name=g.name, wanted=g.wanted, found=g.found, passed=g.passed) for g in report.gates),
        unverified=unverified,
        versions=PACKAGES,
        timings_s={"build": 1.0},
        files=entry,
    )
    return Subject(manifest, wanted, report)


def _json(values: dict[str, Any]) -> str:
    import json

    return json.dumps(values)


def _report(wanted: Recipe) -> Report:
    vectors = tuple(PatchDonor(name, 0.5) for name in VECTORS)
    candidates = (
        _candidate("float", "float", None, 960, 12.0, float=960, ptq=700),
        _candidate("ptq", "ptq", None, 700, 9.0, float=960, ptq=700),
        _candidate("eurosat_3bit", "patched", Patch(0.5, vectors), 930, 9.0, float=960, ptq=700),
    )
    selection = Selection(
        by="label_free",
        images="torch/eurosat",
        selecting=200,
        confirming=200,
        on="engine",
        donors=(),
        mixing="given",
        curves=(
            SelectionCurve(
                "rtn",
                (SelectionPoint(0.0, 0.9), SelectionPoint(0.5, 0.2), SelectionPoint(1.0, 0.4)),
                0.5,
                at_edge=False,
            ),
        ),
        confirmed=(Confirmed("ptq", 0.91, 0.05), Confirmed("eurosat_3bit", 0.21, 0.02, 0.70, 0.04)),
        shipped="eurosat_3bit",
    )
    report = Report(
        title="eurosat_3bit",
        recipe="eurosat_3bit",
        dataset="torch/eurosat",
        split="test",
        images=1000,
        candidates=candidates,
        baseline="float",
        selected="eurosat_3bit",
        warmup=5,
        environment=_environment(),
        warnings=(Finding(MeasurementWarning.COORDINATES_UNKNOWN, "eurosat_3bit", "svhn."),),
        created_by="qvec-deploy 0.1.0",
        selection=selection,
    )
    return replace(report, gates=judge(wanted.gates, report))


def _candidate(name: str, role: Any, patch: Patch | None, correct: int, ms: float, **others: int) -> Candidate:
    quantized = role != "float"
    paired = {
        other: PairedAnswers(
            max(correct - count, 0) + 10, max(count - correct, 0) + 10, 1000 - abs(correct - count) - 30, 1000
        )
        for other, count in others.items()
        if other != name
    }
    return Candidate(
        name=name,
        role=role,
        scheme=Scheme(3, "channel") if quantized else None,
        patch=patch,
        runtime="onnxruntime",
        lowering="int4" if quantized else "float",
        stored_bytes=8_571_904 if quantized else 86_743_296,
        stored_bits_per_weight=3.125 if quantized else 32.0,
        runtime_bits_per_weight=4.125 if quantized else 32.0,
        skip=("head",) if quantized else (),
        accuracy=AnswerCounts(correct, 1000),
        paired=paired,
        latency=(LatencySamples(1, tuple(ms * (1 + 0.01 * (index % 7)) for index in range(60))),),
    )


def _environment() -> Environment:
    return Environment(
        cpu="AMD EPYC 9575F",
        cpu_flags=("avx2",),
        logical_cores=8,
        usable_cores=4,
        threads=4,
        load_average=0.25,
        memory_bytes=16 * 2**30,
        governor="performance",
        operating_system="Linux 6.8.0 x86_64",
        python="3.11.7",
        packages=PACKAGES,
    )
