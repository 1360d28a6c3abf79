"""JSON there and back, and what the reader refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_example import example_report, gpu_report, patched_report, selecting_report
from shown import html_of, markdown_of

from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.errors import IncompatibleError, IntegrityError
from qvec_deploy.report.overview import overview
from qvec_deploy.report.report_json import from_json, overview_json, read_report_json, report_schema, to_json

GOLDEN = Path(__file__).parents[1] / "golden" / "report_structure.json"
PUBLISHED = json.loads((Path(__file__).parents[2] / "qvec_deploy" / "report.schema.json").read_text(encoding="utf-8"))


def structure(value: Any) -> Any:
    """Keys and types; one example stands for all entries of a list."""
    if isinstance(value, dict):
        return {key: structure(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [structure(value[0])] if value else []
    return type(value).__name__


@pytest.mark.parametrize("arguments", [{}, {"batch_sizes": (1, 8)}, {"selected": None}, {"batch_sizes": ()}])
def test_a_report_survives_the_file(arguments):
    report = example_report(**arguments)
    assert from_json(to_json(report)) == report


@pytest.mark.parametrize("make", [selecting_report, patched_report])
def test_selection_and_gates_survive_the_file(make):
    report = make()
    again = from_json(to_json(report))
    assert again == report
    assert (again.selection, again.gates) == (report.selection, report.gates)


def test_a_selection_of_no_candidate_is_refused():
    document = json.loads(to_json(selecting_report()))
    document["selection"]["confirmed"][0]["name"] = "missing"
    with pytest.raises(IntegrityError, match="the finalist 'missing' is no candidate"):
        from_json(json.dumps(document).encode())


@pytest.mark.slow
def test_a_report_that_was_read_looks_the_same():
    report = selecting_report()
    again = from_json(to_json(report))
    assert markdown_of(again) == markdown_of(report)
    assert html_of(again) == html_of(report)


def test_the_bytes_are_canonical():
    data = to_json(example_report())
    assert data == to_json(example_report())
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()


def test_every_sample_is_in_the_file():
    report = example_report(batch_sizes=(1, 8))
    document = json.loads(to_json(report))
    for candidate, written in zip(report.candidates, document["candidates"], strict=True):
        assert [tuple(entry["samples_ms"]) for entry in written["latency"]] == [
            entry.samples_ms for entry in candidate.latency
        ]


def test_the_structure_is_what_programs_were_promised(check_golden):
    report = replace(patched_report(), gates=selecting_report().gates, environment=gpu_report().environment)
    candidates = (report["mean"], report["float"], report["ptq"])  # the first has every field filled
    report = replace(report, candidates=candidates)
    document = json.loads(to_json(report))
    check_golden(GOLDEN, json.dumps(structure(document), indent=1, sort_keys=True) + "\n")


def test_whole_numbers_in_float_fields_are_fine():
    report = example_report()
    whole = replace(report["ptq"], stored_bits_per_weight=3)
    report = replace(report, candidates=(report["float"], whole), selected="ptq", warnings=())
    assert from_json(to_json(report)) == report


def test_a_measurement_that_is_no_number_is_not_written():
    report = example_report()
    broken = replace(report["float"], latency=(LatencySamples(1, (float("nan"),) * 40),))
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json(replace(report, candidates=(broken,), selected=None, warnings=()))


def altered(**changes: Any) -> bytes:
    return json.dumps({**json.loads(to_json(example_report())), **changes}).encode()


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(to_json(example_report())).items() if k != key}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "no JSON object"),
        (altered(schema_version=True), "schema_version is True"),
        (altered(schema_version=None), "schema_version is None"),
        (altered(extra=1), "never written"),
        (altered(images="2700"), "never written"),
        (altered(images="many"), "images: Input should be"),
        (altered(selected="missing"), "no candidate"),
        (altered(candidates=[]), "no candidate"),
        (without("environment"), "environment: Field required"),
    ],
)
def test_what_was_never_written_is_refused(data, message):
    with pytest.raises(IntegrityError, match=message):
        from_json(data)


@pytest.mark.parametrize(("version", "hint"), [(2, "build the bundle again"), (4, "upgrade qvec-deploy")])
def test_another_schema_version_is_no_damage(version, hint):
    with pytest.raises(IncompatibleError, match=f"schema_version is {version}") as caught:
        from_json(altered(schema_version=version))
    assert caught.value.exit_code == 4 and hint in caught.value.hint


@pytest.mark.parametrize("make", [selecting_report, patched_report, gpu_report, example_report])
def test_reports_are_as_the_published_schema_says(make):
    jsonschema.validate(json.loads(to_json(make())), PUBLISHED)


@pytest.mark.slow
def test_several_reports_are_as_the_published_schema_says():
    shown = overview({"a": example_report(), "b": selecting_report()})
    document = json.loads(overview_json(shown))
    jsonschema.validate(document, PUBLISHED)
    assert document["ranking"] == ["a", "b"], "b misses a gate"
    assert document["reports"]["b"] == json.loads(to_json(selecting_report()))


def test_the_published_schema_is_current():
    assert report_schema() == PUBLISHED, "qvec-deploy schema --of report > the file"
    jsonschema.Draft202012Validator.check_schema(PUBLISHED)


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"extra": 1}, {"images": "many"}, {"candidates": [{}]}, {"derived": {"float": {}}}],
)
def test_the_schema_refuses_what_is_never_written(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(altered(**change)), PUBLISHED)


def test_an_impossible_scheme_is_refused():
    document = json.loads(to_json(example_report()))
    document["candidates"][1]["scheme"]["bits"] = 99
    with pytest.raises(IntegrityError, match="99 bits"):
        from_json(json.dumps(document).encode())


def test_a_report_of_any_size_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(IntegrityError, match=r"report\.json is damaged: it has more than 16,777,216 bytes"):
        read_report_json(path)
