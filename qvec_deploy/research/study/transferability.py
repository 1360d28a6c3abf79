"""How donors stand to a receiver: by prototypes, task vectors, vectors, coordinates, and what Prop. 1 predicts."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import canonical_json
from qvec_deploy.research.study.cell_inputs import Opened, of_donor
from qvec_deploy.research.study.cell_values import CellRequest, DonorFiles, Relation
from qvec_deploy.research.study.prototypes import Embedding, class_prototypes, prototype_cosine
from qvec_deploy.research.study.trial_weights import Bench, State, read_all
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.coordinates import require_same_coordinates
from qvec_deploy.vectors.symmetric_places import Geometry, find_geometry
from qvec_deploy.vectors.vector_sources import Source


def relate(request: CellRequest, opened: Opened, bench: Bench) -> dict[str, Relation]:
    """How every donor stands to the receiver.

    Args:
        request: What is asked.
        opened: Its files.
        bench: The receiver's; what it shows is changed.

    Returns:
        By donor's task.

    Raises:
        RecipeError, StorageError: As a donor's images deserve.
    """
    names, qat, base = list(opened.backbone), opened.own_qat, opened.base
    own = None if qat is None else {name: qat.read(name) - bench.weights[name] for name in names}
    task = None if base is None else {name: bench.weights[name] - base.read(name) for name in names}
    shares = predicted_shares(bench, own, opened.vectors, request.grid) if own is not None else {}
    geometry = find_geometry(request.model, request.model_args)
    found = {}
    for donor in request.donors:
        of_task = None
        if base is not None and task is not None:
            fp = opened.fps[donor.task]
            of_task = cosine({name: fp.read(name) - base.read(name) for name in names}, task)
        found[donor.task] = Relation(
            prototype_cosine=_prototype_cosine(request, opened, donor),
            task_vector_cosine=of_task,
            vector_cosine=None if own is None else cosine(read_all(opened.vectors[donor.task]), own),
            predicted_share=shares.get(donor.task),
            apart=_apart(bench, opened.vectors[donor.task], geometry, request.grid),
        )
    return found


def _apart(bench: Bench, vector: Source, geometry: Geometry, grid: Scheme) -> str | None:
    """Why a donor is not in the receiver's coordinates."""
    sketch = vector.sketch()
    if sketch is None:
        return None
    try:
        require_same_coordinates(bench.weights.__getitem__, sketch, geometry, grid)
    except IncompatibleError as error:
        return error.message
    return None


def _prototype_cosine(request: CellRequest, opened: Opened, donor: DonorFiles) -> float | None:
    base = opened.base
    if base is None or donor.data is None:
        return None
    wanted = Embedding(
        model=request.model,
        model_args=canonical_json(request.model_args),
        base=str(base.path),
        changed=base.path.stat().st_mtime_ns,
        config=opened.config,
        task=request.receiver,
        count=request.selecting,
    )
    own = class_prototypes(wanted)
    with of_donor(donor.task):
        return prototype_cosine(own, class_prototypes(replace(wanted, task=donor.data)))


def cosine(first: State, second: State) -> float | None:
    """Of two vectors in weight space, summed in float64; None where one is zero."""
    flat = [np.concatenate([part[name].astype(np.float64).ravel() for name in first]) for part in (first, second)]
    norms = float(np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    return float(flat[0] @ flat[1]) / norms if norms else None


def predicted_shares(bench: Bench, own: State, vectors: Mapping[str, Source], grid: Scheme) -> dict[str, float | None]:
    """What Prop. 1 of arXiv 2604.03420 predicts for every donor at its best lambda.

    cos^2 of its vector and the receiver's own, in the Gauss-Newton curvature of the quantized receiver on the
    selecting images: one forward-mode pass for each vector (see analyze/analysis.py for why the curvature is there).

    Args:
        bench: The receiver's.
        own: Its own vector, QAT - FP.
        vectors: The donors' by label.
        grid: The grid.

    Returns:
        Share by label, 0 to 1; None for a vector that moves no logit.
    """
    import torch

    from qvec_deploy.research.analyze.network import Network, gauss_newton_form
    from qvec_deploy.research.analyze.quadratic_model import Alignment

    bench.show(bench.weights, grid)
    model = copy.deepcopy(bench.student.model)  # the bench keeps its fused attention
    point = dict(model.state_dict())
    network = Network(model, [torch.from_numpy(batch) for batch in bench.selecting.batches])

    def change(rho: State) -> tuple[torch.Tensor, torch.Tensor]:
        return network.along(point, {name: torch.from_numpy(value) for name, value in rho.items()})

    logits, moved = change(own)
    of_own = gauss_newton_form(logits, moved, moved)
    shares = {}
    for label, vector in vectors.items():
        _, by_donor = change(read_all(vector))
        cross, donor = gauss_newton_form(logits, by_donor, moved), gauss_newton_form(logits, by_donor, by_donor)
        shares[label] = Alignment(cross, donor, of_own).cos_squared
    return shares
