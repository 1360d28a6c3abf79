"""What the candidates of one build share: opened files, plans, images, the exported structure, and the cache."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qvec_deploy.builder.images import activation_images
from qvec_deploy.builder.keys import STRUCTURE_PACKAGES, coordinates_key, engine_key, structure_inputs, weights_key
from qvec_deploy.bundle.interface import model_metadata
from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.io.cache import Cache
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.machine_lock import MachineLock
from qvec_deploy.io.user_cache import is_remembered, remembered
from qvec_deploy.jobs.apart import submit
from qvec_deploy.models import head_names
from qvec_deploy.planner import Plan, make_plan
from qvec_deploy.progress import Progress
from qvec_deploy.recipe import Recipe
from qvec_deploy.runtimes.registry import find_lowering
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.vector_sources import OpenFiles, Source, open_sources

if TYPE_CHECKING:
    import onnx


@dataclass
class BuildContext:
    """Everything that is opened or made once for all candidates of a build.

    Attributes:
        cache: Parts of engines. A sweep's builds share one; a build without one makes its own and removes it.
        machine: What builds take turns at; None for one that takes its turn without asking.
        class_names: Names by label, which model files carry; empty where nobody has named the classes.
    """

    offline: bool = False
    progress: Progress = field(default_factory=Progress)
    cache: Cache | None = None
    machine: MachineLock | None = None
    class_names: tuple[str, ...] = ()
    _files: OpenFiles | None = None
    _plans: dict[bytes, Plan] = field(default_factory=dict)
    _skeletons: dict[bytes, onnx.ModelProto] = field(default_factory=dict)
    _exports: dict[bytes, Callable[[], bytes]] = field(default_factory=dict)
    _images: dict[bytes, list[Float32]] = field(default_factory=dict)

    @property
    def files(self) -> OpenFiles:
        """The checkpoints and vectors that are open."""
        if self._files is None:
            self._files = OpenFiles(offline=self.offline)
        return self._files

    def receiver(self, recipe: Recipe) -> Checkpoint:
        """The opened receiver."""
        source = recipe.locate(recipe.receiver.checkpoint)
        opened = self.files.checkpoint(source, source, recipe.receiver.weights)
        opened.require(recipe.receiver.sha256)
        return opened

    def sources(self, recipe: Recipe) -> dict[str, Source]:
        """The opened vectors by label."""
        return open_sources(recipe, head_names(recipe.receiver.model), self.files)

    def control(self, recipe: Recipe) -> str | None:
        """What stands in for the vector in a patch, as the recipe or the vector's file says; None for a real one."""
        if recipe.vector is None or recipe.lam == 0:
            return None
        if recipe.vector.control is not None:
            return f"{recipe.vector.control.kind}, seed {recipe.vector.control.seed}"
        found = dict.fromkeys(filter(None, (source.control() for source in self.sources(recipe).values())))
        return "; ".join(found) or None

    def fingerprints(self, recipe: Recipe) -> dict[str, str]:
        """SHA-256 of every checkpoint and vector that a recipe names, by what it calls them."""
        found = {recipe.receiver.checkpoint: self.receiver(recipe).fingerprint()}
        for source in self.sources(recipe).values():
            found |= source.fingerprints()
        return found

    def plan(self, recipe: Recipe) -> Plan:
        """Everything that headers decide, decided once."""
        key = canonical_json([str(recipe.folder), recipe.as_dict()])
        if key not in self._plans:
            self._plans[key] = make_plan(recipe, self.receiver(recipe), self.sources(recipe))
        return self._plans[key]

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

    def unknown_coordinates(self, plan: Plan) -> list[str]:
        """Hold the receiver against the sketches of its vectors' donors.

        Returns:
            Vectors that bring no sketch, by label: nothing is known of their coordinates.

        Raises:
            IncompatibleError: The receiver is not in a donor's coordinates, or of another base.
        """
        if not plan.sources:
            return []
        receiver, sources = self.receiver(plan.recipe), self.sources(plan.recipe)
        if self.cache is None:
            return _unknown_coordinates(plan, receiver, sources)
        with self.cache.entry("coordinates", coordinates_key(plan, receiver, sources)) as entry:
            if entry.new:
                entry.record = _unknown_coordinates(plan, receiver, sources)
        return list(entry.record)

    def export_ahead(self, plan: Plan) -> None:
        """Have the structure exported, where that is still to be done, while this process works."""
        inputs = structure_inputs(plan)
        key = canonical_json(inputs)
        known = key in self._skeletons or key in self._exports
        if not known and not is_remembered("structure", inputs, packages=STRUCTURE_PACKAGES):
            self._exports[key] = _export(plan)

    def skeleton(self, plan: Plan) -> onnx.ModelProto:
        """The exported structure; the same for every candidate of one model and skip list."""
        inputs = structure_inputs(plan)
        key = canonical_json(inputs)
        if key not in self._skeletons:
            import onnx

            def make() -> bytes:
                with self.progress.stage("export"):
                    exported: bytes = (self._exports.pop(key, None) or _export(plan))()
                return exported

            made = remembered("structure", inputs, make, packages=STRUCTURE_PACKAGES)
            self._skeletons[key] = onnx.load_from_string(zlib.decompress(made))
        return self._skeletons[key]

    def calibration_images(self, plan: Plan) -> list[Float32]:
        """Batches (B, C, H, W) that a candidate's method looks at; none for one that looks at weights alone."""
        settings = plan.recipe.quantize
        if not settings.calibrated or settings.calibration.on == "moments":
            return []
        return self.activation_images(plan)

    def activation_images(self, plan: Plan) -> list[Float32]:
        """Batches (B, C, H, W) on which activations are looked at, decoded once."""
        recipe = plan.recipe
        images = recipe.images.model_dump(mode="json") if recipe.images is not None else None
        calibration = recipe.quantize.calibration.model_dump(mode="json")
        key = canonical_json([images, calibration, plan.architecture.data_config])
        if key not in self._images:
            self._images[key] = activation_images(recipe, plan)
        return self._images[key]

    def weights_key(self, plan: Plan) -> dict[str, Any]:
        """What decides a candidate's weights and graph."""
        recipe = plan.recipe
        return weights_key(plan, self.receiver(recipe), self.sources(recipe), self.calibration_images(plan))

    def engine_key(self, plan: Plan) -> dict[str, Any]:
        """What decides a candidate's engine."""
        target = plan.recipe.target
        calibrates = find_lowering(target.runtime, target.lowering).calibrates_activations
        images = self.activation_images(plan) if calibrates else []
        metadata = model_metadata(plan, self.class_names)
        return {**engine_key(plan, self.weights_key(plan), images), "metadata": metadata}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Measure while nobody else builds or measures here."""
        with self.machine.alone(self.progress.stage("wait")) if self.machine is not None else contextlib.nullcontext():
            yield


def _unknown_coordinates(plan: Plan, receiver: Checkpoint, sources: dict[str, Source]) -> list[str]:
    from qvec_deploy.vectors.coordinates import require_same_coordinates
    from qvec_deploy.vectors.symmetric_places import find_geometry

    model = plan.recipe.receiver
    geometry = find_geometry(model.model, model.model_args, classes=plan.architecture.classes)
    unknown = []
    for label, source in sources.items():
        sketch = source.sketch()
        if sketch is None:
            unknown.append(label)
            continue
        try:
            require_same_coordinates(receiver.read, sketch, geometry, source.header.scheme)
        except IncompatibleError as error:
            raise IncompatibleError(f"{label}: {error.message}", hint=error.hint) from error
    return unknown


def _export(plan: Plan) -> Callable[[], bytes]:
    """Have the structure exported; it is there when what is returned is called."""
    receiver, architecture = plan.recipe.receiver, plan.architecture
    skip, shape = plan.recipe.quantize.skip, architecture.input_shape
    function = "qvec_deploy.runtimes.graph.export:export_compressed"
    return submit(function, receiver.model, architecture.classes, dict(receiver.model_args), skip, shape)
