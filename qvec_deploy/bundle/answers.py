"""Every engine's answers to the labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qvec_deploy.bundle.progress import Progress
from qvec_deploy.datasets import Dataset, batches
from qvec_deploy.measure.accuracy import Accuracy, measure_accuracy
from qvec_deploy.report.values import Answers
from qvec_deploy.targets import Session
from qvec_deploy.tensors import Float32

_CACHE_BYTES = 1 << 30  # decoded images up to this size are kept for all engines


def measure_answers(
    sessions: Mapping[str, Session], images: Dataset | None, batch_size: int, progress: Progress
) -> dict[str, Accuracy]:
    """Run every engine over all images; empty without images.

    Args:
        sessions: Loaded engines by candidate name.
        images: The labelled images.
        batch_size: Images per call.
        progress: Shows how far it is.
    """
    if images is None:
        return {}
    decoded: Sequence[tuple[Float32, np.ndarray]] | None = None
    (shape,) = {session.input_shape for session in sessions.values()}
    if len(images) * int(np.prod(shape)) * 4 <= _CACHE_BYTES:
        decoded = list(batches(images, batch_size))
    accuracies = {}
    with progress.stage("accuracy") as advance:
        for index, (name, session) in enumerate(sessions.items()):
            done = index * len(images)
            accuracies[name] = measure_accuracy(
                session,
                decoded if decoded is not None else batches(images, batch_size),
                lambda seen, done=done: advance(done + seen, len(sessions) * len(images)),  # type: ignore[misc]
            )
    return accuracies


def answers_of(accuracy: Accuracy, full: Accuracy | None) -> Answers:
    """What a report says of an engine's answers.

    Args:
        accuracy: The engine's.
        full: The float receiver's on the same images; None where it was not measured.
    """
    return Answers(accuracy.correct, accuracy.count)
