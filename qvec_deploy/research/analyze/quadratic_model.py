"""What the quadratic model of a receiver's loss says about a donor's vector, and what its first gradient says.

Proposition 1 of arXiv 2604.03420: were the loss of the quantized receiver quadratic in its weights, with Hessian M
and least at theta + rho_R, then theta + lambda * rho_D would be best at lambda* = rho_D'M rho_R / rho_D'M rho_D and
recover cos^2 of the angle between the two vectors of what rho_R itself recovers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENT = 1.96
"""Standard errors from zero at which the sign of a slope is believed (95 %, two-sided)."""


@dataclass(frozen=True)
class Alignment:
    """A donor's vector against the receiver's own, in the metric of one symmetric matrix M.

    Attributes:
        cross: rho_D' M rho_R.
        donor: rho_D' M rho_D.
        own: rho_R' M rho_R.
    """

    cross: float
    donor: float
    own: float

    @property
    def lambda_star(self) -> float | None:
        """The best lambda of the quadratic model; None where the model has no lowest point along rho_D."""
        return self.cross / self.donor if self.donor > 0 else None

    @property
    def cos_squared(self) -> float | None:
        """Share of the receiver's own gain that lambda* recovers, 0 to 1; None where M is not positive along both.

        An indefinite M, a Hessian away from a minimum, can give more than 1.
        """
        return self.cross**2 / (self.donor * self.own) if min(self.donor, self.own) > 0 else None

    def share_at(self, lam: float) -> float | None:
        """Predicted share of the receiver's own gain at a lambda; negative where the patch does harm."""
        return (2 * lam * self.cross - lam**2 * self.donor) / self.own if self.own > 0 else None


Sign = Literal["helps", "harms", "unclear"]


@dataclass(frozen=True)
class GradientEstimate:
    """lambda from the quantized receiver's own gradient: no labels, and no QAT of the receiver.

    Under the quadratic model the gradient at lambda = 0 is -M rho_R, so that lambda* is -slope / curvature. The
    slope is that of the straight-through student: the gradient at the weights on the grid, taken as if it were that
    at the latent weights.

    Attributes:
        slope: d KL(teacher || student) / d lambda at lambda = 0, nats.
        curvature: rho_D' G rho_D at the same point, nats.
    """

    slope: float
    slope_error: float
    curvature: float

    @property
    def lambda_hat(self) -> float | None:
        """One Gauss-Newton step along rho_D; None where the vector changes no logit."""
        return -self.slope / self.curvature if self.curvature > 0 else None

    @property
    def sign(self) -> Sign:
        """Whether a small step along rho_D lowers the student's loss: the test for an anti-aligned vector."""
        if abs(self.slope) <= CONFIDENT * self.slope_error:
            return "unclear"
        return "helps" if self.slope < 0 else "harms"


def gradient_estimate(slopes: NDArray[np.float64], curvature: float) -> GradientEstimate:
    """Sum up the slopes of single images.

    Args:
        slopes: (N,) d KL / d lambda of every image, nats; N is at least 2.
        curvature: rho_D' G rho_D, nats.
    """
    return GradientEstimate(float(slopes.mean()), float(slopes.std(ddof=1)) / len(slopes) ** 0.5, curvature)
