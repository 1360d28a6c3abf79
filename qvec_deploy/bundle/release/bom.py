"""sbom.cdx.json: the CycloneDX 1.6 bill of materials of a release, with its model card as a machine reads it."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.summary import LatencyRow, dataset_named, rows
from qvec_deploy.bundle.manifest import FileEntry
from qvec_deploy.bundle.release.release_subject import Subject
from qvec_deploy.report import candidate_text, prose
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/schema/bom-1.6.schema.json")
PROPERTY = "qvec-deploy"


def bill_of_materials(subject: Subject, files: dict[str, FileEntry]) -> bytes:
    """The bill as JSON. The same release gives the same bytes: number and time are those of the bundle's manifest.

    The library has no model cards yet, so that part is added to what it writes.

    Args:
        files: Everything in the release but the manifest, the bill itself and the signature.
    """
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    text = make_outputter(_bom(subject, files), OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    document = json.loads(text)
    document["metadata"]["component"]["modelCard"] = _model_card(subject)
    return f"{json.dumps(document, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


def _bom(subject: Subject, files: dict[str, FileEntry]) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import ComponentScope
    from cyclonedx.model.tool import ToolRepository

    manifest = subject.manifest
    version = manifest.versions.get("qvec-deploy")
    tool = _component("qvec-deploy", "APPLICATION", "tool:qvec-deploy", version=version)
    model = _model(subject)
    runs_on = find_runtime(manifest.engine.runtime).packages
    libraries = [_library(name, version, name in runs_on) for name, version in sorted(manifest.versions.items())]
    sources = [
        _component(name, "DATA", f"{role}:{name}@{digest[:12]}", digest, description=role)
        for role, name, digest in subject.sources()
        if role != "receiver"
    ]
    metadata = BomMetaData(
        component=model,
        timestamp=datetime.datetime.fromisoformat(manifest.created),
        tools=ToolRepository(components=[tool]),
    )
    own = [
        _component(name, "FILE", f"file:{name}", entry.sha256, {"bytes": str(entry.size)})
        for name, entry in sorted(files.items())
    ]
    components = [*own, *sources, *libraries]
    bom = Bom(serial_number=uuid.uuid5(NAMESPACE, subject.identity), metadata=metadata, components=components)
    bom.register_dependency(model, [each for each in components if each.scope is not ComponentScope.EXCLUDED])
    return bom


def _model(subject: Subject) -> Component:
    """The model; its hash is that of its weights, its ancestor the receiver."""
    from cyclonedx.model.component import Pedigree

    manifest, own = subject.manifest, subject.shipped.candidate
    (_, name, digest), *_ = subject.sources()
    patched = "receiver + lambda x vectors" if manifest.lam else "receiver"
    made = subject.method if own.scheme is None else f"quantized with {subject.method}"
    facts = {
        "hashed": WEIGHTS_FILE,
        "lambda": f"{manifest.lam:g}",
        "vectors": ", ".join(f"{weight:g} x {name}" for name, weight in subject.mixture()) or "none",
        "control": manifest.control or "none",
        "method": subject.method,
        "grid": candidate_text.grid(own),
        "runtime": manifest.engine.runtime,
        "lowering": manifest.engine.lowering,
        "unverified": manifest.unverified or "no",
        "recipe.sha256": manifest.recipe_sha256,
    }
    ancestor = _component(name, "MACHINE_LEARNING_MODEL", f"receiver:{name}@{digest[:12]}", digest)
    return _component(
        manifest.name,
        "MACHINE_LEARNING_MODEL",
        "model",
        manifest.files[WEIGHTS_FILE].sha256,
        facts,
        description=f"timm {manifest.model.name}, {manifest.model.classes} classes: {candidate_text.grid(own)}",
        pedigree=Pedigree(ancestors=[ancestor], notes=f"{patched}, {made}"),
    )


def _component(
    name: str, kind: str, ref: str, digest: str = "", facts: Mapping[str, str] | None = None, **more: Any
) -> Component:
    """A component with the SHA-256 that it has, if it has one, and with facts of ours."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=name,
        type=ComponentType[kind],
        bom_ref=ref,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else None,
        properties=[Property(name=f"{PROPERTY}:{key}", value=value) for key, value in (facts or {}).items()],
        **more,
    )


def _library(name: str, version: str, needed: bool) -> Component:
    """A package of the build; one that the engine does not run on is excluded, which is CycloneDX's word for it."""
    from cyclonedx.model.component import ComponentScope
    from packageurl import PackageURL

    scope = ComponentScope.REQUIRED if needed else ComponentScope.EXCLUDED
    purl = PackageURL("pypi", name=name, version=version)
    return _component(name, "LIBRARY", f"pypi:{name}", version=version, scope=scope, purl=purl)


def _model_card(subject: Subject) -> dict[str, Any]:
    """CycloneDX's `modelCard`: parameters, metrics with their intervals, considerations."""
    model, report = subject.manifest.model, subject.report
    shape = "x".join(map(str, model.input_shape))
    datasets = [
        {
            "type": "dataset",
            "name": name,
            "contents": {"properties": [{"name": f"{PROPERTY}:used-for", "value": purpose}]},
        }
        for name, purpose in subject.looked_at()
    ]
    return {
        "modelParameters": {
            "task": "image-classification",
            "modelArchitecture": model.name,
            "inputs": [{"format": f"float32 images {shape}"}],
            "outputs": [{"format": f"float32 logits of {model.classes} classes"}],
            **({"datasets": datasets} if datasets else {}),
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_metrics(subject))},
        "considerations": {
            "technicalLimitations": list(subject.limits()),
            "performanceTradeoffs": [prose.headline(report, rows(report))],
        },
    }


def _metrics(subject: Subject) -> Iterator[dict[str, Any]]:
    """What was measured on the shipped engine, in full precision."""
    report, shipped = subject.report, subject.shipped
    images = f"{dataset_named(report)}, {report.images:,} images"
    if shipped.top1 is not None:
        yield _metric("top-1 accuracy", shipped.top1, images)
    for other, delta in sorted(shipped.deltas.items()):
        yield _metric(f"top-1 accuracy minus that of {other}", delta, images)
    for entry in shipped.latency:
        yield from _latency_metrics(entry, report.baseline)
    candidate = shipped.candidate
    yield _metric("stored bytes", subject.manifest.stored_bytes)
    yield _metric("stored bits per quantized weight", candidate.stored_bits_per_weight)
    yield _metric("run-time bits per quantized weight", candidate.runtime_bits_per_weight)


def _latency_metrics(entry: LatencyRow, baseline: str) -> Iterator[dict[str, Any]]:
    batch = f"batch size {entry.batch_size}, {entry.samples} samples"
    yield _metric("median host latency in ms", entry.median_interval or entry.median_ms, batch)
    yield _metric("images per second", entry.images_per_s, batch)
    if entry.speed_up is not None:
        yield _metric(f"speed-up over {baseline}", entry.speed_up, batch)


def _metric(kind: str, value: Estimate | float, part: str = "") -> dict[str, Any]:
    metric: dict[str, Any] = {"type": kind, "value": repr(value.value if isinstance(value, Estimate) else value)}
    if part:
        metric["slice"] = part
    if isinstance(value, Estimate):
        metric["confidenceInterval"] = {"lowerBound": repr(value.low), "upperBound": repr(value.high)}
    return metric
