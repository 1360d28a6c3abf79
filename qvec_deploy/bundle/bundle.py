"""A bundle, opened: hashes first, then its engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvec_deploy.bench.environment import available_threads
from qvec_deploy.bench.parity import PARITY_FILE, check_parity, read_reference
from qvec_deploy.bundle.manifest import LAMBDA0, MANIFEST_FILE, Manifest, check_files, read_manifest
from qvec_deploy.errors import IncompatibleError, IntegrityError, StorageError
from qvec_deploy.io.untrusted import understood
from qvec_deploy.recipe import Recipe, load_recipe
from qvec_deploy.runtimes.engine_files import ACTIVATIONS_FILE, MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import check_lowering, find_lowering, find_runtime
from qvec_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from qvec_deploy.datasets.standalone_run import ImagePrediction

RECIPE_FILE = "recipe.yaml"
_NEEDED = (MODEL_FILE, WEIGHTS_FILE, PARITY_FILE, RECIPE_FILE)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what the manifest says."""

    directory: Path
    manifest: Manifest
    recipe: Recipe

    @classmethod
    def open(cls, directory: Path, *, manifest_sha256: str | None = None) -> Bundle:
        """Read the manifest and compare every file with it; nothing else is opened before.

        Args:
            manifest_sha256: What the manifest is to be, where a signature says it.

        Raises:
            StorageError: There is no bundle.
            IntegrityError: It is damaged, or was changed after the build.
            IncompatibleError: It was written by a later major version.
        """
        manifest = read_manifest(directory, sha256=manifest_sha256)
        check_files(directory, manifest)
        unlisted = [name for name in _NEEDED if name not in manifest.files]
        if unlisted:  # what the manifest does not list has no hash, and would be opened unchecked
            raise IntegrityError(f"{directory}: the manifest lacks {unlisted[0]}", hint="build or copy it again")
        recipe = load_recipe(directory / RECIPE_FILE)
        engine, target = manifest.engine, recipe.target
        said = (manifest.recipe_sha256, manifest.name, manifest.lam, engine.runtime, engine.lowering, engine.threads)
        entry = manifest.files[RECIPE_FILE]
        if said != (entry.sha256, recipe.name, recipe.lam, target.runtime, target.lowering, target.threads):
            raise IntegrityError(
                f"{directory}: manifest.json does not say what recipe.yaml says", hint="build or copy the bundle again"
            )
        return cls(directory, manifest, recipe)

    @contextlib.contextmanager
    def session(self, *, lowering: str | None = None, threads: int | None = None) -> Iterator[Session]:
        """The loaded engine.

        Args:
            threads: Instead of the recipe's; all available cores where neither says.

        Raises:
            IncompatibleError: The runtime is missing here or refuses, or the lowering cannot take these weights.
        """
        chosen = self.check_lowering(lowering)
        backend = find_runtime(self.manifest.engine.runtime).load()
        with backend.open(self.directory, chosen, self.threads(threads)) as session:
            yield session

    def predict(
        self, images: Sequence[Path], *, top: int = 5, threads: int | None = None, batch_size: int = 1
    ) -> list[ImagePrediction]:
        """The most probable classes of every picture, prepared as the model wants them.

        Args:
            top: Classes of each picture, at most.
            threads: Instead of the recipe's; all available cores where neither says.
            batch_size: Pictures in a run of the engine.

        Raises:
            StorageError: A picture cannot be read.
            IncompatibleError: As `session`, or the engine's answers are not finite.
        """
        from qvec_deploy.datasets import standalone_run

        paths, model, interface = [str(path) for path in images], self.manifest.model, self.manifest.interface
        with understood(self.directory / MANIFEST_FILE):
            standalone_run.ImagePreprocessor(model.data_config)
        try:
            standalone_run.require_pictures(paths)
            with self.session(threads=threads) as session:
                return standalone_run.classify(
                    session.run,
                    paths,
                    model.data_config,
                    model.class_names,
                    as_pixels=interface is not None and interface.input.dtype == "uint8",
                    top=top,
                    batch=batch_size,
                )
        except standalone_run.RunError as error:
            kind = {each.exit_code: each for each in (IncompatibleError, StorageError)}[error.exit_code]
            raise kind(error.message, hint=error.hint) from error

    def require_activations(self, lowering: str) -> None:
        """Refuse a lowering that quantizes activations of which the bundle knows nothing.

        Raises:
            IncompatibleError: It is one.
        """
        calibrates = find_lowering(self.manifest.engine.runtime, lowering).calibrates_activations
        if calibrates and ACTIVATIONS_FILE not in self.manifest.files:
            raise IncompatibleError(
                f"{self.directory} knows nothing about activations, which lowering `{lowering}` quantizes",
                hint=f"build it with target.lowering: {lowering}, which measures them",
            )

    def engine_missing(self) -> str | None:
        """What stands in the way of the engine, where something did when the bundle was built; None if nothing does.

        A machine may have what the building machine lacked; only what is compiled has to be built first.
        """
        engine = self.manifest.engine
        row = find_runtime(engine.runtime)
        if engine.not_run is not None or (engine.missing is not None and not row.compiles):
            return row.missing(engine.lowering)
        return engine.missing

    def engine_unusable(self) -> str | None:
        """Why the engine cannot be measured here, as what is said of the bundle; None if it can."""
        missing = self.engine_missing()
        if missing is None:
            return None
        there = "has an engine, but it cannot run here" if self.manifest.engine.not_run else "has no engine"
        return f"{there}: {missing}"

    def _not_opened(self) -> str:
        engine = self.manifest.engine
        if engine.not_run is not None:
            return "built, but not run here"
        return "not built" if find_runtime(engine.runtime).compiles else "not opened"

    def check_lowering(self, lowering: str | None) -> str:
        """The lowering to use, the recipe's by default."""
        chosen = lowering or self.manifest.engine.lowering
        engine, grid = self.manifest.engine, self.recipe.quantize
        try:
            check_lowering(engine.runtime, chosen, grid.bits, grid.granularity, grid.group_size)
        except IncompatibleError as error:
            raise IncompatibleError(f"{self.directory}: {error.message}", hint=error.hint) from error
        return chosen

    def threads(self, threads: int | None = None) -> int:
        """Threads of the engine: as asked, as the recipe says, or all cores this process may use."""
        return threads or self.manifest.engine.threads or available_threads()

    def verify(self) -> dict[str, str]:
        """Check the bundle beyond its hashes: weights, graph, what is said of them, engines, parity with PyTorch.

        Returns:
            Check to result, in words.

        Raises:
            IntegrityError: A value or the graph is not as the formats say.
            IncompatibleError: The engine cannot be opened here, or computes something else.
        """
        from qvec_deploy.bundle.claims import check_claims
        from qvec_deploy.bundle.verify import check_engines, check_weights, read_graph

        manifest, row, missing = self.manifest, find_runtime(self.manifest.engine.runtime), self.engine_missing()
        written = "as it was written" if manifest.digest is not None else "no digest: written by an older version"
        results = {"manifest": written, "files": f"{len(manifest.files)} as built"}
        offered = [lowering for lowering in self.lowerings() if row.stands_alone]
        for place in self._places():
            told = check_weights(place)
            model = read_graph(place, older=manifest.older, offered=offered)
            results |= {"weights": told, "graph": f"{len(model.graph.node)} nodes, every weight in its place"}
            if place == self.directory:
                results["claims"] = check_claims(place, manifest, self.recipe, model)
        engines = check_engines(self.directory, row) if row.compiles else None
        if engines is not None:
            results["engines"] = engines
        if missing is not None:
            return results | {"engine": f"{self._not_opened()}: {missing}"}
        lowering = manifest.engine.lowering
        for place in self._places():
            with row.load().open(place, self.check_lowering(lowering), self.threads()) as session:
                parity = check_parity(session, row.name, lowering, read_reference(place))
            if place == self.directory:
                results["parity"] = (
                    f"relative error {parity.relative_error:.1e}, top-1 agreement {parity.top1_agreement:.0%} "
                    f"on {parity.images} generated images"
                )
        check_files(self.directory, manifest)  # and nothing was changed meanwhile
        return results

    def lowerings(self) -> list[str]:
        """Lowerings of its runtime that take these weights."""
        engine, grid, found = self.manifest.engine, self.recipe.quantize, []
        for lowering in find_runtime(engine.runtime).lowerings:
            with contextlib.suppress(IncompatibleError):
                check_lowering(engine.runtime, lowering.name, grid.bits, grid.granularity, grid.group_size)
                found.append(lowering.name)
        return found

    def _places(self) -> list[Path]:
        """Folders of its engines: its own, and that of the engine without the patch, where there is one."""
        plain = self.directory / LAMBDA0
        return [self.directory, *([plain] if f"{LAMBDA0}/{MODEL_FILE}" in self.manifest.files else [])]
