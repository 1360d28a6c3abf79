"""Report <-> JSON: inputs in full, every sample included, and beside them what the tables show."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from qvec_deploy.errors import IntegrityError, RecipeError
from qvec_deploy.report.summary import Row, rows
from qvec_deploy.report.values import SCHEMA_VERSION, Report
from qvec_deploy.store import canonical_json


def to_json(report: Report) -> bytes:
    """The report as canonical JSON. `derived` repeats what the tables show; a reader computes it anew.

    Raises:
        ValueError: A measurement is NaN or infinite.
    """
    return canonical_json({**asdict(report), "derived": {row.candidate.name: _derived(row) for row in rows(report)}})


def _derived(row: Row) -> dict[str, Any]:
    return {
        "levels": row.candidate.levels,
        "top1": asdict(row.top1) if row.top1 else None,
        "deltas": {name: asdict(delta) for name, delta in row.deltas.items()},
        "latency": [asdict(entry) for entry in row.latency],
    }


def from_json(data: bytes) -> Report:
    """Read what `to_json` wrote.

    Raises:
        IntegrityError: It is not JSON, of another schema version, or not what `to_json` writes.
    """
    import pydantic

    try:
        document = json.loads(data)
    except ValueError as error:
        raise IntegrityError(f"the report is not JSON: {error}", hint="build the bundle again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"the report's schema_version is {version!r}", hint=f"this qvec-deploy reads version {SCHEMA_VERSION}"
        )
    document.pop("derived", None)
    try:
        report = pydantic.TypeAdapter(Report).validate_python(document)
    except (pydantic.ValidationError, RecipeError) as error:
        raise IntegrityError(f"the report does not fit together: {error}", hint="build the bundle again") from error
    # pydantic converts and drops where it can; a report that was written by this program needs neither.
    if json.loads(json.dumps(asdict(report))) != document:
        raise IntegrityError("the report has fields or types that are never written", hint="build the bundle again")
    return report
