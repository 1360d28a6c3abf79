"""Everything that is tried on a receiver, in order: `cell` computes each, `analysis.rows` says how it is called."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from qvec_deploy.quantize.methods import by_moments
from qvec_deploy.research.study.cell_values import CellRequest, Trial
from qvec_deploy.tensors import Scheme


def planned_trials(request: CellRequest) -> Iterator[Trial]:
    """The trials of a cell without their answers; a later one may use answers of an earlier one."""
    own = grid_method(request.grid)
    donors = [donor.task for donor in request.donors]
    lambdas = sorted({1.0, *request.lambdas} - {0.0})
    yield Trial("float", "float", 0.0)
    if request.own_qat is not None:
        yield Trial("own_qat", own, 0.0)
    for method in grids_by_weights(request.grid):
        yield Trial("plain", method, 0.0)
    for donor, lam in itertools.product(donors, lambdas):
        yield Trial("pair", own, lam, donor)
    if donors:
        yield from (Trial("mean", own, lam) for lam in lambdas)
    if len(donors) > 1:
        yield Trial("mix", own, 1.0)
    for donor, control in itertools.product(donors, request.controls):
        if control != "task_vector" or request.base is not None:
            yield Trial("control", own, 1.0, donor, control)
    yield from _calibrated(request, lambdas)


def _calibrated(request: CellRequest, lambdas: list[float]) -> Iterator[Trial]:
    """Methods that look at inputs, without a vector and with the mean of donors."""
    for inputs, method in itertools.product(request.inputs, request.methods):
        if inputs == "moments" and (method not in by_moments() or not request.donors):
            continue
        # Where the receiver's images are at hand, by which a lambda could be chosen, the smaller ones are tried too:
        # less of a vector is left to do after a calibrated method.
        smaller = [lam for lam in lambdas if 0 < lam < 1] if inputs == "images" else []
        for lam in (0.0, *smaller, 1.0) if request.donors else (0.0,):
            yield Trial("mean" if lam else "plain", method, lam, inputs=inputs)


def grids_by_weights(grid: Scheme) -> dict[str, Scheme]:
    """Grids of the same bits and granularity, by the name of the method that rounds to them: the donors' own first."""
    absmax = replace(grid, method="rtn", clip=1.0)
    return {grid_method(grid): grid} | {each.method: each for each in (absmax, replace(absmax, method="mse"))}


def grid_method(grid: Scheme) -> str:
    """What rounding to nearest on a grid is called in a trial."""
    return grid.method if grid.clip == 1.0 else "grid"
