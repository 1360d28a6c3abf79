"""The analysis: for every donor's vector what geometry predicts, what its gradient says, and what is measured.

Where curvature is taken matters. The receiver's objective in Proposition 1 is that of the *quantized* network, smooth
by assumption and least at theta + rho_R. Straight-through, its curvature at lambda = 0 is that of the network at the
weights on the grid (`ptq`), and at its minimum that of the receiver's own QAT on the grid (`qat`). At the float weights
(`fp`) the curvature is that of a network which is never deployed; there the teacher's Hessian is the Gauss-Newton
matrix exactly, for its gradient in logit space vanishes.

On the 30 pairs of the six bundled tasks (200 images, 3 bits per tensor, mse) cos^2 missed the best measured share by
0.09 on average at `ptq`, 0.17 at `qat` and 0.22 at `fp`, which is why `ptq` is the default. The Euclidean version
missed it by 0.52, and its lambda* was 0.06 where the best lambda was 0.75 (medians).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from qvec_deploy.models import create
from qvec_deploy.research.analyze.analysis_inputs import AnalysisInputs, AnalysisRequest, open_inputs, read_images
from qvec_deploy.research.analyze.network import Network, State, gauss_newton_form, inner
from qvec_deploy.research.analyze.quadratic_model import Alignment, GradientEstimate, gradient_estimate
from qvec_deploy.research.analyze.response import GRID, LambdaResponse, LossReference, QuantizedLoss, quantized
from qvec_deploy.tensors import Float32, Scheme
from qvec_deploy.vectors.patch import add_scaled

METRICS = ("euclidean", "gauss_newton", "hessian")

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class DonorAnalysis:
    """One donor's vector: what each of `METRICS` says, the estimate that needs no QAT, and what is measured.

    It is measured at the lambdas of `GRID` and at every predicted one.
    """

    vector: str
    task: str
    alignments: Mapping[str, Alignment]
    gradient: GradientEstimate
    response: LambdaResponse


@dataclass(frozen=True)
class Analysis:
    """Everything an analysis found.

    Attributes:
        scheme: The grid of the vectors and of the receiver's QAT.
    """

    request: AnalysisRequest
    classes: int
    scheme: Scheme
    skip: tuple[str, ...]
    images: int
    labelled: bool
    float_receiver: QuantizedLoss
    donors: tuple[DonorAnalysis, ...]

    @property
    def one_curvature(self) -> bool:
        """Whether Hessian and Gauss-Newton matrix are the same, so that only one was computed."""
        return self.request.one_curvature


def analyze(request: AnalysisRequest, advance: Advance = lambda done, total: None) -> Analysis:
    """Analyze donors' vectors for a receiver whose own QAT is known.

    The same images serve prediction and measurement: this explains a transfer, it does not select a lambda.

    Args:
        advance: Called with how many vectors are done, of how many.
    """
    inputs = open_inputs(request)
    comparison = _DonorComparison(inputs, request)
    donors = []
    for done, donor in enumerate(comparison.donors(), start=1):
        donors.append(donor)
        advance(done, len(inputs.vectors))
    return Analysis(
        request=request,
        classes=inputs.architecture.classes,
        scheme=inputs.scheme,
        skip=inputs.skip,
        images=len(inputs.dataset),
        labelled=inputs.labelled,
        float_receiver=comparison.float_receiver,
        donors=tuple(donors),
    )


class _DonorComparison:
    """A network, its images, and all that is the same for every donor."""

    def __init__(self, inputs: AnalysisInputs, request: AnalysisRequest) -> None:
        self._inputs = inputs
        batches, labels = read_images(inputs.dataset, request.batch_size)
        model = create(request.model, inputs.architecture.classes, request.model_args)
        self._network = Network(model, [torch.from_numpy(batch) for batch in batches])
        floats = {name: torch.from_numpy(value) for name, value in inputs.weights.items()}
        logits = self._network.logits(floats)
        known = torch.from_numpy(labels) if inputs.labelled else None
        self._reference = LossReference(logits.softmax(dim=1), known, request.loss)
        self.float_receiver = self._reference.measure(logits)
        self._plain, own_qat = self._patched(inputs.own, 0.0), self._patched(inputs.own, 1.0)
        self._plain_measured, self._own_measured = self._measure(self._plain), self._measure(own_qat)
        self._point = {"ptq": self._plain, "fp": floats, "qat": own_qat}[request.at]
        self._own = {name: torch.from_numpy(value) for name, value in inputs.own.items()}
        self._logits, self._own_change = self._network.along(self._point, self._own)
        self._one_curvature = request.one_curvature
        self._own_product: State = {}
        if not self._one_curvature:
            self._own_product = self._network.hessian_product(self._point, self._own, self._reference.targets)

    def donors(self) -> Iterator[DonorAnalysis]:
        """One donor after the other, so that memory holds one vector."""
        for label, vector in self._inputs.vectors.items():
            rho = {name: vector.read(name) for name in self._inputs.own}
            moving = {name: torch.from_numpy(value) for name, value in rho.items()}
            alignments = self._alignments(moving)
            gradient = self._gradient(moving)
            predicted = [alignments[metric].lambda_star for metric in METRICS] + [gradient.lambda_hat]
            lambdas = sorted({*GRID, *(lam for lam in predicted if lam is not None)})
            curve = {lam: self._measure(self._patched(rho, lam)) if lam else self._plain_measured for lam in lambdas}
            response = LambdaResponse(self._plain_measured, self._own_measured, curve)
            yield DonorAnalysis(label, vector.header.task, alignments, gradient, response)

    def _alignments(self, rho: State) -> dict[str, Alignment]:
        _, change = self._network.along(self._point, rho)
        pairs = [(change, self._own_change), (change, change), (self._own_change, self._own_change)]
        gauss_newton = Alignment(*(gauss_newton_form(self._logits, first, second) for first, second in pairs))
        return {
            "euclidean": Alignment(inner(rho, self._own), inner(rho, rho), inner(self._own, self._own)),
            "gauss_newton": gauss_newton,
            "hessian": gauss_newton if self._one_curvature else self._hessian(rho),
        }

    def _hessian(self, rho: State) -> Alignment:
        product = self._network.hessian_product(self._point, rho, self._reference.targets)
        own = self._own_product
        return Alignment(inner(rho, own), inner(rho, product), inner(self._own, own))

    def _gradient(self, rho: State) -> GradientEstimate:
        """Slope and curvature of the student at lambda = 0 in one forward-mode pass.

        Straight through, the gradient of KL(teacher || student) is that at the weights on the grid, and its product
        with rho is (p_student - p_teacher)' J rho: no backward pass is needed, and every image gives a slope.
        """
        logits, change = self._network.along(self._plain, rho)
        slopes = ((logits.softmax(dim=1) - self._reference.teacher) * change).sum(dim=1)
        return gradient_estimate(slopes.numpy(), gauss_newton_form(logits, change, change))

    def _patched(self, rho: Mapping[str, Float32], lam: float) -> dict[str, Tensor]:
        """The receiver plus lambda * rho, on the grid."""
        weights = dict(self._inputs.weights)
        weights |= {name: add_scaled(weights[name], value, lam) for name, value in rho.items()}
        return quantized(weights, self._inputs.quantized, self._inputs.scheme)

    def _measure(self, state: State) -> QuantizedLoss:
        return self._reference.measure(self._network.logits(state))


def analysis_document(analysis: Analysis) -> dict[str, Any]:
    """An analysis as plain values for JSON; losses and forms in nats, shares and accuracies as fractions."""
    request = analysis.request
    response = analysis.donors[0].response  # plain and own are the same for all
    return {
        "made_by": f"qvec-deploy {version('qvec-deploy')}",
        "receiver": request.receiver,
        "receiver_qat": request.receiver_qat,
        "model": request.model,
        "model_args": dict(request.model_args),
        "classes": analysis.classes,
        "scheme": analysis.scheme.as_dict(),
        "skip": list(analysis.skip),
        "dataset": request.data.name,
        "split": request.data.split,
        "images": analysis.images,
        "labelled": analysis.labelled,
        "batch_size": request.batch_size,
        "loss": request.loss,
        "curvature_at": request.at,
        "measured": {
            "float": asdict(analysis.float_receiver),
            "plain": asdict(response.plain),
            "own_qat": asdict(response.own),
        },
        "vectors": [_donor_document(donor) for donor in analysis.donors],
    }


def _donor_document(donor: DonorAnalysis) -> dict[str, Any]:
    response, gradient = donor.response, donor.gradient

    def measured(lam: float | None) -> float | None:
        return None if lam is None else response.share(lam)

    geometry = {
        metric: {
            **asdict(alignment),
            "lambda_star": alignment.lambda_star,
            "cos_squared": alignment.cos_squared,
            "measured_share": measured(alignment.lambda_star),
            "predicted_share_at_1": alignment.share_at(1.0),
            "measured_share_at_1": measured(1.0),
        }
        for metric, alignment in donor.alignments.items()
    }
    return {
        "vector": donor.vector,
        "task": donor.task,
        "best_lambda": response.best,
        "best_share": measured(response.best),
        "geometry": geometry,
        "gradient": {
            **asdict(gradient),
            "lambda_hat": gradient.lambda_hat,
            "sign": gradient.sign,
            "measured_share": measured(gradient.lambda_hat),
        },
        "curve": [
            {"lambda": lam, **asdict(loss), "share": response.share(lam), "share_top1": response.share_top1(lam)}
            for lam, loss in response.curve.items()
        ],
    }
