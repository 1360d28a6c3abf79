"""Report <-> JSON: inputs in full, every sample included, and beside them what the tables show; and its JSON schema."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from qvec_deploy.bench.results import SCHEMA_VERSION, Report
from qvec_deploy.bench.statistics import Estimate
from qvec_deploy.bench.summary import LatencyRow, rows
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.untrusted import MAX_BYTES, adapter, json_object, read_limited, understood
from qvec_deploy.report.overview import Overview

DAMAGED = "build or copy the bundle again"


@dataclass(frozen=True)
class Derived:
    """What follows from a candidate's measurements (see `summary.Row`); a reader may compute it anew.

    Attributes:
        levels: Codes that the quantizer can reach; null for float.
        top1: A fraction, with its Wilson interval.
        calibration_error: Expected calibration error, a fraction.
        agreement: Share of images with the float receiver's answer, with its Wilson interval.
        deltas: By another candidate's name, the difference of the accuracies on the same images.
        latency: Per batch size, ascending.
    """

    levels: int | None
    top1: Estimate | None
    top5: Estimate | None
    calibration_error: float | None
    agreement: Estimate | None
    deltas: dict[str, Estimate]
    p_values: dict[str, float]
    latency: tuple[LatencyRow, ...]


@dataclass(frozen=True)
class Document(Report):
    """The document of one report."""

    derived: dict[str, Derived] = field(default_factory=dict)


@dataclass(frozen=True)
class Documents:
    """The document of several reports beside each other.

    Attributes:
        ranking: Names of the reports, the best first.
    """

    ranking: tuple[str, ...]
    reports: dict[str, Document]
    schema_version: int = SCHEMA_VERSION


def to_json(report: Report) -> bytes:
    """The report as canonical JSON. `derived` repeats what the tables show; a reader computes it anew."""
    return canonical_json(asdict(_document(report)))


def overview_json(shown: Overview) -> bytes:
    """Several reports as canonical JSON, the best named first."""
    reports = {standing.name: _document(standing.report) for standing in shown.standings}
    return canonical_json(asdict(Documents(tuple(reports), reports)))


def report_schema() -> dict[str, Any]:
    """The JSON schema of both documents: of one report, and of several."""
    import pydantic

    either: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(
        Document | Documents, config=pydantic.ConfigDict(extra="forbid")
    )
    schema = either.json_schema(mode="serialization")
    for name in ("Document", "Documents"):
        schema["$defs"][name]["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Report of qvec-deploy"}
    return head | schema


def read_report_json(path: Path) -> Report:
    """Read the file that `to_json` gave."""
    with understood(path, DAMAGED):
        data = read_limited(path, MAX_BYTES)
    return from_json(data, path)


def from_json(data: bytes, where: Path | str = "the report") -> Report:
    """Read what `to_json` wrote."""
    with understood(where, DAMAGED):
        document = _read(data)
        document.pop("derived", None)
        report: Report = adapter(Report).validate_python(document)
        # pydantic converts and drops where it can; a report that was written by this program needs neither.
        if not _is_within(document, json.loads(json.dumps(asdict(report)))):
            raise ValueError("it has fields or types that are never written")
        rows(report)  # what the pages derive from it
    return report


def _is_within(read: Any, whole: Any) -> bool:
    """Whether a document is all of `whole`, but for fields that came after the version that wrote it."""
    if isinstance(read, dict) and isinstance(whole, dict):
        return all(name in whole and _is_within(value, whole[name]) for name, value in read.items())
    if isinstance(read, list) and isinstance(whole, list):
        return len(read) == len(whole) and all(map(_is_within, read, whole))
    return isinstance(read, bool) == isinstance(whole, bool) and bool(read == whole)


def _read(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has {len(data):,} bytes")
    document = json_object(data)
    version = document.get("schema_version")
    if type(version) is not int:
        raise IntegrityError(f"the report's schema_version is {version!r}", hint=DAMAGED)
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise IncompatibleError(
            f"the report's schema_version is {version}, and this qvec-deploy reads {SCHEMA_VERSION}",
            hint="upgrade qvec-deploy"
            if newer
            else "build the bundle again, or read it with the version that wrote it",
        )
    return document


def _document(report: Report) -> Document:
    derived = {
        row.candidate.name: Derived(row.candidate.levels, *(getattr(row, part.name) for part in fields(Derived)[1:]))
        for row in rows(report)
    }
    return Document(**{entry.name: getattr(report, entry.name) for entry in fields(Report)}, derived=derived)
