"""What the candidates of one build share, and the builds of one sweep: opened files, things made once, the machine."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from qvec_deploy.bench.environment import capture_environment
from qvec_deploy.build.weights import activation_images, calibration_images
from qvec_deploy.bundle.bundle import available_threads
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.io.cache import Machine, Make, Shelf
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import canonical_json, sha256_file, write_bytes
from qvec_deploy.models import Architecture, head_name
from qvec_deploy.plan import Plan, make_plan
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Recipe
from qvec_deploy.runtimes.engine_files import MODEL_FILE
from qvec_deploy.runtimes.registry import find_target
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.vector_sources import Source, open_sources

if TYPE_CHECKING:
    import onnx

_PACKAGES = (
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "nvidia-modelopt",
    "numpy",
    "scipy",
    "safetensors",
    "pillow",
    "tensorrt",
    "triton",
)
_NO_MAKERS = ("cli", "report", "research")
"""Of this package, what decides no byte of a candidate. All other text does; it changes within a version."""


@dataclass
class Workshop:
    """What the candidates of one run share: opened sources and exported structures.

    Attributes:
        offline: Use the Hub's local cache only.
        progress: Shows and times the stages.
        shelf: Where a sweep keeps what its builds have made; None makes everything here.
        machine: What builds take turns at; None for one that takes its turn without asking.
    """

    offline: bool = False
    progress: Progress = field(default_factory=Progress)
    shelf: Shelf | None = None
    machine: Machine | None = None
    _receivers: dict[str, Checkpoint] = field(default_factory=dict)
    _skeletons: dict[str, onnx.ModelProto] = field(default_factory=dict)
    _fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    _images: dict[bytes, list[Float32]] = field(default_factory=dict)

    def receiver(self, recipe: Recipe) -> Checkpoint:
        """The opened receiver."""
        source = recipe.locate(recipe.receiver.checkpoint)
        if source not in self._receivers:
            self._receivers[source] = Checkpoint.open(source, offline=self.offline)
        return self._receivers[source]

    def sources(self, recipe: Recipe) -> dict[str, Source]:
        """The opened vectors by label."""
        return open_sources(recipe, head_name(recipe.receiver.model), offline=self.offline)

    def control(self, recipe: Recipe) -> str | None:
        """What stands in for the vector in a patch, as the recipe or the vector's file says; None for a real one."""
        if recipe.vector is None or recipe.lam == 0:
            return None
        if recipe.vector.control is not None:
            return f"{recipe.vector.control.kind}, seed {recipe.vector.control.seed}"
        found = dict.fromkeys(filter(None, (source.control() for source in self.sources(recipe).values())))
        return "; ".join(found) or None

    def plan(self, recipe: Recipe) -> Plan:
        """Everything that headers decide."""
        return make_plan(recipe, self.receiver(recipe), self.sources(recipe))

    def compare_coordinates(self, plan: Plan) -> list[str]:
        """Hold the receiver against the sketches of its vectors' donors.

        Returns:
            Vectors that bring no sketch, by label.

        Raises:
            IncompatibleError: The receiver is not in a donor's coordinates, or of another base.
        """
        if not plan.sources:
            return []
        if self.shelf is None:
            return self._compare_coordinates(plan)
        receiver, sources = self.receiver(plan.recipe), self.sources(plan.recipe)
        inputs = {
            **_structure(plan),
            "code": made_by(),
            "receiver": self._hashes("", receiver),
            "vectors": {label: self._hashes(label, source) for label, source in sources.items()},
        }
        with TemporaryDirectory() as nothing:
            unknown: list[str] = self.shelf.obtain(
                "coordinates", inputs, Path(nothing), lambda _: self._compare_coordinates(plan)
            )
        return unknown

    def _compare_coordinates(self, plan: Plan) -> list[str]:
        from qvec_deploy.vectors.coordinates import require_same_coordinates
        from qvec_deploy.vectors.symmetric_places import find_geometry

        recipe = plan.recipe
        receiver, geometry = self.receiver(recipe), find_geometry(recipe.receiver.model, recipe.receiver.model_args)
        unknown = []
        for label, source in self.sources(recipe).items():
            sketch = source.sketch()
            if sketch is None:
                unknown.append(label)
                continue
            try:
                require_same_coordinates(receiver.read, sketch, geometry, source.header.scheme)
            except IncompatibleError as error:
                raise IncompatibleError(f"{label}: {error.message}", hint=error.hint) from error
        return unknown

    def plans(self, recipe: Recipe) -> list[Plan]:
        """The plans of all candidates, in the order of `Recipe.candidates`.

        Raises:
            QvecError: As `plan`; the message names the candidate.
        """
        made = []
        for candidate in recipe.candidates():
            try:
                made.append(self.plan(candidate))
            except QvecError as error:
                if candidate.name == recipe.name:
                    raise
                raise type(error)(f"candidate {candidate.name}: {error.message}", hint=error.hint) from error
        return made

    def skeleton(self, plan: Plan) -> onnx.ModelProto:
        """The exported structure; the same for every candidate of one model and skip list."""
        inputs = {**_structure(plan), "skip": plan.recipe.quantize.skip}
        key = str(canonical_json(inputs))
        if key not in self._skeletons:
            if self.shelf is None:
                self._skeletons[key] = self._export(plan)
            else:
                self._skeletons[key] = self._shelved_skeleton(self.shelf, inputs, plan)
        return self._skeletons[key]

    def _export(self, plan: Plan) -> onnx.ModelProto:
        from qvec_deploy.runtimes.graph.export import export_skeleton

        model = plan.recipe.receiver
        with self.progress.stage("export"), _collected():
            return export_skeleton(
                model.model,
                plan.architecture.classes,
                model.model_args,
                plan.recipe.quantize.skip,
                plan.architecture.input_shape,
            )

    def _shelved_skeleton(self, shelf: Shelf, inputs: dict[str, Any], plan: Plan) -> onnx.ModelProto:
        import onnx

        def make(folder: Path) -> None:
            write_bytes(folder / MODEL_FILE, self._export(plan).SerializeToString(deterministic=True))

        with TemporaryDirectory() as folder:
            shelf.obtain("structure", {**inputs, "code": made_by()}, Path(folder), make)
            return onnx.load(Path(folder) / MODEL_FILE)

    def calibration_images(self, plan: Plan) -> list[Float32]:
        """What a candidate's method looks at, decoded once for all candidates of a sweep's build."""
        return self._decoded(plan, calibration_images) if plan.recipe.quantize.calibrated else []

    def _decoded(self, plan: Plan, read: Callable[[Recipe, Architecture], list[Float32]]) -> list[Float32]:
        if self.shelf is None:
            return read(plan.recipe, plan.architecture)
        images = plan.recipe.images.model_dump(mode="json") if plan.recipe.images is not None else None
        looked_at = plan.recipe.quantize.calibration.model_dump(mode="json")
        key = canonical_json([read.__name__, images, looked_at])
        if key not in self._images:
            self._images[key] = read(plan.recipe, plan.architecture)
        return self._images[key]

    def make(self, kind: Literal["weights", "engine"], plan: Plan, directory: Path, make: Make) -> Any:
        """Make a part of a candidate, or take it from the shelf where the same was made before.

        Args:
            kind: Which part: the weights and their graph, or these with the engine that is opened from them.
            plan: The candidate's plan.
            directory: Where its files go.
            make: Writes them, and returns what is known of them as a JSON value.

        Returns:
            What `make` returned.
        """
        if self.shelf is None:
            return make(directory)
        inputs = self._of_weights(plan) | (self._of_engine(plan) if kind == "engine" else {})
        return self.shelf.obtain(kind, inputs, directory, make)

    def _of_weights(self, plan: Plan) -> dict[str, Any]:
        """Everything that decides a candidate's weights and graph. Names and places of files do not."""
        recipe = plan.recipe
        sources = self.sources(recipe)
        patch = [[share, self._hashes(label, sources[label])] for label, share in plan.sources]
        moments = recipe.quantize.calibrated and recipe.quantize.calibration.on == "moments"
        control = recipe.vector.control if recipe.vector is not None and patch else None
        return {
            **_structure(plan),
            "code": made_by(),
            "receiver": self._hashes("", self.receiver(recipe)),
            "lambda": recipe.lam if patch else 0.0,
            "patch": patch,
            "control": control.model_dump(mode="json") if control is not None else None,
            "moments": [self._hashes(label, source) for label, source in sources.items()] if moments else [],
            "quantize": recipe.quantize.model_dump(mode="json", exclude={"calibration"}),
            "images": _hash(self.calibration_images(plan)),
        }

    def _of_engine(self, plan: Plan) -> dict[str, Any]:
        """What decides an engine beyond its weights: the target, and what stands in its way on this machine."""
        target = plan.recipe.target
        on_gpu = target.runtime != "onnxruntime"
        unused: set[str] = set() if target.runtime == "tensorrt" else {"batch_sizes"}
        images = self._decoded(plan, activation_images) if target.lowering == "w8a8" else []
        return {
            "target": target.model_dump(mode="json", exclude=unused),
            "threads": target.threads or available_threads(),
            "missing": find_target(target.runtime).missing(target.lowering),
            "activations": _hash(images),
            "cpu": capture_environment(1).cpu,
            "machine": platform.node() if on_gpu else None,
            "gpu": _gpu() if on_gpu else None,
        }

    def _hashes(self, label: str, source: Source | Checkpoint) -> list[str]:
        """SHA-256 of the files behind a source; hashed once."""
        if label not in self._fingerprints:
            self._fingerprints[label] = (
                {"": source.fingerprint()} if isinstance(source, Checkpoint) else source.fingerprints()
            )
        return list(self._fingerprints[label].values())

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """SHA-256 of every checkpoint and vector that a recipe names, by what it calls them."""
        found = {recipe.receiver.checkpoint: self.receiver(recipe).fingerprint()}
        for source in self.sources(recipe).values():
            found |= source.fingerprints()
        return found

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Measure while nobody else builds or measures here."""
        with self.machine.alone(self.progress.stage("wait")) if self.machine is not None else contextlib.nullcontext():
            yield


def _structure(plan: Plan) -> dict[str, Any]:
    receiver, architecture = plan.recipe.receiver, plan.architecture
    return {
        "model": receiver.model,
        "args": dict(receiver.model_args),
        "classes": architecture.classes,
        "input_shape": list(architecture.input_shape),
    }


def _hash(images: Sequence[Float32]) -> str:
    """SHA-256 of decoded images: folders change without their names changing."""
    digest = hashlib.sha256()
    for batch in images:
        digest.update(str(batch.shape).encode())
        digest.update(batch.tobytes())
    return digest.hexdigest()


def _gpu() -> dict[str, Any] | None:
    """The first visible GPU and its driver; None without one."""
    from qvec_deploy.runtimes.cuda_driver import Cuda

    try:
        return asdict(Cuda().gpu)
    except IncompatibleError:
        return None


@functools.cache
def made_by() -> dict[str, str]:
    """What makes things: the packages' versions, and this package's own text."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    package = Path(__file__).parents[1]
    texts = sorted(t for t in package.rglob("*.py") if t.relative_to(package).parts[0] not in _NO_MAKERS)
    found["qvec-deploy"] = hashlib.sha256(b"".join(sha256_file(text).encode() for text in texts)).hexdigest()
    return found


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Collect the garbage that the block makes, without walking the millions of objects that were there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
