"""The float receiver on its labelled images, before anything is quantized: nobody wants a day of a model read wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from qvec_deploy.bench.accuracy import Answered
from qvec_deploy.bench.entries import BenchOptions
from qvec_deploy.bench.evaluation import measure_rows, sampled_rows
from qvec_deploy.bench.parity import reference_logits
from qvec_deploy.bench.receiver_doubts import receiver_finding
from qvec_deploy.bench.runnable import Runnable
from qvec_deploy.bundle.write import Artifact
from qvec_deploy.datasets import OpenedDataset
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile
from qvec_deploy.progress import Progress
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import find_runtime
from qvec_deploy.tensors import Float32


def check_receiver(
    artifact: Artifact, threads: int, images: OpenedDataset, options: BenchOptions, progress: Progress
) -> Answered:
    """Answers of the float engine to the images, by its name; none where a sample of many images was enough.

    Args:
        artifact: It is the float candidate.

    Raises:
        IncompatibleError: The answers do not fit the labels.
    """
    name, batch_size = artifact.plan.recipe.name, options.evaluate.batch_size if options.evaluate is not None else 1
    rows = sampled_rows(len(images), images.classes)
    with progress.stage("receiver", f"on {len(rows):,} images") as advance, _opened(artifact, threads) as engine:
        answers = measure_rows(engine, images, rows, batch_size, advance)
    finding = receiver_finding(name, answers, options.model.classes, options.model.class_names or images.class_names)
    if finding is not None:
        raise IncompatibleError(
            f"the float receiver's answers do not fit the labels ({finding.warning}); nothing was quantized. "
            f"{finding.detail}",
            hint=f"{finding.warning.remedy} If it is right as it is: --accept-float, or evaluate.accept_float: true",
        )
    return {name: answers} if len(rows) == len(images) else {}


@dataclass(frozen=True)
class _Reference:
    """PyTorch with an artifact's weights, in place of an engine that cannot be opened here."""

    artifact: Artifact

    def run(self, images: Float32) -> Float32:
        plan = self.artifact.plan
        weights, model = PackedFile.open(self.artifact.directory / WEIGHTS_FILE), plan.architecture
        return reference_logits(weights, model.name, model.classes, plan.recipe.receiver.model_args, images)


@contextlib.contextmanager
def _opened(artifact: Artifact, threads: int) -> Iterator[Runnable]:
    target = artifact.plan.recipe.target
    if not artifact.runs:
        yield _Reference(artifact)
        return
    with find_runtime(target.runtime).load().open(artifact.directory, target.lowering, threads) as session:
        yield session
