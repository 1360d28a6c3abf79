"""One cell: a receiver on one grid with one seed, and everything that is tried on it.

The network is built once and weights are swapped in place, so that a pair costs a patch, a quantization and a forward
pass. Float answers, plain PTQ and the receiver's own QAT are computed once for all donors; images are decoded once in
a process.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace

from qvec_deploy.bundle.progress import Progress
from qvec_deploy.select.mixing import descend, ridge_weights
from qvec_deploy.select.student import Student
from qvec_deploy.study.candidates import (
    Answers,
    Bench,
    State,
    random_rho,
    read_all,
    shuffled_rho,
    weighted,
    with_norms,
)
from qvec_deploy.study.decoded import choosing_images, generated_images, judging_images
from qvec_deploy.study.opening import Opened, open_request
from qvec_deploy.study.relations import relate
from qvec_deploy.study.values import Cell, CellRequest, Control, Kind, Trial
from qvec_deploy.tensors import Float32, Scheme


def compute_cell(request: CellRequest) -> Cell:
    """Try everything that a request names on its receiver.

    The same request gives the same cell, its seconds aside, on the same machine with the same number of threads.

    Args:
        request: Files, grid, methods and images.

    Raises:
        RecipeError: An unknown model, an impossible grid, labels that are not the head's, or too few images.
        IncompatibleError: Checkpoints or vectors of another architecture or grid, or moments that no vector brings.
        StorageError, IntegrityError, FetchError: As the files deserve.
    """
    progress = Progress()
    with progress.stage("all"):
        with progress.stage("prepare"):
            opened = open_request(request)
            classes = opened.plan.architecture.classes
            testing = judging_images(request.receiver, opened.config, classes, request.testing)
            selecting = choosing_images(request.receiver, opened.config, classes, request.selecting, testing)
            bench = Bench(opened.plan, opened.receiver, opened.sources, selecting, testing, progress)
        attempts = _Attempts(request, opened, bench)
        trials = tuple(attempts.all())
        with progress.stage("relations"):
            relations = relate(request, opened, bench)
    seconds = {stage: round(seconds, 3) for stage, seconds in progress.timings_s.items()}
    return Cell(request, len(testing), trials, relations, attempts.mix, seconds)


class _Attempts:
    """The trials of one cell, in order; later ones use answers of earlier ones."""

    def __init__(self, request: CellRequest, opened: Opened, bench: Bench) -> None:
        self.mix: dict[str, float] = {}
        self._request = request
        self._opened = opened
        self._bench = bench
        self._grid = request.grid
        self._vectors = list(opened.vectors.values())
        self._lambdas = sorted({1.0, *request.lambdas} - {0.0})
        self._plain_logits: Float32 | None = None
        self._alone: list[Float32] = []

    def all(self) -> Iterator[Trial]:
        yield from self._unpatched()
        yield from self._pairs()
        if self._vectors:
            count = len(self._vectors)
            mean = weighted(self._vectors, [1 / count] * count)
            for lam in self._lambdas:
                yield self._patched("mean", mean, lam)[0]
        if len(self._vectors) > 1:
            yield self._mixed()
        yield from self._controls()
        yield from self._calibrated()

    def _unpatched(self) -> Iterator[Trial]:
        bench, grid = self._bench, self._grid
        yield self._shown("float", "float", {}, None)[0]
        if self._opened.own_qat is not None:
            own = {tensor.name: self._opened.own_qat.read(tensor.name) for tensor in bench.plan.tensors}
            yield self._shown("own_qat", _name(grid), own, grid, choosing=False)[0]
        for method, scheme in _grids(grid).items():
            trial, answers = self._shown("plain", method, {}, scheme)
            if scheme == grid:
                self._plain_logits = answers.logits
            yield trial

    def _pairs(self) -> Iterator[Trial]:
        for task, vector in self._opened.vectors.items():
            rho = read_all(vector)
            for lam in self._lambdas:
                trial, answers = self._patched("pair", rho, lam)
                if lam == 1.0 and answers.logits is not None:
                    self._alone.append(answers.logits)
                yield replace(trial, donor=task)

    def _mixed(self) -> Trial:
        """The donors' weights that bring the logits nearest to the float receiver's, without labels, at lambda 1."""
        bench = self._bench
        assert self._plain_logits is not None  # noqa: S101 - plain PTQ is tried first
        with bench.progress.stage("mix"):
            start = ridge_weights(bench.float_logits, self._plain_logits, self._alone)
            student = Student(bench.plan, bench.receiver, bench.sources, bench.selecting.batches)
            weights = descend(student, bench.float_logits, start)
        self.mix = dict(zip(self._opened.vectors, weights, strict=True))
        return self._patched("mix", weighted(self._vectors, weights), 1.0)[0]

    def _controls(self) -> Iterator[Trial]:
        for task, vector in self._opened.vectors.items():
            rho = read_all(vector)
            for control in self._request.controls:
                made = self._control(control, task, rho)
                if made is None:
                    continue
                instead, inputs = made
                trial, _ = self._patched("control", instead, 1.0, choosing=False)
                yield replace(trial, donor=task, control=control, inputs=inputs)

    def _control(self, control: Control, task: str, rho: State) -> tuple[State, str | None] | None:
        """What takes a vector's place with its norm in every tensor; None for a task vector without the base."""
        seed = zlib.crc32(f"{task} {self._request.seed}".encode())  # every donor's noise is its own
        if control == "random":
            return random_rho(rho, seed), None
        if control == "shuffle":
            return shuffled_rho(rho, seed), None
        fp, base = self._opened.fps[task], self._opened.base
        if control == "gptq_displacement":
            moved, inputs = self._gptq_displacement(task)
            return with_norms(moved, rho), inputs
        if base is None:
            return None
        return with_norms({name: fp.read(name) - base.read(name) for name in rho}, rho), None

    def _gptq_displacement(self, task: str) -> tuple[State, str]:
        """What GPTQ moves in the donor's Linears on this grid, and what it looked at; all else stands still.

        The inputs are the donor's own where its vector brings their moments. The receiver's head sits on the donor's
        backbone meanwhile: no Linear before it sees it.
        """
        from qvec_deploy.quantize.calibrated import calibrate, calibrate_from_moments

        bench, vector, fp = self._bench, self._opened.vectors[task], self._opened.fps[task]
        weights = {name: fp.read(name) for name in self._opened.backbone}
        bench.show(weights, None)
        model, skip = bench.student.model, self._request.skip
        with bench.progress.stage("calibrate"):
            moments = vector.moments()
            if moments is not None:
                found = calibrate_from_moments(model, moments, self._grid, skip)
            else:
                images = generated_images(self._opened.config, self._request.selecting)
                found = calibrate(model, images, self._grid, skip, "gptq")
        moved = {name: code.dequantize() - weights[name] for name, code in found.codes.items() if name in weights}
        return moved, "generated" if moments is None else "moments"

    def _calibrated(self) -> Iterator[Trial]:
        """Every calibrated method without a patch and with the mean of donors.

        With the mean at lambda 1; and where the receiver's images are at hand, by which a lambda could be chosen, at
        the smaller ones too, for less of a vector is left to do after a calibrated method.
        """
        smaller = [lam for lam in self._lambdas if 0 < lam < 1]
        for inputs in self._request.inputs:
            images = self._calibration(inputs)
            for method in self._request.methods:
                if inputs == "moments" and (method != "gptq" or not self._vectors):
                    continue
                with self._bench.progress.stage("calibrate"):
                    student = self._bench.of_method(method, inputs == "moments", images)
                lambdas = [*(smaller if inputs == "images" else []), 1.0] if self._vectors else []
                for lam in (0.0, *lambdas):
                    with self._bench.progress.stage("calibrate"):
                        student.load(lam)
                    kind: Kind = "mean" if lam else "plain"
                    yield replace(_trial(kind, method, lam, self._bench.answers(student)), inputs=inputs)

    def _calibration(self, inputs: str) -> list[Float32]:
        if inputs == "generated":
            return generated_images(self._opened.config, self._request.selecting)
        return self._bench.selecting.batches if inputs == "images" else []

    def _patched(self, kind: Kind, rho: State, lam: float, *, choosing: bool = True) -> tuple[Trial, Answers]:
        weights = self._bench.patched(rho, lam)
        return self._shown(kind, _name(self._grid), weights, self._grid, lam=lam, choosing=choosing)

    def _shown(
        self,
        kind: Kind,
        method: str,
        weights: State,
        scheme: Scheme | None,
        *,
        lam: float = 0.0,
        choosing: bool = True,
    ) -> tuple[Trial, Answers]:
        self._bench.show(weights, scheme)
        answers = self._bench.answers(choosing=choosing)
        return _trial(kind, method, lam, answers), answers


def _trial(kind: Kind, method: str, lam: float, answers: Answers) -> Trial:
    return Trial(
        kind=kind,
        method=method,
        lam=lam,
        divergence=answers.divergence,
        selecting_right=answers.selecting_right,
        right=answers.right,
    )


def _grids(grid: Scheme) -> dict[str, Scheme]:
    """Grids of the same bits and granularity, by the name of the method that rounds to them: the donors' own first."""
    absmax = replace(grid, method="rtn", clip=1.0)
    return {_name(grid): grid} | {_name(scheme): scheme for scheme in (absmax, replace(absmax, method="mse"))}


def _name(grid: Scheme) -> str:
    """What rounding to nearest on a grid is called."""
    return grid.method if grid.clip == 1.0 else "grid"
