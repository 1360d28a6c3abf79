"""manifest.json knows itself: an accident is found without a key, whatever bit it hits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest
from release_example import subject

from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    manifest_bytes,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from qvec_deploy.datasets.standalone_run import RunError, read_facts
from qvec_deploy.errors import IntegrityError, QvecError

GOLDEN = Path(__file__).parents[1] / "golden" / "v0.1.0" / "bundle"
PATH = Path(MANIFEST_FILE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path, subject().manifest)
    return tmp_path


def test_what_is_written_is_read(folder: Path) -> None:
    found = read_manifest(folder)
    assert found.version == FORMAT_VERSION and found.digest is not None and len(found.digest) == 64
    assert found.model_copy(update={"digest": None}) == subject().manifest
    write_manifest(folder, found)  # the digest is of what is written
    assert read_manifest(folder) == found
    assert read_facts(folder)["name"] == found.name


def _unnoticed(data: bytes, bits: range) -> list[int]:
    found = []
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            parse_manifest(bytes(changed), PATH)
            found.append(bit)
        except QvecError:
            pass
    return found


def test_a_flipped_bit_is_found(folder: Path) -> None:
    data = (folder / MANIFEST_FILE).read_bytes()
    assert _unnoticed(data, range(0, 8 * len(data), 7)) == []


@pytest.mark.slow
def test_every_flipped_bit_of_a_bundle_is_found(tmp_path: Path) -> None:
    values = json.loads((GOLDEN / MANIFEST_FILE).read_text())
    data = manifest_bytes(values | {"version": FORMAT_VERSION})
    parse_manifest(data, PATH)
    assert _unnoticed(data, range(8 * len(data))) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"lam": 0.5', '"lam": 0.6'),
        lambda text: text.replace('"lam": 0.5', '"lam": 0.50'),
        lambda text: text.replace("\n", " "),
        lambda text: json.dumps(json.loads(text), indent=1, sort_keys=True),
        lambda text: text.rstrip(),
        lambda text: text.replace('"digest"', '"ditest"'),
        lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"}, indent=2, sort_keys=True),
        lambda text: text.replace(json.loads(text)["digest"], json.loads(text)["digest"].upper()),
    ],
    ids=["value", "notation", "spaces", "indent", "end", "no such key", "no digest", "digest"],
)
def test_an_edit_is_found(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / MANIFEST_FILE
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    with pytest.raises(IntegrityError, match=r"manifest\.json was changed: it is not what its own digest says"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"created": "yesterday"}, "created: .* no time such as"),
        ({"created": "2026-11-30T10:00:00"}, "created: .* no time such as"),
        ({"created": "2026-11-31T10:00:00+00:00"}, "created: .* out of range"),
        ({"created": "0001-01-01T00:00:00+00:00"}, "created: .* no time such as"),
        ({"created": '2026-11-30T10:00:00+00:00\nbackend: "other"'}, "created: .* no time such as"),
        ({"timings_s": {"quantize": 1e300}}, "timings_s: .* no durations"),
        ({"timings_s": {"quantize": -1.0}}, "timings_s: .* no durations"),
        ({"data_config": {"crop_pct": 0.0}}, "data_config: .* crop_pct .* cannot have"),
        ({"data_config": {"crop_mode": "other"}}, "data_config: .* crop_mode .* cannot have"),
        ({"data_config": {"mean": ["x", "x", "x"]}}, "data_config: .* mean .* cannot have"),
        ({"data_config": {"std": [0.0, 0.5, 0.5]}}, "data_config: .* std .* cannot have"),
        ({"data_config": {"input_size": [3, 0, 32]}}, "data_config: .* input_size .* cannot have"),
    ],
)
def test_values_that_no_build_writes_are_refused(folder: Path, changes: dict[str, Any], told: str) -> None:
    model = json.loads((folder / MANIFEST_FILE).read_text())["model"]
    if "data_config" in changes:
        changes = {"model": model | {"data_config": model["data_config"] | changes["data_config"]}}
    edit_manifest(folder, **changes)
    with pytest.raises(IntegrityError, match=told):
        read_manifest(folder)


@pytest.mark.parametrize("crop_pct", [5e-324, None])
def test_pictures_are_not_prepared_as_nobody_can(tmp_path: Path, crop_pct: float | None) -> None:
    bundle = Path(shutil.copytree(GOLDEN, tmp_path / "bundle"))
    model = json.loads((bundle / MANIFEST_FILE).read_text())["model"]
    config = {name: value for name, value in model["data_config"].items() if name != "crop_pct"}
    edit_manifest(bundle, model=model | {"data_config": config | ({"crop_pct": crop_pct} if crop_pct else {})})
    with pytest.raises(IntegrityError, match=r"manifest\.json is damaged"):
        Bundle.open(bundle).predict([tmp_path / "picture.png"])


def test_the_program_of_a_release_finds_it_too(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace("pico", "nano").replace('"lam": 0.5', '"lam": 0.6'))
    with pytest.raises(RunError, match="not what its own digest says"):
        read_facts(folder)


def test_an_older_manifest_has_no_digest_and_says_so(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(GOLDEN, tmp_path / "bundle"))
    assert read_manifest(bundle).digest is None
    assert Bundle.open(bundle).verify()["manifest"] == "no digest: written by an older version"
    edit_manifest(bundle)  # it has one now
    assert Bundle.open(bundle).verify()["manifest"] == "as it was written"


def test_the_program_of_a_release_reads_no_manifest_of_any_size(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST_FILE).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RunError, match="it has more than"):
        read_facts(tmp_path)
