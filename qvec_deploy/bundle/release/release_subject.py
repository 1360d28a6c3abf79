"""What a release is about: a bundle's manifest, recipe and report, which must tell the same story."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qvec_deploy.bench.results import Report
from qvec_deploy.bench.summary import CandidateRow, dataset_named, rows
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.claims import (
    REPORT_FILE,
    check_gates,
    check_report,
    contradiction,
    read_report,
    unverified,
)
from qvec_deploy.bundle.manifest import Manifest
from qvec_deploy.datasets.generated import PREFIX as GENERATED
from qvec_deploy.errors import GateError
from qvec_deploy.io.files import canonical_json, sha256_bytes
from qvec_deploy.recipe import FLOAT_BITS, Recipe, named_images
from qvec_deploy.runtimes.registry import find_runtime

CARD_FILE = "MODEL_CARD.md"
BOM_FILE = "sbom.cdx.json"
PROVENANCE_FILE = "provenance.intoto.json"
RUN_FILE, REQUIREMENTS_FILE = "run.py", "requirements.txt"
DOCKERFILE, DOCKERIGNORE_FILE = "Dockerfile", ".dockerignore"
OWN_FILES = (CARD_FILE, BOM_FILE, PROVENANCE_FILE, RUN_FILE, REQUIREMENTS_FILE, DOCKERFILE, DOCKERIGNORE_FILE)
"""What a release adds to a bundle and lists in its manifest: the program where the vendor's library alone runs the
model, the files for Docker where they are asked for."""


@dataclass(frozen=True)
class Subject:
    """Everything that a model card or a bill of materials may say.

    Attributes:
        report: Its measurements, with the gates judged anew from them.
        with_docker: Whether the release brings what Docker builds an image from.
    """

    manifest: Manifest
    recipe: Recipe
    report: Report
    with_docker: bool = False

    @property
    def shipped(self) -> CandidateRow:
        """The shipped candidate and what was measured on it."""
        return next(row for row in rows(self.report) if row.selected)

    @property
    def identity(self) -> str:
        """Hex SHA-256 of the bundle's manifest: the same however often it is released."""
        return sha256_bytes(canonical_json(self.manifest.model_dump(mode="json")))

    @property
    def receiver(self) -> str:
        """Where the receiver's weights are from."""
        return _public(self.recipe.receiver.checkpoint)

    @property
    def stands_alone(self) -> bool:
        """Whether run.py goes with it: the vendor's library alone runs it, and the manifest says how."""
        return find_runtime(self.manifest.engine.runtime).stands_alone and self.manifest.interface is not None

    @property
    def method(self) -> str:
        """How the weights were quantized, if they were."""
        return "not quantized" if self.recipe.quantize.bits in FLOAT_BITS else self.manifest.method

    def sources(self) -> tuple[tuple[str, str, str], ...]:
        """Files that it was made from: role, name, hex SHA-256; the receiver first, and none twice."""
        receiver = self.recipe.receiver.checkpoint
        made_from = self.manifest.sources
        others = (("vector", _public(name), made_from[name]) for name in sorted(made_from) if name != receiver)
        return tuple(dict.fromkeys((("receiver", self.receiver, made_from[receiver]), *others)))

    def mixture(self) -> tuple[tuple[str, float], ...]:
        """Vectors in the patch and their weights."""
        return tuple((_public(vector.name), vector.weight) for vector in self.manifest.vectors)

    def looked_at(self) -> tuple[tuple[str, str], ...]:
        """Image sets that the build looked at: name, and what for."""
        recipe, found = self.recipe, []
        images, calibration = recipe.images, recipe.quantize.calibration
        own = named_images(images) if images is not None else "images that the tool generated"
        selection = self.manifest.selection
        if selection is not None:
            counts = f"selection, {selection.selecting:,} images, and its confirmation, {selection.confirming:,} others"
            found.append((own, counts))
        if recipe.quantize.calibrated and calibration.on != "moments":
            other = named_images(calibration) if calibration.on == "dataset" else own
            generated = "images that the tool generated"
            name = generated if calibration.on == "generated" else other
            found.append((name, f"calibration, at most {calibration.count:,} images"))
        if self.report.images:
            report = self.report
            found.append((dataset_named(report), f"evaluation, {report.images:,} images"))
        return tuple(found)

    def limits(self) -> tuple[str, ...]:
        """What nobody must read into the numbers, in sentences."""
        manifest, report = self.manifest, self.report
        found = []
        if manifest.unverified is not None:
            found.append(f"The patch is unverified: {manifest.unverified}. This was accepted when it was released.")
        if report.images:
            found.append(f"Accuracy is known for {report.images:,} images of {dataset_named(report)}.")
        else:
            found.append("Accuracy was not measured.")
        if manifest.selection is not None and manifest.selection.images.startswith(GENERATED):
            found.append("It was selected on generated images, on none of the receiver's task.")
        if self.shipped.latency:
            found.append(f"Latency is known for one machine: {report.environment.cpu}{self._gpu()}.")
        else:
            found.append("Latency was not measured.")
        if not manifest.gates:
            found.append("The recipe asks for nothing: no gate was judged.")
        found.append(
            "Other data, shifts of the data, adversarial images, and differences between groups of people were not "
            "looked at."
        )
        found.append("No licence is stated: ask for those of the receiver and of the vectors.")
        return tuple(found)

    def _gpu(self) -> str:
        gpu = self.report.environment.gpu
        return f", {gpu.name}" if gpu is not None else ""


def _public(name: str) -> str:
    """A file's name without the folders of the machine that it was on; its hash says which file it was."""
    files = name.split(" - ")  # a donor is a pair of them
    return " - ".join(Path(file).name if Path(file).is_absolute() else file for file in files)


def is_release(manifest: Manifest) -> bool:
    """Whether a bundle was written by `release`."""
    return CARD_FILE in manifest.files


def without_own_files(manifest: Manifest) -> Manifest:
    """The manifest that a release was made from, without the folder of the machine that it was built on."""
    files = {name: entry for name, entry in manifest.files.items() if name not in OWN_FILES}
    return manifest.model_copy(update={"files": files, "recipe_folder": None, "release": None})


def read_subject(bundle: Bundle) -> Subject:
    """The bundle's story, refused where its parts contradict each other."""
    manifest, recipe, where = without_own_files(bundle.manifest), bundle.recipe, bundle.directory
    if REPORT_FILE not in manifest.files:
        raise GateError(f"{where} was never measured: it has no {REPORT_FILE}", hint="build it where its engine runs")
    report = read_report(where)
    check_report(where, manifest, report)
    report = check_gates(where, manifest, recipe, report)
    if manifest.unverified != unverified(recipe, recipe, manifest.selection):
        raise contradiction(where, "its manifest does not say what its recipe says about verification")
    if recipe.receiver.checkpoint not in manifest.sources:
        raise contradiction(where, "its manifest lacks the receiver's hash")
    return Subject(manifest, recipe, report)
