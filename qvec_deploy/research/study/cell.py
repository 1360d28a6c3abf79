"""One cell: a receiver on one grid with one seed, and everything that is tried on it.

The network is built once and weights are swapped in place, so that a pair costs a patch, a quantization and a forward
pass. Images are decoded once in a process.
"""

from __future__ import annotations

import contextlib
import functools
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qvec_deploy.builder.select.mixing_weights import descend, ridge_weights
from qvec_deploy.builder.select.trial_model import TrialModel
from qvec_deploy.errors import IntegrityError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.io.partial_results import read_partial, write_partial
from qvec_deploy.io.untrusted import adapter, understood
from qvec_deploy.jobs.job import SendEvent
from qvec_deploy.progress import Progress
from qvec_deploy.research.study.cell_network import CellNetwork, State, open_request, read_all, weighted, with_norms
from qvec_deploy.research.study.cell_values import Cell, CellRequest, Trial, grids_by_weights, planned_trials
from qvec_deploy.research.study.task_images import choosing_images, generated_images, judging_images
from qvec_deploy.research.study.transferability import relate
from qvec_deploy.tensors import Float32
from qvec_deploy.vectors.controls import shuffled
from qvec_deploy.vectors.vector_sources import random_like


@dataclass(frozen=True)
class KeptTrials:
    """What is in the file of a `TrialLog`."""

    trials: list[Trial]
    mix: dict[str, float]
    seconds: dict[str, float]


@dataclass
class TrialLog:
    """The trials of a cell that is not over, kept after each, so that a cell that was killed goes on where it was.

    Attributes:
        mix: Weights of the label-free mix, by donor's task, as far as they are known.
        key: Of what decides the cell: trials of another are of no use.
    """

    trials: list[Trial] = field(default_factory=list)
    mix: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    path: Path | None = None
    key: str = ""

    @classmethod
    def open(cls, path: Path, key: str) -> TrialLog:
        """What a file holds of a cell; empty where it is missing, damaged or another's."""
        kept = read_partial(path, key.encode())
        with contextlib.suppress(IntegrityError):
            if kept is not None:
                with understood(path):
                    found = adapter(KeptTrials).validate_json(kept, strict=True)
                return cls(found.trials, found.mix, found.seconds, path, key)
        return cls(path=path, key=key)

    def add(self, trial: Trial, seconds: Mapping[str, float]) -> None:
        """Keep one more."""
        self.trials.append(trial)
        self.seconds = dict(seconds)
        if self.path is not None:
            kept = asdict(KeptTrials(self.trials, self.mix, self.seconds))
            write_partial(self.path, self.key.encode(), canonical_json(kept))


def compute_cell(request: CellRequest, *, send: SendEvent = lambda value: None, log: TrialLog | None = None) -> Cell:
    """Try everything that a request names on its receiver.

    The same request gives the same cell, its seconds aside, on the same machine with the same number of threads.

    Args:
        send: Takes `done` of `total` trials.
        log: Keeps trials while the cell is not over; those that it has are not tried again.

    Raises:
        RecipeError: An unknown model, an impossible grid, labels that are not the head's, or too few images.
        IncompatibleError: Checkpoints or vectors of another architecture or grid, or moments that no vector brings.
    """
    progress, log = Progress(), log or TrialLog()
    progress.timings_s.update(log.seconds)
    with progress.stage("all"):
        with progress.stage("prepare"):
            files = open_request(request)
            classes = files.plan.architecture.classes
            testing = judging_images(request.receiver, files.config, classes, request.testing)
            selecting = choosing_images(request.receiver, files.config, classes, request.selecting, testing)
            network = CellNetwork(files, selecting, testing, progress)
        start = time.monotonic() - log.seconds.get("all", 0.0)
        tries, planned = _Tries(network, log.mix), list(planned_trials(request))
        for trial in planned[len(log.trials) :]:
            send({"done": len(log.trials), "total": len(planned)})
            answered = tries.answer(trial)
            log.add(answered, {**progress.timings_s, "all": time.monotonic() - start})
        with progress.stage("relations"):
            relations = relate(network)
    seconds = {stage: round(seconds, 3) for stage, seconds in progress.timings_s.items()}
    return Cell(request, len(testing), tuple(log.trials), relations, log.mix, seconds, selecting=len(selecting))


class _Tries:
    """How each kind of trial is computed."""

    def __init__(self, network: CellNetwork, mix: dict[str, float]) -> None:
        self._network, self._mix = network, mix
        self._files, self._request = files, request = network.files, network.files.request
        self._grids = grids_by_weights(request.grid)
        self._vectors = list(files.vectors.values())
        self._logits: dict[str | None, Float32] = {}  # on the selecting images, at lambda 1; of plain PTQ under None
        self._rho = functools.lru_cache(maxsize=1)(lambda task: read_all(files.vectors[task]))
        self._mean = functools.cache(lambda: weighted(self._vectors, [1 / len(self._vectors)] * len(self._vectors)))
        self._calibrated_as: tuple[str, str] | None = None
        self._model: TrialModel | None = None

    def answer(self, trial: Trial) -> Trial:
        """The trial with its answers."""
        if trial.kind == "control":
            return self._control(trial)
        if trial.inputs is not None:
            return self._calibrated(trial, trial.inputs)
        answered, logits = self._by_weights(trial)
        mixed = trial.lam == 1.0 if trial.kind == "pair" else self._grids.get(trial.method) == self._request.grid
        if trial.kind in ("pair", "plain") and mixed and logits is not None:
            self._logits[trial.donor] = logits
        return answered

    def _by_weights(self, trial: Trial) -> tuple[Trial, Float32 | None]:
        """Of a candidate that is rounded to nearest on a grid, or float."""
        network = self._network
        weights: State = {}
        if trial.kind == "own_qat" and self._files.own_qat is not None:
            weights = {tensor.name: self._files.own_qat.read(tensor.name) for tensor in network.plan.tensors}
        elif trial.kind == "pair" and trial.donor is not None:
            weights = network.patched(self._rho(trial.donor), trial.lam)
        elif trial.kind == "mean":
            weights = network.patched(self._mean(), trial.lam)
        elif trial.kind == "mix":
            weights = network.patched(weighted(self._vectors, self._mixing_weights()), trial.lam)
        network.show(weights, self._grids.get(trial.method))
        return network.run(trial, choosing=trial.kind != "own_qat")

    def _mixing_weights(self) -> Sequence[float]:
        """The donors' weights that bring the logits nearest to the float receiver's, without labels, at lambda 1."""
        network, donors = self._network, list(self._files.vectors)
        for trial in planned_trials(self._request):  # those that were tried before a kill
            wanted = trial.kind == "plain" if trial.donor is None else trial.kind == "pair" and trial.lam == 1.0
            if wanted and trial.inputs is None and trial.donor not in self._logits:
                self.answer(trial)
        with network.progress.stage("mix"):
            plain, patched = self._logits[None], [self._logits[donor] for donor in donors]
            start = ridge_weights(network.float_logits, plain, patched)
            model = TrialModel(network.plan, self._files.receiver, self._files.sources, network.selecting.batches)
            weights = descend(model, network.float_logits, start)
        self._mix.update(zip(donors, weights, strict=True))
        return weights

    def _calibrated(self, trial: Trial, inputs: str) -> Trial:
        """A calibrated method without a patch or with the mean of donors; its inputs are looked at once."""
        network = self._network
        if self._calibrated_as != (inputs, trial.method):
            self._model, self._calibrated_as = None, (inputs, trial.method)  # memory holds one
            with network.progress.stage("calibrate"):
                self._model = network.calibrated(trial.method, inputs)
        assert self._model is not None  # noqa: S101 - made above
        with network.progress.stage("calibrate"):
            self._model.load(trial.lam)
        return network.run(trial, self._model)[0]

    def _control(self, trial: Trial) -> Trial:
        """What takes a vector's place with its norm in every tensor that it moves."""
        task = trial.donor or ""
        rho = self._rho(task)
        seed = zlib.crc32(f"{task} {self._request.seed}".encode())  # every donor's noise is its own
        fp, base = self._files.fps[task], self._files.base
        if trial.control == "random":
            instead: State = {name: random_like(value, name, seed) for name, value in rho.items()}
        elif trial.control == "shuffle":
            instead = {name: shuffled(value, name, seed) for name, value in rho.items()}
        elif trial.control == "task_vector" and base is not None:
            instead = with_norms({name: fp.read(name) - base.read(name) for name in rho}, rho)
        else:
            moved, inputs = self._gptq_displacement(task)
            instead, trial = with_norms(moved, rho), replace(trial, inputs=inputs)
        self._network.show(self._network.patched(instead, trial.lam), self._request.grid)
        return self._network.run(trial, choosing=False)[0]

    def _gptq_displacement(self, task: str) -> tuple[State, str]:
        """What GPTQ moves in the donor's Linears on this grid, and what it looked at; all else stands still.

        The inputs are the donor's own where its vector brings their moments. The receiver's head sits on the donor's
        backbone meanwhile: no Linear before it sees it.
        """
        from qvec_deploy.quantize.calibrated import calibrate, calibrate_from_moments

        network, vector, fp = self._network, self._files.vectors[task], self._files.fps[task]
        weights = {name: fp.read(name) for name in self._files.backbone}
        network.show(weights, None)
        model, grid, skip = network.model.model, self._request.grid, self._request.skip
        with network.progress.stage("calibrate"):
            moments = vector.moments()
            if moments is not None:
                found = calibrate_from_moments(model, moments, grid, skip, "gptq")
            else:
                images = generated_images(self._files.config, self._request.selecting)
                found = calibrate(model, images, grid, skip, "gptq")
        moved = {name: code.dequantize() - weights[name] for name, code in found.codes.items() if name in weights}
        return moved, "generated" if moments is None else "moments"
