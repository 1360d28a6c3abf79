"""One cell: a receiver on one grid with one seed, and everything that is tried on it.

The network is built once and weights are swapped in place, so that a pair costs a patch, a quantization and a forward
pass. Float answers, plain PTQ and the receiver's own QAT are computed once for all donors; images are decoded once in
a process.
"""

from __future__ import annotations

import functools
import itertools
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from qvec_deploy.build.select.mixing_weights import descend, ridge_weights
from qvec_deploy.build.select.trial_model import TrialModel
from qvec_deploy.jobs.job import SendEvent
from qvec_deploy.progress import Progress
from qvec_deploy.research.study.cell_inputs import Opened, open_request
from qvec_deploy.research.study.cell_values import Cell, CellRequest, Control, Kind, Trial
from qvec_deploy.research.study.task_images import choosing_images, generated_images, judging_images
from qvec_deploy.research.study.transferability import relate
from qvec_deploy.research.study.trial_journal import Journal, Tried
from qvec_deploy.research.study.trial_weights import (
    Answers,
    Bench,
    State,
    random_rho,
    read_all,
    shuffled_rho,
    weighted,
    with_norms,
)
from qvec_deploy.tensors import Float32, Scheme


def compute_cell(request: CellRequest, *, send: SendEvent = lambda value: None, journal: Journal | None = None) -> Cell:
    """Try everything that a request names on its receiver.

    The same request gives the same cell, its seconds aside, on the same machine with the same number of threads.

    Args:
        request: Files, grid, methods and images.
        send: Takes `done` of `total` trials.
        journal: Keeps trials while the cell is not over; those that it has are not tried again.

    Raises:
        RecipeError: An unknown model, an impossible grid, labels that are not the head's, or too few images.
        IncompatibleError: Checkpoints or vectors of another architecture or grid, or moments that no vector brings.
        StorageError, IntegrityError, FetchError: As the files deserve.
    """
    progress = Progress()
    known = journal.tried if journal is not None else []
    if known:
        progress.timings_s.update(known[-1].seconds)
    with progress.stage("all"):
        with progress.stage("prepare"):
            opened = open_request(request)
            classes = opened.plan.architecture.classes
            testing = judging_images(request.receiver, opened.config, classes, request.testing)
            selecting = choosing_images(request.receiver, opened.config, classes, request.selecting, testing)
            bench = Bench(opened.plan, opened.receiver, opened.sources, selecting, testing, progress)
        attempts = _Attempts(request, opened, bench)
        trials = attempts.all(journal, send)
        with progress.stage("relations"):
            relations = relate(request, opened, bench)
    seconds = {stage: round(seconds, 3) for stage, seconds in progress.timings_s.items()}
    return Cell(request, len(testing), trials, relations, attempts.mix, seconds, selecting=len(selecting))


class _Attempts:
    """The trials of one cell, in order; the mix uses answers of earlier ones."""

    def __init__(self, request: CellRequest, opened: Opened, bench: Bench) -> None:
        self.mix: dict[str, float] = {}
        self._request = request
        self._opened = opened
        self._bench = bench
        self._grid = request.grid
        self._vectors = list(opened.vectors.values())
        self._lambdas = sorted({1.0, *request.lambdas} - {0.0})
        self._logits: dict[str | None, Float32] = {}  # on the selecting images, at lambda 1; of plain PTQ under None
        self._rho = functools.lru_cache(maxsize=1)(lambda task: read_all(opened.vectors[task]))
        self._mean = functools.lru_cache(maxsize=1)(self._make_mean)

    def all(self, journal: Journal | None, send: SendEvent) -> tuple[Trial, ...]:
        """Every trial: those that the journal has, and the rest."""
        start = time.monotonic() - self._bench.progress.timings_s.get("all", 0.0)
        planned = deque(self._planned())  # each is dropped once it was tried, and what it keeps with it
        known = list(journal.tried) if journal is not None else []
        trials = [tried.trial for tried in known]
        if known:
            self.mix = dict(known[-1].mix)
        total = len(planned)
        for _ in known:
            planned.popleft()
        while planned:
            send({"done": len(trials), "total": total})
            trials.append(planned.popleft()())
            if journal is not None:
                seconds = {**self._bench.progress.timings_s, "all": time.monotonic() - start}
                journal.add(Tried(trials[-1], self.mix, seconds))
        return tuple(trials)

    def _planned(self) -> Iterator[Callable[[], Trial]]:
        yield lambda: self._shown("float", "float", {}, None)[0]
        if self._opened.own_qat is not None:
            yield self._own_qat
        for method, scheme in _grids(self._grid).items():
            yield partial(self._plain, method, scheme)
        for task, lam in itertools.product(self._opened.vectors, self._lambdas):
            yield partial(self._pair, task, lam)
        if self._vectors:
            for lam in self._lambdas:
                yield lambda lam=lam: self._patched("mean", self._mean(), lam)[0]  # type: ignore[misc]
        if len(self._vectors) > 1:
            yield self._mixed
        for task, control in itertools.product(self._opened.vectors, self._request.controls):
            if control != "task_vector" or self._opened.base is not None:
                yield partial(self._controlled, task, control)
        for inputs, method in itertools.product(self._request.inputs, self._request.methods):
            yield from self._calibrated(inputs, method)

    def _own_qat(self) -> Trial:
        qat = self._opened.own_qat
        assert qat is not None  # noqa: S101 - asked before
        own = {tensor.name: qat.read(tensor.name) for tensor in self._bench.plan.tensors}
        return self._shown("own_qat", _name(self._grid), own, self._grid, choosing=False)[0]

    def _plain(self, method: str, scheme: Scheme) -> Trial:
        trial, answers = self._shown("plain", method, {}, scheme)
        if scheme == self._grid and answers.logits is not None:
            self._logits[None] = answers.logits
        return trial

    def _pair(self, task: str, lam: float) -> Trial:
        trial, answers = self._patched("pair", self._rho(task), lam)
        if lam == 1.0 and answers.logits is not None:
            self._logits[task] = answers.logits
        return replace(trial, donor=task)

    def _make_mean(self) -> State:
        return weighted(self._vectors, [1 / len(self._vectors)] * len(self._vectors))

    def _mixed(self) -> Trial:
        """The donors' weights that bring the logits nearest to the float receiver's, without labels, at lambda 1."""
        bench, donors = self._bench, list(self._opened.vectors)
        if None not in self._logits:  # it was tried before a kill
            self._plain(_name(self._grid), self._grid)
        for task in donors:
            if task not in self._logits:
                self._pair(task, 1.0)
        with bench.progress.stage("mix"):
            start = ridge_weights(bench.float_logits, self._logits[None], [self._logits[task] for task in donors])
            student = TrialModel(bench.plan, bench.receiver, bench.sources, bench.selecting.batches)
            weights = descend(student, bench.float_logits, start)
        self.mix = dict(zip(donors, weights, strict=True))
        return self._patched("mix", weighted(self._vectors, weights), 1.0)[0]

    def _controlled(self, task: str, control: Control) -> Trial:
        instead, inputs = self._control(control, task, self._rho(task))
        trial, _ = self._patched("control", instead, 1.0, choosing=False)
        return replace(trial, donor=task, control=control, inputs=inputs)

    def _control(self, control: Control, task: str, rho: State) -> tuple[State, str | None]:
        """What takes a vector's place with its norm in every tensor that it moves, and what it looked at."""
        seed = zlib.crc32(f"{task} {self._request.seed}".encode())  # every donor's noise is its own
        if control == "random":
            return random_rho(rho, seed), None
        if control == "shuffle":
            return shuffled_rho(rho, seed), None
        if control == "gptq_displacement":
            moved, inputs = self._gptq_displacement(task)
            return with_norms(moved, rho), inputs
        fp, base = self._opened.fps[task], self._opened.base
        assert base is not None  # noqa: S101 - not planned without it
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
                found = calibrate_from_moments(model, moments, self._grid, skip, "gptq")
            else:
                images = generated_images(self._opened.config, self._request.selecting)
                found = calibrate(model, images, self._grid, skip, "gptq")
        moved = {name: code.dequantize() - weights[name] for name, code in found.codes.items() if name in weights}
        return moved, "generated" if moments is None else "moments"

    def _calibrated(self, inputs: str, method: str) -> Iterator[Callable[[], Trial]]:
        """A calibrated method without a patch and with the mean of donors.

        With the mean at lambda 1; and where the receiver's images are at hand, by which a lambda could be chosen, at
        the smaller ones too, for less of a vector is left to do after a calibrated method.
        """
        if inputs == "moments" and (method != "gptq" or not self._vectors):
            return
        smaller = [lam for lam in self._lambdas if 0 < lam < 1] if inputs == "images" else []
        student = functools.cache(partial(self._student, inputs, method))
        for lam in (0.0, *smaller, 1.0) if self._vectors else (0.0,):
            yield partial(self._of_method, student, inputs, method, lam)

    def _student(self, inputs: str, method: str) -> TrialModel:
        with self._bench.progress.stage("calibrate"):
            return self._bench.of_method(method, inputs == "moments", self._calibration(inputs))

    def _of_method(self, student: Callable[[], TrialModel], inputs: str, method: str, lam: float) -> Trial:
        shown = student()
        with self._bench.progress.stage("calibrate"):
            shown.load(lam)
        answers = self._bench.answers(shown)
        return replace(_trial("mean" if lam else "plain", method, lam, answers), inputs=inputs)

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
