"""An analysis as plain values: every number of it, and everything it depends on."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from qvec_deploy.research.analyze.analysis import Analysis, DonorAnalysis
from qvec_deploy.research.analyze.quadratic_model import Alignment
from qvec_deploy.research.analyze.response import LambdaResponse, QuantizedLoss


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
        "vectors": [_donor(donor) for donor in analysis.donors],
    }


def _donor(donor: DonorAnalysis) -> dict[str, Any]:
    response, gradient = donor.response, donor.gradient
    return {
        "vector": donor.vector,
        "task": donor.task,
        "best_lambda": response.best,
        "best_share": response.share(response.best),
        "geometry": {metric: _alignment(alignment, response) for metric, alignment in donor.alignments.items()},
        "gradient": {
            **asdict(gradient),
            "lambda_hat": gradient.lambda_hat,
            "sign": gradient.sign,
            "measured_share": None if gradient.lambda_hat is None else response.share(gradient.lambda_hat),
        },
        "curve": [_point(lam, measured, response) for lam, measured in response.curve.items()],
    }


def _alignment(alignment: Alignment, response: LambdaResponse) -> dict[str, Any]:
    best = alignment.lambda_star
    return {
        **asdict(alignment),
        "lambda_star": best,
        "cos_squared": alignment.cos_squared,
        "measured_share": None if best is None else response.share(best),
        "predicted_share_at_1": alignment.share_at(1.0),
        "measured_share_at_1": response.share(1.0),
    }


def _point(lam: float, measured: QuantizedLoss, response: LambdaResponse) -> dict[str, Any]:
    return {
        "lambda": lam,
        **asdict(measured),
        "share": response.share(lam),
        "share_top1": response.share_top1(lam),
    }
