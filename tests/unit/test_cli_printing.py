"""What `inspect` says of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from qvec_deploy.cli.printing import document_lines, inspect_path


def test_a_checkpoint_tells_the_names_of_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"head.weight": np.zeros((2, 4), np.float32)}, path)
    assert "class_names" not in inspect_path(path)
    config = {"architecture": "vit_tiny_patch16_224", "label_names": ["cat", "dog"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    document = inspect_path(path)
    assert (document["class_names"], document["class_names_from"]) == (["cat", "dog"], "config.json")
    assert any(line.split() == ["class_names", "cat,", "dog"] for line in document_lines(document))
    save_file({"head.weight": np.zeros((2, 4), np.float32)}, path, {"class_names": '["kat", "hund"]'})
    assert inspect_path(path)["class_names_from"] == "model.safetensors"
