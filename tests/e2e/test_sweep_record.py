"""Whose bundle it is: what a sweep keeps, what it builds again, and what it leaves to its owner."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import edit_manifest
from PIL import Image

from qvec_deploy.bench.entries import BenchOptions
from qvec_deploy.builder.context import BuildContext
from qvec_deploy.builder.pipeline import BuildResult
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.cli.commands import main
from qvec_deploy.errors import FetchError, StorageError
from qvec_deploy.io.build_record import BuildRecord
from qvec_deploy.io.files import file_lock, staging_directory
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.recipe import Recipe, load_recipes
from qvec_deploy.sweep.sweep import build_job


class _Stop(BaseException):
    """Takes a process down in the middle, as SIGKILL would: nothing after it is done."""


class TestWhoseBundleItIs:
    """Around `run`, which these tests replace: what a sweep keeps, builds again, and leaves to its owner."""

    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "sweep"

    @pytest.fixture
    def job(
        self, place: Path, bundle: Path, pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., str]:
        """Build a recipe with a `run` that writes a bundle with a mark in it, or fails; `kept` or `built`."""

        def build(
            mark: str, *, force: bool = False, error: BaseException | None = None, blocks: int = 2, **fields: Any
        ) -> str:
            (recipe,) = load_recipes(pico_recipe(measure__blocks=blocks, **fields))

            def run(recipe: Recipe, directory: Path, *, force: bool, context: BuildContext) -> BuildResult:
                with staging_directory(directory, force=force) as staging:
                    if error is not None:
                        raise error
                    shutil.copytree(bundle, staging, dirs_exist_ok=True)
                    _sign(staging, mark)
                return BuildResult(Bundle.open(directory), None)

            monkeypatch.setattr("qvec_deploy.sweep.sweep.build", run)
            row = build_job(
                lambda _: None,
                values=recipe.as_dict(),
                recipes=str(recipe.folder),
                folder=str(place),
                force=force,
                offline=True,
                threads=1,
            )
            return "kept" if row["kept"] else "built"

        return build

    @staticmethod
    def theirs(place: Path, bundle: Path) -> None:
        """The user builds something else where the sweep's bundle was."""
        shutil.rmtree(place / "pico", ignore_errors=True)
        shutil.copytree(bundle, place / "pico")
        _sign(place / "pico", "theirs")

    def test_what_is_made_is_kept(self, job: Callable[..., str]) -> None:
        assert [job("one"), job("two")] == ["built", "kept"]

    def test_a_changed_recipe_replaces_it(self, place: Path, job: Callable[..., str]) -> None:
        assert [job("one"), job("two", blocks=3), job("three", blocks=3)] == ["built", "built", "kept"]
        assert _signed(place) == "two"

    def test_another_version_of_the_program_replaces_it(
        self, job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job("one")
        monkeypatch.setattr("qvec_deploy.sweep.sweep.made_by", lambda: {"qvec-deploy": "another"})
        assert [job("two"), job("three")] == ["built", "kept"]

    @pytest.mark.parametrize("use", ["evaluate", "images"])
    def test_other_images_of_the_same_names_replace_it(self, tmp_path: Path, job: Callable[..., str], use: str) -> None:
        for number in range(10):
            path = tmp_path / "data" / "val" / f"class{number}" / "one.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
        named = {use: {"dataset": "folder", "root": str(tmp_path / "data"), "split": "val"}}
        assert [job("one", **named), job("two", **named)] == ["built", "kept"]
        Image.new("RGB", (32, 32), (9, 9, 9)).save(path)
        os.utime(path, ns=(0, 1))
        assert [job("three", **named), job("four", **named)] == ["built", "kept"]

    @pytest.mark.parametrize("before", ["built", "failed", "rebuild failed"])
    def test_a_users_bundle_is_neither_kept_nor_replaced(
        self, place: Path, bundle: Path, job: Callable[..., str], before: str
    ) -> None:
        if before != "failed":
            job("one")
        if before != "built":
            with pytest.raises(FetchError):
                job("two", error=FetchError("gone", hint="again"), blocks=3)
        self.theirs(place, bundle)
        for blocks in (2, 3):
            with pytest.raises(StorageError, match="exists"):
                job("three", blocks=blocks)
        assert _signed(place) == "theirs"
        assert job("four", force=True) == "built" and job("five") == "kept"

    def test_a_failed_force_leaves_it_the_users(self, place: Path, bundle: Path, job: Callable[..., str]) -> None:
        self.theirs(place, bundle)
        with pytest.raises(FetchError):
            job("one", error=FetchError("gone", hint="again"), force=True)
        with pytest.raises(StorageError, match="exists"):
            job("two")
        assert _signed(place) == "theirs"

    def test_killed_before_the_exchange(
        self, place: Path, job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job("one")
        with monkeypatch.context() as patch:
            patch.setattr("qvec_deploy.io.build_record.BuildRecord._put_back", lambda *_: None)
            with pytest.raises(_Stop):
                job("two", error=_Stop(), blocks=3)
        assert job("three", blocks=3) == "built" and _signed(place) == "three"

    def test_killed_in_the_middle_of_the_exchange(
        self, place: Path, job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job("one")
        with monkeypatch.context() as patch:
            patch.setattr("qvec_deploy.io.build_record.BuildRecord._put_back", lambda *_: None)
            with pytest.raises(_Stop):
                job("two", error=_Stop(), blocks=3)
            (place / "pico").rename(place / ".pico.abcdefgh.old")
            with pytest.raises(_Stop):  # and once more, in the build that comes after
                job("three", error=_Stop(), blocks=3)
        assert job("four", blocks=3) == "built" and _signed(place) == "four"

    def test_interrupted_after_the_exchange(
        self, place: Path, job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Ctrl-C does while a bundle that is in its place is opened once more."""
        with monkeypatch.context() as patch:
            patch.setattr(Bundle, "open", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                job("one")
        assert job("two") == "kept" and _signed(place) == "one"

    def test_killed_after_the_exchange(
        self, place: Path, job: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(record: BuildRecord, **state: str | None) -> None:
            if "made" in state:
                raise _Stop
            real(record, **state)

        real = BuildRecord._write
        with monkeypatch.context() as patch:
            patch.setattr(BuildRecord, "_write", write)
            with pytest.raises(_Stop):
                job("one")
        assert job("two") == "kept" and _signed(place) == "one"
        assert job("three", blocks=3) == "built"


def _interrupt(directory: Path) -> Bundle:
    raise KeyboardInterrupt


def _sign(directory: Path, mark: str) -> None:
    edit_manifest(directory, timings_s={mark: 1.0})


def _signed(place: Path) -> str:
    (mark,) = json.loads((place / "pico" / "manifest.json").read_text())["timings_s"]
    return str(mark)


@pytest.mark.parametrize("command", ["bench", "build"])
def test_what_measures_beside_a_sweep_takes_its_turn(
    tmp_path: Path, bundle: Path, pico_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen = []

    def is_free(name: str) -> bool:
        with file_lock(MachineLock.here().folder / name, wait=False) as held:
            return held

    def measure(_: Any, options: BenchOptions, *__: Any) -> None:
        seen.append(is_free("floor.lock"))
        with options.alone():
            seen.append(is_free("door.lock"))
        raise FetchError("enough", hint="seen")

    def run(recipe: Recipe, directory: Path, *, force: bool, context: BuildContext) -> None:
        seen.append(is_free("floor.lock"))
        with context.alone():
            seen.append(is_free("door.lock"))
        raise FetchError("enough", hint="seen")

    monkeypatch.setattr("qvec_deploy.bundle.side_by_side.measure_engines", measure)
    monkeypatch.setattr("qvec_deploy.builder.pipeline.build", run)
    arguments = ["bench", str(bundle)] if command == "bench" else ["build", "--recipe", str(pico_recipe())]
    monkeypatch.setattr("sys.argv", ["qvec-deploy", *arguments, "--quiet"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 7 and seen == [False, False]
