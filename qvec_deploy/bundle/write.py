"""The end of a build: resolved recipe, report and, last, the manifest; and what may be released."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.bench.environment import available_threads, capture_environment
from qvec_deploy.bench.predictions import PREDICTIONS_FILE, Predictions, write_predictions
from qvec_deploy.bench.results import Parity
from qvec_deploy.bench.run import stored_bits_per_weight
from qvec_deploy.bundle.bundle import RECIPE_FILE, Bundle
from qvec_deploy.bundle.claims import unverified
from qvec_deploy.bundle.interface import interface_of, model_of
from qvec_deploy.bundle.manifest import LAMBDA0, Engine, Gate, Layer, Manifest, PatchVector, hash_files, write_manifest
from qvec_deploy.errors import GateError, IncompatibleError
from qvec_deploy.io.cache import entry_files
from qvec_deploy.io.files import copy_file, sha256_file, storage_errors, write_bytes
from qvec_deploy.io.source_commit import source_commit
from qvec_deploy.io.yaml import dump_yaml
from qvec_deploy.packed import PackedFile
from qvec_deploy.planner import Plan
from qvec_deploy.recipe import Recipe
from qvec_deploy.report.write_report import write_report
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime, products_of, runtime_bits_per_weight

if TYPE_CHECKING:
    from qvec_deploy.bench.results import Report
    from qvec_deploy.bench.selection import Selection


@dataclass(frozen=True)
class Artifact:
    """What one candidate was built into.

    Attributes:
        directory: Holds the graph, the weights, the reference logits and the engine; in the cache.
        missing: What stood in the way of making or opening the engine here; None if nothing.
        parity: Agreement with PyTorch; None where the engine could not be opened.
        layer_errors: Relative L2 quantization error by layer.
        notes: What the method could not do.
        control: What stands in for the vector, in words; None for a real one, or without a patch.
        not_run: Why an engine that was made cannot be opened here; None if it can.
    """

    plan: Plan
    directory: Path
    missing: str | None
    parity: Parity | None
    layer_errors: Mapping[str, float]
    notes: tuple[str, ...]
    control: str | None
    not_run: str | None = None

    @property
    def runs(self) -> bool:
        """Whether its engine can be opened here."""
        return self.missing is None and self.not_run is None


@dataclass(frozen=True)
class BundleContents:
    """What the manifest is written from.

    Attributes:
        recipe: What was wanted, its selection made.
        shipped: The candidate that the bundle holds.
        plain: The same without a patch, kept beside a patch that nobody has verified; else None.
        sources: SHA-256 of every file it was made from.
        report: The measurements; None where the engine cannot be opened here.
        selection: How it was chosen; None where the recipe names it.
        class_names: Names by label; empty where nobody has named the classes.
    """

    recipe: Recipe
    shipped: Artifact
    plain: Artifact | None
    sources: Mapping[str, str]
    report: Report | None
    predictions: Predictions | None
    selection: Selection | None
    class_names: tuple[str, ...]
    timings_s: Mapping[str, float]


def write_bundle(staging: Path, contents: BundleContents) -> None:
    """Copy the shipped engine into the bundle and write everything around it, the manifest last."""
    own, candidate = contents.shipped, contents.shipped.plan.recipe
    names = _copy(own, staging)
    if contents.plain is not None:
        names += [f"{LAMBDA0}/{name}" for name in _copy(contents.plain, staging / LAMBDA0)]
    recipe = contents.recipe.shipping(candidate)
    write_bytes(staging / RECIPE_FILE, dump_yaml(recipe.as_dict()).encode())
    names.append(RECIPE_FILE)
    if contents.report is not None:
        names += [path.name for path in write_report(contents.report, staging)]
    if contents.predictions is not None:
        write_predictions(staging / PREDICTIONS_FILE, contents.predictions)
        names.append(PREDICTIONS_FILE)
    weights = PackedFile.open(staging / WEIGHTS_FILE)
    manifest = Manifest(
        name=contents.recipe.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        recipe_sha256=sha256_file(staging / RECIPE_FILE),
        sources=dict(contents.sources),
        model=model_of(own.plan, contents.class_names),
        engine=Engine(
            runtime=candidate.target.runtime,
            lowering=candidate.target.lowering,
            threads=candidate.target.threads,
            missing=own.missing,
            not_run=own.not_run,
            products=products_of(candidate.target.runtime, staging, candidate.target.lowering),
        ),
        interface=interface_of(own.plan),
        receiver_weights=own.plan.receiver_weights,
        recipe_folder=str(contents.recipe.folder.resolve()),
        lam=candidate.patch_scale,
        vectors=tuple(PatchVector(name=name, weight=weight) for name, weight in own.plan.sources),
        control=own.control,
        stored_bytes=sum((staging / name).stat().st_size for name in (MODEL_FILE, WEIGHTS_FILE)),
        stored_bits_per_weight=stored_bits_per_weight(weights),
        runtime_bits_per_weight=runtime_bits_per_weight(
            weights.tensors.values(), candidate.target.runtime, candidate.target.lowering
        ),
        layers=tuple(Layer(name=name, error=error) for name, error in own.layer_errors.items()),
        parity=own.parity,
        method=candidate.quantize.method,
        selection=contents.selection,
        gates=tuple(Gate(**asdict(gate)) for gate in contents.report.gates) if contents.report is not None else (),
        unverified=unverified(contents.recipe, candidate, contents.selection),
        source_commit=source_commit(),
        versions=capture_environment(candidate.target.threads or available_threads()).packages,
        timings_s={name: round(seconds, 3) for name, seconds in contents.timings_s.items()},
        files=hash_files(staging, names),
    )
    write_manifest(staging, manifest)


def _copy(artifact: Artifact, directory: Path) -> list[str]:
    """Copy an engine's files into a folder of the bundle, so that they are nobody else's."""
    with storage_errors(directory):
        directory.mkdir(exist_ok=True)
        for path in entry_files(artifact.directory):
            copy_file(path, directory / path.name)
    return [path.name for path in entry_files(artifact.directory)]


def require_engine(bundle: Bundle) -> None:
    """Refuse a bundle without engine, after it was written."""
    missing = bundle.engine_missing()
    if missing is not None and bundle.manifest.engine.not_run is None:
        there = (
            f"`qvec-deploy compile {bundle.directory}` builds it"
            if find_runtime(bundle.manifest.engine.runtime).compiles
            else f"`qvec-deploy verify {bundle.directory}` checks it and `bench` measures it"
        )
        raise IncompatibleError(
            f"{bundle.directory} is complete but for its engine: {missing}",
            hint=f"where the GPU is, {there}; for a CPU engine set target.runtime=onnxruntime and target.lowering=int4",
        )


def require_gates(bundle: Bundle) -> None:
    """Refuse a bundle whose recipe asks for more than was measured; it stays where it is, and says so."""
    missed = [gate for gate in bundle.manifest.gates if not gate.passed]
    if missed:
        lines = "; ".join(f"{gate.name}: wanted {gate.wanted}, found {gate.found}" for gate in missed)
        raise GateError(
            f"{bundle.directory} misses {len(missed)} of {len(bundle.manifest.gates)} gates: {lines}",
            hint="do not release it: change the recipe or its gates; build it again where the machine was disturbed",
        )
    if bundle.recipe.gates.asked and not bundle.manifest.gates and bundle.manifest.engine.not_run is None:
        raise GateError(
            f"{bundle.directory}: its gates were not judged, for its engine could not be measured where it was built",
            hint="build it where the engine runs",
        )


def require_release(bundle: Bundle, *, accept_unverified: bool = False) -> None:
    """Refuse a bundle that should not leave the house."""
    require_engine(bundle)
    not_run = bundle.manifest.engine.not_run
    if not_run is not None:
        raise IncompatibleError(
            f"{bundle.directory} holds an engine that was never run: {not_run}",
            hint="`qvec-deploy compile` on a machine with the GPU builds it again and compares it with PyTorch",
        )
    require_gates(bundle)
    reason = bundle.manifest.unverified
    if reason is not None and not accept_unverified:
        raise GateError(
            f"{bundle.directory} is unverified: {reason}",
            hint=f"give the recipe `images` or `evaluate`, take the engine in {LAMBDA0}/, or pass --accept-unverified",
        )
