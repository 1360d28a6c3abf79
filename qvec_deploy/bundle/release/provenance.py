"""provenance.intoto.json: how a release was made, as an in-toto statement with the provenance of SLSA 1.0 in it.

It says what the manifest says in words that other programs understand. The signatures cover it like any other file.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any

from qvec_deploy.bundle.manifest import FileEntry
from qvec_deploy.bundle.release.release_subject import Subject

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:qvec-deploy:build:v1"
"""The external parameters of such a build are a recipe, as `build` reads it."""
BUILDER = "urn:qvec-deploy:builder"


def provenance(subject: Subject, files: Mapping[str, FileEntry]) -> bytes:
    """The statement as JSON; the same bundle gives the same bytes.

    Args:
        files: Everything in the release but the manifest, the provenance itself and the signatures.
    """
    manifest = subject.manifest
    finished = datetime.datetime.fromisoformat(manifest.created)
    started = finished - datetime.timedelta(seconds=sum(manifest.timings_s.values()))
    version = manifest.versions.get("qvec-deploy")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": entry.sha256}} for name, entry in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": subject.recipe.as_dict()},
                "internalParameters": {"recipe_sha256": manifest.recipe_sha256},
                "resolvedDependencies": list(_dependencies(subject)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, **({"version": {"qvec-deploy": version}} if version is not None else {})},
                "metadata": {
                    "invocationId": subject.identity,
                    "startedOn": _time(started),
                    "finishedOn": _time(finished),
                },
            },
        },
    }
    return f"{json.dumps(statement, indent=2, sort_keys=True, allow_nan=False)}\n".encode()


def _dependencies(subject: Subject) -> Iterator[dict[str, Any]]:
    """Checkpoint and vectors by their hashes, packages by their versions, and the commit of this program."""
    manifest = subject.manifest
    for role, name, digest in subject.sources():
        yield {"name": name, "digest": {"sha256": digest}, "annotations": {"role": role}}
    for name, version in sorted(manifest.versions.items()):
        yield {"name": name, "uri": f"pkg:pypi/{name}@{version}"}
    if manifest.source_commit is not None:
        yield {"name": "source of qvec-deploy", "digest": {"gitCommit": manifest.source_commit}}


def _time(time: datetime.datetime) -> str:
    """As SLSA wants it: RFC 3339 in UTC, with a Z."""
    return time.astimezone(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
