"""Folders are read as timm reads them, in its order and to its pixels; labels never shift silently."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from without_build import write_pictures

from qvec_deploy.datasets import DataConfig, DatasetSpec, open_dataset
from qvec_deploy.datasets.folder_classes import ClassRules
from qvec_deploy.datasets.image_folder import ImageFolder, readable_endings
from qvec_deploy.datasets.timm_factory import image_transform
from qvec_deploy.errors import IncompatibleError, RecipeError, StorageError

TREES = {
    "numbers": ["10/1.png", "9/10.png", "9/9.png", "9/b2.png", "9/B10.png", "1/a.png"],
    "cases": ["B/x.PNG", "a/x.Jpg", "C/x.jpeg", "C/X2.png", "a/notes.txt"],
    "odd": ["a b/x 1.png", "a-b/x.y.png", "ä/ß.png", "a/x0.png", "a/x.png.png", "a1/x.png", "a01b/3.png"],
    "one number": ["a/x_10.png", "a/x_9.png", "a/x_100.png", "b/7.png", "b/70.png", "b/08.png"],
    "no number": ["a/x_10.png", "a/x_.png", "a/x_9.png", "b/1.png", "b/1.png.png", "b/1.jpg"],
}


def write_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, **rules: Any) -> ImageFolder:
    return ImageFolder(root, ClassRules(**rules))


def samples(folder: Any) -> list[tuple[str, int]]:
    found = []
    for row in range(len(folder)):
        file, label = folder[row]
        file.close()
        found.append((folder.filename(row), label))
    return found


@pytest.mark.parametrize("files", TREES.values(), ids=TREES)
@pytest.mark.parametrize("spelling", ["absolute", "relative", "here"])
def test_files_order_and_classes_are_timms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], spelling: str
) -> None:
    write_files(tmp_path / "root", *files)
    monkeypatch.chdir(tmp_path / "root" if spelling == "here" else tmp_path)
    root = {"absolute": tmp_path / "root", "relative": Path("root"), "here": Path()}[spelling]
    ours, timms = listed(root), ReaderImageFolder(str(root))
    assert samples(ours) == samples(timms)
    assert list(ours.class_to_idx.items()) == list(timms.class_to_idx.items())
    for row in range(len(timms)):
        assert ours.filename(row, absolute=True) == timms.filename(row, absolute=True)


def test_a_name_that_timm_stumbles_over(tmp_path: Path) -> None:
    """A raised 2 is a digit and no number."""
    assert sorted(listed(write_files(tmp_path, "²/x.png", "2/x.png")).class_to_idx) == ["2", "²"]


NESTED = ["cat/s1/0.png", "cat/s2/0.png", "cat/0.png", "dog/s1/deep/er/0.png", "owl/s3/0.png"]


@pytest.mark.parametrize("count", [None, 3])
def test_the_label_is_the_first_folder_whatever_is_nested_below(tmp_path: Path, count: int | None) -> None:
    found = listed(write_files(tmp_path, *NESTED), count=count)
    assert found.class_to_idx == {"cat": 0, "dog": 1, "owl": 2}
    assert [label for _, label in samples(found)] == [0, 0, 0, 1, 2]
    timms = ReaderImageFolder(str(tmp_path))
    assert [name for name, _ in samples(found)] == [name for name, _ in samples(timms)]


HIDDEN = [".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/a/x.png", "@eaDir/x.png", "a/.x.png", "a/Thumbs.db"]


@pytest.mark.parametrize("hidden", [*HIDDEN, "a/._x.png", "a/@eaDir/x.png", "a/.git/x.png"])
def test_hidden_files_and_folders_are_neither_classes_nor_pictures(tmp_path: Path, hidden: str) -> None:
    found = listed(write_files(tmp_path, "a/0.png", "c/0.png", hidden), count=2)
    assert (samples(found), found.left_aside.count) == ([("a/0.png", 0), ("c/0.png", 1)], 0)


def test_a_hidden_folder_does_not_stand_for_a_class(tmp_path: Path) -> None:
    write_files(tmp_path, "a/0.png", "c/0.png", HIDDEN[0])
    with pytest.raises(RecipeError, match="2 classes and the model's head 3; with pictures: a, c; without: none"):
        listed(tmp_path, count=3)


def test_a_folder_without_a_picture_keeps_the_place_of_its_class(tmp_path: Path) -> None:
    write_files(tmp_path, "a/0.png", "b/notes.txt", "c/0.png")
    found = listed(tmp_path, count=3)
    assert (found.class_to_idx, found.missing) == ({"a": 0, "b": 1, "c": 2}, ("b",))
    assert samples(found) == [("a/0.png", 0), ("c/0.png", 2)]
    found = listed(tmp_path, count=2)
    assert (found.class_to_idx, found.missing, found.uncounted) == ({"a": 0, "c": 1}, (), ("b",))
    told = r"with pictures: a, c; without: b; .* not known; 1 file is left aside \(1 \.txt\), such as b/notes"
    with pytest.raises(RecipeError, match=told):
        listed(tmp_path, count=4)


def test_folders_are_matched_to_the_classes_by_name(tmp_path: Path) -> None:
    write_files(tmp_path, "10/0.png", "9/0.png", "docs/readme.md")
    names = ("9", "8", "10")
    found = listed(tmp_path, names=names, count=3, order=None)  # no order is asked for
    assert list(found.class_to_idx.items()) == [("9", 0), ("8", 1), ("10", 2)]
    assert (samples(found), found.missing, found.uncounted) == ([("9/0.png", 0), ("10/0.png", 2)], ("8",), ("docs",))


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_accent_is_one_whatever_wrote_the_folder(tmp_path: Path, form: Any) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    write_files(tmp_path, f"{unicodedata.normalize(form, 'café')}/0.png", "bar/0.png")
    found = listed(tmp_path, names=(unicodedata.normalize(other, "café"), "bar"), count=2)
    assert [label for _, label in samples(found)] == [1, 0] and found.missing == ()


@pytest.mark.parametrize(
    ("names", "message", "hint"),
    [
        (("Red_Kite", "stork"), "2 of 3 folders are no classes of the model: owl, red kite; its 2 classes are Red_",
         "red kite to Red_Kite?"),
        (("a", "b"), "3 of 3 folders are no classes of the model: owl, red kite, stork; its 2 classes are a, b",
         "rename the folders, or change receiver.classes"),
    ],
)  # fmt: skip
def test_folders_that_are_no_classes_are_refused(tmp_path: Path, names: Any, message: str, hint: str) -> None:
    write_files(tmp_path, "red kite/0.png", "stork/0.png", "owl/0.png")
    with pytest.raises(RecipeError, match=message) as caught:
        listed(tmp_path, names=names, count=2)
    assert hint in caught.value.hint


def test_pipes_are_left_aside_and_not_waited_for(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "a/1.png")
    os.mkfifo(root / "a" / "2.png")
    (root / "a" / "3.png").symlink_to(root / "a" / "2.png")
    found = listed(root)
    assert len(found) == 1 and found.left_aside.endings == (("pipe or device", 2),)


def test_files_that_are_left_aside_are_counted_and_named(tmp_path: Path) -> None:
    names = ["a/0.png", "x.png", "y.JPG", "a/notes.txt", "a/b.TXT", "a/b/c.h5", "a/noending", "a/movie.mpeg"]
    found = listed(write_files(tmp_path, *names))
    assert len(found) == 1 and found.left_aside.count == 7
    assert dict(found.left_aside.endings) == {
        "in no class folder": 2, ".txt": 2, ".h5": 1, ".mpeg": 1, "without an ending": 1,
    }  # fmt: skip
    assert found.left_aside.examples == ("x.png", "y.JPG", "a/b.TXT")
    assert str(found.left_aside).startswith("7 files are left aside (2 .txt, 2 in no class folder, 1 .h5")
    assert str(listed(write_files(tmp_path / "a")).left_aside).startswith("6 files are left aside (2 .txt")


def test_pictures_without_labels_may_lie_anywhere(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "2/x.png", "a/b/y.webp"]
    found = ImageFolder(write_files(tmp_path, *names), None)
    assert samples(found) == [("2.png", 0), ("2/x.png", 0), ("10.png", 0), ("a/b/y.webp", 0)]
    assert found.left_aside.count == 0


FORMATS = {"webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "jfif": "JPEG", "gif": "GIF", "ppm": "PPM", "jp2": "JPEG2000"}
FORMATS |= {"tga": "TGA", "ico": "ICO", "avif": "AVIF", "qoi": "QOI", "mpo": "MPO", "pcx": "PCX", "jpe": "JPEG"}


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", *FORMATS])
def test_every_format_that_pillow_decodes_is_read(tmp_path: Path, ending: str) -> None:
    kind = FORMATS.get(ending)
    (tmp_path / "test" / "a").mkdir(parents=True)
    try:
        Image.new("RGB", (32, 32), (255, 255, 255)).save(tmp_path / "test" / "a" / f"x.{ending}", format=kind)
    except (KeyError, OSError):
        pytest.skip(f"Pillow was built without {kind}")
    opened = open_dataset(DatasetSpec("folder", root=tmp_path), DataConfig(), expected_classes=1)
    assert opened.take([0])[0].mean() == pytest.approx(1.0, abs=0.02) and opened.remarks == ()


def test_every_ending_that_is_taken_has_a_decoder() -> None:
    taken = readable_endings()
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".jfif", ".gif"} <= taken
    assert not taken & {".pdf", ".eps", ".ps", ".mpg", ".h5", ".hdf", ".wmf", ".grib", ".txt"}


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    write_files(tmp_path / "elsewhere" / "deep", "0.png", "1.png")
    root = write_files(tmp_path / "root", "a/0.png", "b/0.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "file.png").symlink_to(tmp_path / "elsewhere" / "deep" / "0.png")
    expected = samples(ReaderImageFolder(str(root)))
    assert [name for name, _ in samples(listed(root))] == [name for name, _ in expected]
    assert listed(root).class_to_idx == {"a": 0, "b": 1, "linked": 2}
    for number, (link, target) in enumerate(
        {"a/up": root, "a/self": root / "a", "b/all": tmp_path, "b/c": root / "a"}.items()
    ):
        (root / link).symlink_to(target)
        assert len(listed(root)) >= len(expected), number
    (root / "a" / "itself").symlink_to(root / "a" / "itself")
    names = [listed(root).filename(row) for row in range(len(listed(root)))]
    assert len(names) == len(set(names)) and len(names) < 60


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "a/0.png", "b/0.png")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="/b: Permission denied"):
        listed(tmp_path)


def test_progress_is_told_by_folder(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    root = write_files(tmp_path, "a/0.png", "b/0.png", "c/d/0.png")
    open_dataset(DatasetSpec("folder", root=root), DataConfig(), advance=lambda *seen: told.append(seen))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_no_file_is_looked_at_while_a_folder_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million files are listed in seconds because none of them is asked for its size."""
    for label in range(20):
        write_files(tmp_path, *(f"{label:02}/{number}.png" for number in range(50)))
    asked: list[object] = []
    monkeypatch.setattr(os, "stat", lambda path, **_: asked.append(path))
    monkeypatch.setattr(Path, "stat", lambda path, **_: asked.append(path))
    assert len(listed(tmp_path)) == 1000 and asked == []


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
    write_files(tmp_path, *(f"{name}/x.png" for name in names))
    with pytest.raises(RecipeError, match="as timm orders the folders") as caught:
        listed(tmp_path, order=None)
    assert "evaluate.class_order" in caught.value.hint and "receiver.classes" in caught.value.hint
    assert list(listed(tmp_path, order="plain").class_to_idx) == sorted(names)
    timms = list(ReaderImageFolder(str(tmp_path)).class_to_idx)
    assert list(listed(tmp_path, order="natural").class_to_idx) == timms


def test_an_order_that_is_one_is_not_asked_for(tmp_path: Path) -> None:
    write_files(tmp_path, "01/x.png", "02/x.png", "10/x.png")
    assert list(listed(tmp_path, order=None).class_to_idx) == ["01", "02", "10"]
