"""A study's folder as 0.1.0 wrote it opens for ever: its documents, its cells, and what its nodes made."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.research.study.analysis.summarize import summarize
from qvec_deploy.research.study.study_documents import read_study
from qvec_deploy.research.study.study_graph import build_graph
from qvec_deploy.research.study.study_recipe import load_study
from qvec_deploy.research.study.study_store import StudyStore

STUDY = Path(__file__).parent / "study_0.1.0"
(CELL,) = (STUDY / "files").iterdir()
OF = json.loads((CELL / "node.json").read_bytes())["of"]
"""All that decided the cell, as its node kept it."""


def test_its_documents_are_read_and_summarized() -> None:
    study = read_study(STUDY)
    assert [cell.request.receiver.name for cell in study.cells] == ["lower", "realdigits", "upper"]
    assert {len(cell.trials) for cell in study.cells} == {39}
    (setting,) = summarize(study.cells, study.fine_tunes).settings
    assert {str(row.key) for row in setting.rows} >= {"plain", "pair/lambda_1", "mix", "mean+gptq/moments/lambda_1"}
    assert setting.costs and study.run["made_by"] == "qvec-deploy 0.1.0"


def test_what_a_node_made_is_found_by_its_key(tmp_path: Path) -> None:
    shutil.copytree(STUDY, tmp_path / "study")
    store, key = StudyStore.existing(tmp_path / "study"), sha256_bytes(canonical_json(OF))
    assert CELL.name.endswith(key[:12])
    assert store.weights(CELL.name, key).read_bytes() == (CELL / "cell.json").read_bytes()


def test_a_cells_key_is_made_of_the_same(tmp_path: Path) -> None:
    """But for the images, which other versions of the drawing packages may draw otherwise, and what they decide."""
    nodes = build_graph(load_study(STUDY / "study.yaml"))[0]
    (cell,) = [node for node in nodes if node.kind == "cell" and node.about["task"] == "lower"]
    now = dict(dataclasses.replace(cell, versions=OF["versions"]).keyed)
    assert now.keys() == OF.keys()
    drawn = ("images", "fp", "qat", "base", "donors")
    assert {name: value for name, value in now.items() if name not in drawn} == {
        name: value for name, value in OF.items() if name not in drawn
    }
