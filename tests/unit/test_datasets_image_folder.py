"""Folders are read as timm reads them: the same files, order, classes and pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from without_build import write_pictures

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.datasets.image_folder import ImageFolder
from qvec_deploy.datasets.timm_factory import image_transform
from qvec_deploy.errors import IncompatibleError, RecipeError

TREES = {
    "numbers": ["10/1.png", "9/10.png", "9/9.png", "9/b2.png", "9/B10.png", "1/a.png"],
    "cases": ["B/x.PNG", "a/x.Jpg", "C/x.jpeg", "C/X2.png", "a/y.gif", "a/notes.txt"],
    "nested": ["a/one/x.png", "b/one/y.png", "b/x.png", "two/deep/er/z.png"],
    "without folders": ["2.png", "10.png", "sub/1.png"],
    "hidden": ["a/.png", "a/..png", "a/.x.png", ".b/x.png", "a/png", "a/x.png."],
    "odd": ["a b/x 1.png", "a-b/x.y.png", "ä/ß.png", "a/x00.png", "a/x0.png", "a/x.png.png"],
}


@pytest.mark.parametrize("files", TREES.values(), ids=TREES)
@pytest.mark.parametrize("spelling", ["absolute", "relative", "here"])
def test_files_order_and_classes_are_timms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], spelling: str
) -> None:
    for name in files:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    monkeypatch.chdir(tmp_path / "root" if spelling == "here" else tmp_path)
    root = {"absolute": tmp_path / "root", "relative": Path("root"), "here": Path()}[spelling]
    ours, timms = ImageFolder(root), ReaderImageFolder(str(root))
    assert ours.samples == timms.samples
    assert list(ours.class_to_idx.items()) == list(timms.class_to_idx.items())
    for row in range(len(timms)):
        assert ours.filename(row) == timms.filename(row)
        assert ours.filename(row, absolute=True) == timms.filename(row, absolute=True)


def test_a_name_that_timm_stumbles_over(tmp_path: Path) -> None:
    """A raised 2 is a digit and no number."""
    for name in ("²", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    assert sorted(ImageFolder(tmp_path).class_to_idx) == ["2", "²"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_pixels_and_labels_are_timms(tmp_path: Path, mode: str) -> None:
    config = DataConfig(crop_pct=0.9, crop_mode=mode, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    write_pictures(tmp_path)
    images, labels = open_dataset(DatasetSpec("folder", root=tmp_path), config).take(range(20))
    timms = create_dataset("", str(tmp_path), transform=image_transform(config))
    assert labels.tolist() == [timms[row][1] for row in range(20)]
    assert images.tobytes() == np.stack([timms[row][0].numpy() for row in range(20)]).tobytes()


def test_models_of_other_channels_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    config = DataConfig(input_size=(2, 8, 8), mean=(0.5,), std=(0.5,))
    with pytest.raises(IncompatibleError, match="2 channels"):
        open_dataset(DatasetSpec("folder", root=tmp_path), config)


@pytest.mark.parametrize("names", [("1", "2", "10"), ("B", "a"), ("x9", "x10")])
def test_an_order_of_classes_that_matters_is_asked_for(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    with pytest.raises(RecipeError, match="as timm orders the folders") as caught:
        ImageFolder(tmp_path, None)
    assert "evaluate.class_order" in caught.value.hint
    assert list(ImageFolder(tmp_path, "plain").class_to_idx) == sorted(names)
    assert list(ImageFolder(tmp_path, "natural").class_to_idx) == list(ReaderImageFolder(str(tmp_path)).class_to_idx)


def test_an_order_that_is_one_is_not_asked_for(tmp_path: Path) -> None:
    for name in ("01", "02", "10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    assert list(ImageFolder(tmp_path, None).class_to_idx) == ["01", "02", "10"]
