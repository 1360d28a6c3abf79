"""The provenance of a release holds what SLSA asks for, in the published schema, and says what is in the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from release_example import PACKAGES, VECTORS, subject

from qvec_deploy.bundle.release.provenance import provenance
from qvec_deploy.bundle.release.release_subject import Subject
from qvec_deploy.io.source_commit import source_commit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _statement(about: Subject) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(provenance(about, about.manifest.files))
    return values


def _committed() -> Subject:
    about = subject()
    return replace(about, manifest=about.manifest.model_copy(update={"source_commit": COMMIT}))


@pytest.mark.parametrize("about", [subject(), _committed()], ids=["installed", "checkout"])
def test_the_published_schema(about: Subject) -> None:
    """Protobuf refuses fields that in-toto and SLSA do not have."""
    values = _statement(about)
    statement = json_format.ParseDict(values, statement_pb2.Statement())
    Statement.copy_from_pb(statement).validate()
    predicate = json_format.ParseDict(values["predicate"], provenance_pb2.Provenance())
    assert values["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, details = predicate.build_definition, predicate.run_details
    assert definition.build_type and definition.external_parameters.fields and details.builder.id  # what SLSA requires
    for descriptor in definition.resolved_dependencies:
        ResourceDescriptor.copy_from_pb(descriptor).validate()
    assert details.metadata.started_on.seconds < details.metadata.finished_on.seconds


def test_what_it_says() -> None:
    about = _committed()
    values = _statement(about)
    digests = {entry["name"]: entry["digest"]["sha256"] for entry in values["subject"]}
    assert digests == {name: entry.sha256 for name, entry in about.manifest.files.items()}
    definition, details = (values["predicate"][name] for name in ("buildDefinition", "runDetails"))
    assert definition["externalParameters"] == {"recipe": about.recipe.as_dict()}
    found = {entry["name"]: entry for entry in definition["resolvedDependencies"]}
    for name in (about.receiver, *VECTORS):
        assert found[name]["digest"]["sha256"] in about.manifest.sources.values()
    for name, version in PACKAGES.items():
        assert found[name]["uri"] == f"pkg:pypi/{name}@{version}"
    assert found["source of qvec-deploy"]["digest"] == {"gitCommit": COMMIT}
    assert details["builder"]["version"] == {"qvec-deploy": PACKAGES["qvec-deploy"]}
    assert details["metadata"]["finishedOn"] == "2026-11-01T12:00:00Z"
    assert details["metadata"]["invocationId"] == about.identity


def test_the_same_bundle_gives_the_same_bytes() -> None:
    assert provenance(subject(), subject().manifest.files) == provenance(subject(), subject().manifest.files)


def test_a_commit_is_one_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = source_commit()
    assert found is None or (len(found) == 40 and int(found, 16) >= 0)
    monkeypatch.setenv("PATH", "")
    assert source_commit() is None
