"""How donors stand to a receiver: by prototypes, task vectors, vectors, coordinates, and what Prop. 1 predicts."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qvec_deploy.datasets import DataConfig
from qvec_deploy.errors import IncompatibleError, errors_about
from qvec_deploy.io.checkpoint import Checkpoint
from qvec_deploy.io.files import canonical_json
from qvec_deploy.models import create
from qvec_deploy.research.study.cell_network import CellFiles, CellNetwork, State, read_all, require_backbone
from qvec_deploy.research.study.cell_values import DonorFiles, Relation, TaskData
from qvec_deploy.research.study.task_images import choosing_images
from qvec_deploy.tensors import Scheme
from qvec_deploy.vectors.coordinates import require_same_coordinates
from qvec_deploy.vectors.symmetric_places import Geometry, find_geometry
from qvec_deploy.vectors.vector_sources import Source

Prototypes = NDArray[np.float64]


@functools.lru_cache(maxsize=64)
def class_prototypes(
    model: str, model_args: bytes, base: str, changed: int, config: DataConfig, task: TaskData, count: int
) -> Prototypes:
    """The mean feature of every class that has an image: (classes, width) float64.

    Features are what reaches the head, scaled to norm 1, so that no image counts for more than another. Kept for the
    other cells of the process: they are the same for every receiver, grid and seed.

    Args:
        model_args: Arguments of timm.create_model, as JSON.
        changed: When the base's file was changed, ns: a file made anew is another base.
    """
    import torch

    network, weights = create(model, 0, json.loads(model_args)), Checkpoint.open(base)
    require_backbone("the base", weights, {name: tuple(value.shape) for name, value in network.state_dict().items()})
    network.load_state_dict({name: torch.from_numpy(weights.read(name)) for name in network.state_dict()})
    images = choosing_images(task, config, None, count, None)
    with torch.inference_mode():
        features = torch.cat([network(torch.from_numpy(batch)).double() for batch in images.batches]).numpy()
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.stack([features[images.labels == label].mean(axis=0) for label in np.unique(images.labels)])


def prototype_cosine(receiver: Prototypes, donor: Prototypes) -> float:
    """The mean over the receiver's classes of the largest cosine with a class of the donor's."""
    first, second = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (receiver, donor))
    return float((first @ second.T).max(axis=1).mean())


def relate(network: CellNetwork) -> dict[str, Relation]:
    """How every donor stands to the receiver, by the donor's task; what the network shows is changed."""
    files, request = network.files, network.files.request
    names, qat, base = list(files.backbone), files.own_qat, files.base
    own = None if qat is None else {name: qat.read(name) - network.weights[name] for name in names}
    task = None if base is None else {name: network.weights[name] - base.read(name) for name in names}
    shares = predicted_shares(network, own, files.vectors, request.grid) if own is not None else {}
    geometry = find_geometry(request.model, request.model_args)
    found = {}
    for donor in request.donors:
        of_task = None
        if base is not None and task is not None:
            fp = files.fps[donor.task]
            of_task = cosine({name: fp.read(name) - base.read(name) for name in names}, task)
        found[donor.task] = Relation(
            prototype_cosine=_prototype_cosine(files, donor),
            task_vector_cosine=of_task,
            vector_cosine=None if own is None else cosine(read_all(files.vectors[donor.task]), own),
            predicted_share=shares.get(donor.task),
            apart=_apart(network, files.vectors[donor.task], geometry, request.grid),
        )
    return found


def _apart(network: CellNetwork, vector: Source, geometry: Geometry, grid: Scheme) -> str | None:
    """Why a donor is not in the receiver's coordinates."""
    sketch = vector.sketch()
    if sketch is None:
        return None
    try:
        require_same_coordinates(network.weights.__getitem__, sketch, geometry, grid)
    except IncompatibleError as error:
        return error.message
    return None


def _prototype_cosine(files: CellFiles, donor: DonorFiles) -> float | None:
    base, request = files.base, files.request
    if base is None or donor.data is None:
        return None
    place = str(base.path), base.path.stat().st_mtime_ns
    prototypes = functools.partial(
        class_prototypes, request.model, canonical_json(request.model_args), *place, files.config
    )
    own = prototypes(request.receiver, request.selecting)
    with errors_about(f"donor {donor.task}"):
        return prototype_cosine(own, prototypes(donor.data, request.selecting))


def cosine(first: State, second: State) -> float | None:
    """Of two vectors in weight space, summed in float64; None where one is zero."""
    flat = [np.concatenate([part[name].astype(np.float64).ravel() for name in first]) for part in (first, second)]
    norms = float(np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    return float(flat[0] @ flat[1]) / norms if norms else None


def predicted_shares(
    network: CellNetwork, own: State, vectors: Mapping[str, Source], grid: Scheme
) -> dict[str, float | None]:
    """What Prop. 1 of arXiv 2604.03420 predicts for every donor at its best lambda.

    cos^2 of its vector and the receiver's own, in the Gauss-Newton curvature of the quantized receiver on the
    selecting images: one forward-mode pass for each vector (see analyze/analysis.py for why the curvature is there).

    Returns:
        Share by label, 0 to 1; None for a vector that moves no logit.
    """
    import torch

    from qvec_deploy.research.analyze.network import Network, gauss_newton_form
    from qvec_deploy.research.analyze.quadratic_model import Alignment

    network.show(network.weights, grid)
    model = copy.deepcopy(network.model.model)  # the cell's keeps its fused attention
    point = dict(model.state_dict())
    function = Network(model, [torch.from_numpy(batch) for batch in network.selecting.batches])

    def change(rho: State) -> tuple[torch.Tensor, torch.Tensor]:
        return function.along(point, {name: torch.from_numpy(value) for name, value in rho.items()})

    logits, moved = change(own)
    of_own = gauss_newton_form(logits, moved, moved)
    shares = {}
    for label, vector in vectors.items():
        _, by_donor = change(read_all(vector))
        cross, donor = gauss_newton_form(logits, by_donor, moved), gauss_newton_form(logits, by_donor, by_donor)
        shares[label] = Alignment(cross, donor, of_own).cos_squared
    return shares
