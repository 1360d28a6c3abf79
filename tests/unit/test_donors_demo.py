"""The demo's checkpoints, their record and the bundled tasks fit one another: nothing is left of another training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import sha256_bytes, sha256_file
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.coordinates import require_same_coordinates
from qvec_deploy.vectors.symmetric_places import find_geometry
from qvec_deploy.vectors.vector_file import QuantizationVector

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
RECORD = json.loads((DEMO / "record.json").read_text(encoding="utf-8"))
VECTORS = sorted(DEMO.glob("vector_*.safetensors"))
RECEIVERS = sorted(DEMO.glob("receiver_*.safetensors"))


def test_the_record_is_of_these_files():
    assert RECORD["sha256"] == {path.name: sha256_file(path) for path in [*RECEIVERS, *VECTORS]}
    assert sum(path.stat().st_size for path in DEMO.iterdir()) < 16e6


@pytest.mark.parametrize("task", RECORD["images"])
def test_they_were_trained_on_the_images_that_are_drawn_today(task):
    """Whoever changes how images are drawn trains the demo anew: scripts/make_demo."""
    images, labels = open_dataset(DatasetSpec(f"tiny/{task}", "train", limit=16), DataConfig()).take(range(16))
    assert sha256_bytes(images.tobytes() + labels.tobytes()) == RECORD["images"][task]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_vectors_say_what_the_record_says(path):
    header = QuantizationVector.open(path).header
    assert header.scheme == Scheme.from_dict(RECORD["scheme"])
    assert list(header.skip) == RECORD["skip"]
    assert header.task == "tiny/" + path.stem.removeprefix("vector_")
    assert header.seed == RECORD["seeds"]["fine-tunes"]
    assert 0.005 < header.norm / header.weight_norm < 0.05


@pytest.mark.parametrize("path", RECEIVERS, ids=lambda path: path.stem)
def test_vectors_cover_the_backbone_of_the_receivers(path):
    receiver = {
        name: info.shape for name, info in Checkpoint.open(path).tensors.items() if not name.startswith("head.")
    }
    for vector in VECTORS:
        assert {name: info.shape for name, info in QuantizationVector.open(vector).tensors.items()} == receiver


@pytest.mark.slow
@pytest.mark.parametrize("path", RECEIVERS, ids=lambda path: path.stem)
def test_the_receivers_are_in_the_coordinates_of_every_donor(path):
    geometry = find_geometry(RECORD["model"], RECORD["model_args"])
    for vector in map(QuantizationVector.open, VECTORS):
        sketch = vector.sketch()
        assert sketch is not None
        require_same_coordinates(Checkpoint.open(path).read, sketch, geometry, vector.header.scheme)


@pytest.mark.parametrize("table", RECORD["tables"], ids=lambda table: table["receiver"])
def test_the_tables_add_up(table):
    rows = {row["what"]: row for row in table["rows"]}
    assert len(rows) == len(table["rows"]) == 16
    assert {row["images"] for row in rows.values()} == {500 if table["receiver"] == "tiny/realdigits" else 5000}
    assert all(row["top1"] == round(100 * row["correct"] / row["images"], 2) for row in rows.values())
