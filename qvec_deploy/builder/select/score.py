"""Outputs to scores; less is better."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.tensors import Float32

Float64 = NDArray[np.float64]
Labels = NDArray[np.int64]


def divergences(teacher: Float32, student: Float32) -> Float64:
    """Kullback-Leibler divergence KL(teacher || student) of every image's class probabilities, in nats.

    The receiver's own float outputs need no label, and unlike the error of the weights they say what a candidate
    does: accuracy moves by tens of points while the rounding error of the weights stays as it is.

    Args:
        teacher: Logits (images, classes).
        student: Logits (images, classes).

    Returns:
        (images,) float64, not negative up to rounding.
    """
    of_teacher, of_student = _log_probabilities(teacher), _log_probabilities(student)
    return np.asarray((np.exp(of_teacher) * (of_teacher - of_student)).sum(axis=1))


def wrong(labels: Labels, student: Float32) -> Float64:
    """1.0 for every image whose largest logit is not its label's, else 0.0."""
    return np.asarray(student.argmax(axis=1) != labels, np.float64)


def _log_probabilities(logits: Float32) -> Float64:
    from scipy.special import log_softmax

    return np.asarray(log_softmax(logits.astype(np.float64), axis=1))
