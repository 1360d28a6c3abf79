"""On the demo's whole test set, every exact engine gives PyTorch's answers; `int8` nearly all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.bench.parity import reference_logits
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.pipeline import build_candidate
from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.io.cache import Cache
from qvec_deploy.packed import PackedFile
from qvec_deploy.recipe import load_recipe
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime

RECIPE = Path(__file__).parents[2] / "recipes" / "demo_3bit.yaml"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """The demo's engine, its test images, and PyTorch's logits with the dequantized weights."""
    recipe = load_recipe(RECIPE).candidates()[-1]
    assert recipe.evaluate is not None and recipe.evaluate.dataset == "tiny/symbols"
    artifact = build_candidate(recipe, BuildContext(cache=Cache(tmp_path_factory.mktemp("demo"))))
    folder, model = artifact.directory, artifact.plan.architecture
    config = DataConfig.from_mapping(model.data_config)
    data = open_dataset(
        DatasetSpec("tiny/symbols", "test", limit=recipe.evaluate.limit), config, expected_classes=model.classes
    )
    images, _ = data.take(range(len(data)))
    weights = PackedFile.open(folder / WEIGHTS_FILE)
    arguments = (weights, model.name, model.classes, recipe.receiver.model_args)
    parts = [reference_logits(*arguments, images[start : start + 500]) for start in range(0, len(images), 500)]
    return folder, images, np.concatenate(parts)


@pytest.mark.parametrize("lowering", ["packed", "int4"])
def test_exact_engines_agree_on_every_image(engine: tuple[Path, np.ndarray, np.ndarray], lowering: str) -> None:
    folder, images, expected = engine
    with find_runtime("onnxruntime").load().open(folder, lowering, 1) as session:
        logits = session.run(images)
    assert len(images) == 5000
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))


def test_int8_is_close(engine: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, expected = engine
    with find_runtime("onnxruntime").load().open(folder, "int8", 1) as session:
        logits = np.concatenate([session.run(images[i : i + 32]) for i in range(0, len(images), 32)])
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.97
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.05
