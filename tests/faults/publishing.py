"""What the product publishes, each twice, in a process whose calls are recorded: `publishing.py KIND FOLDER SOURCE`."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def bundle(folder: Path, source: Path) -> None:
    """A bundle's files, as a build ends, and another one in its place."""
    from qvec_deploy.bundle.manifest import MANIFEST_FILE, read_manifest, write_manifest
    from qvec_deploy.io.files import copy_file, staging_directory

    manifest = read_manifest(source)
    for name in ("first", "second"):
        with staging_directory(folder / "bundle", force=True) as staging:
            for path in source.iterdir():
                if path.name != MANIFEST_FILE:
                    copy_file(path, staging / path.name)
            write_manifest(staging, manifest.model_copy(update={"timings_s": {name: 1.0}}))
        mark()


def build(folder: Path, source: Path) -> None:
    """A build of a model, and another one in its place; what candidates share is elsewhere."""
    from qvec_deploy.builder.context import BuildContext
    from qvec_deploy.builder.pipeline import build as make
    from qvec_deploy.io.cache import Cache
    from qvec_deploy.recipe import load_recipe

    for blocks in (2, 3):
        recipe = load_recipe(source.parent / "recipe.yaml", [f"measure.blocks={blocks}", "evaluate.accept_float=true"])
        context = BuildContext(cache=Cache(folder.parent / "cache"))
        make(recipe, folder / "build", force=True, context=context)
        mark()


def release(folder: Path, source: Path) -> None:
    """A release, and that of another bundle in its place."""
    from qvec_deploy.bundle.manifest import read_manifest, write_manifest
    from qvec_deploy.bundle.release.release import release as make

    other = Path(shutil.copytree(source, folder.parent / "other"))
    write_manifest(other, read_manifest(source).model_copy(update={"timings_s": {"other": 1.0}}))
    for each in (source, other):
        make(each, folder / "release", accept_unverified=True, force=True)
        mark()


def cache(folder: Path, source: Path) -> None:
    """An entry, and another one beside it."""
    from qvec_deploy.io.cache import Cache
    from qvec_deploy.io.files import copy_file

    for key in ("first", "second"):
        with Cache(folder / "cache").entry("thing", key) as entry:
            copy_file(source / "model.onnx", entry.folder / "model.onnx")
            entry.record = key
        mark()


def checkpoint(folder: Path, source: Path) -> None:
    """How far a training is, twice."""
    import torch

    from qvec_deploy.donors.donor_folder import DonorFolder
    from qvec_deploy.donors.train import TrainState

    donor = DonorFolder.open(folder / "donor")
    donor.claim({"steps": 2})
    for step in (1, 2):
        donor.save("fp", TrainState(step, 1.0, {"weight": torch.full((500,), float(step))}))
        mark()


def study(folder: Path, source: Path) -> None:
    """A study's documents, twice: the record of the run tells whether they are whole."""
    from qvec_deploy.research.study.study_documents import write_documents
    from qvec_deploy.research.study.study_store import StudyStore

    store = StudyStore.open(folder / "study")
    for name in ("first", "second"):
        run = {"exit_code": 0, "failures": [], "name": name}
        write_documents(store, recipe=f"name: {name}\n", cells={}, costs=[{"of": name}], run=run)
        mark()


def report(folder: Path, source: Path) -> None:
    """A report, and another one in its place."""
    from qvec_deploy.report.report_json import from_json
    from qvec_deploy.report.write_report import write_report

    made = from_json((source / "report.json").read_bytes())
    for name in ("first", "second"):
        write_report(replace(made, title=name), folder)
        mark()


def export(folder: Path, source: Path) -> None:
    """One ONNX file, and another one in its place."""
    from qvec_deploy.bundle.export_bundle import export_model

    for lowering in ("int4", "packed"):
        export_model(source, folder / "model.onnx", lowering, force=True)
        mark()


KINDS: dict[str, Callable[[Path, Path], None]] = {
    each.__name__: each for each in (bundle, build, release, cache, checkpoint, study, report, export)
}


def mark() -> None:
    """Say that what was published is to be there from now on."""
    ctypes.CDLL(None).faults_mark(0)


if __name__ == "__main__":
    KINDS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
