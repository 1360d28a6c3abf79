"""What a study's nodes do, each in a process of its own: the functions of its jobs."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.io.files import atomic_path, canonical_json, sha256_bytes, sha256_file, write_bytes
from qvec_deploy.jobs.job import SendEvent
from qvec_deploy.research.study.cell_values import CellRequest, DonorFiles, TaskData
from qvec_deploy.research.study.nodes import Node, package_versions
from qvec_deploy.research.study.study_documents import cell_json
from qvec_deploy.research.study.study_store import Store
from qvec_deploy.research.study.trial_journal import Journal
from qvec_deploy.tensors import Scheme

BATCH = 50  # images at a time, where second moments are collected


def work(send: SendEvent, *, out: str, values: dict[str, Any]) -> dict[str, Any]:
    """Make a node, or find it made.

    Args:
        send: Takes `done` of `total` steps.
        out: The study's folder.
        values: The node's fields.

    Returns:
        Its record: `seconds`, and what else is known of it.

    Raises:
        QvecError: As the node's images, files and disk deserve.
    """
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    from qvec_deploy.datasets.hub_datasets import offline_hub

    torch.set_num_threads(1)
    node, store = Node(**values), Store.existing(Path(out))
    if dict(node.versions) != dict(package_versions()):
        differ = {name: mine for name, mine in package_versions().items() if node.versions.get(name) != mine}
        raise IncompatibleError(
            f"this worker has {differ}, and the study was started with other versions",
            hint="install the same packages on every machine",
        )
    make = _MAKERS[node.kind]

    def timed(folder: Path) -> dict[str, Any]:
        start = time.monotonic()
        record = make(node, store, folder, send)
        return {"seconds": round(time.monotonic() - start, 3), **record}

    offline = bool(node.settings.get("offline", False))
    # one thread for numpy too: sums over two threads are other sums, and the cores are taken
    with threadpool_limits(1), offline_hub(offline):
        record = store.obtain(node, timed)
    store.forget_work(node.id)
    return record


def _base(node: Node, store: Store, folder: Path, send: SendEvent) -> dict[str, Any]:
    """Pretrained weights: timm's, or trained here."""
    settings = node.settings
    if "training" not in settings:
        return _pretrained(settings, folder)
    from qvec_deploy.research.study.study_recipe import BaseTraining
    from qvec_deploy.research.study.trainings import Place, told, train_base

    place = Place(store.work(node.id), node.keyed, settings["save_every"], told(send))
    wanted = BaseTraining.model_validate_json(json.dumps(settings["training"]))
    skip = tuple(settings["skip"])
    state, seconds = train_base(settings["model"], settings["model_args"], skip, wanted, settings["device"], place)
    _write(folder / "base.safetensors", state)
    return {"seconds": round(seconds, 3)}


def _pretrained(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    from qvec_deploy.donors.donor_inputs import open_base
    from qvec_deploy.donors.donor_recipe import DonorRecipe

    base = {"model": settings["model"], "model_args": settings["model_args"], "pretrained": True}
    values = {"version": 1, "name": "base", "base": base, "task": {"dataset": "none"}}
    recipe = DonorRecipe.model_validate_json(json.dumps(values))
    _write(folder / "base.safetensors", open_base(recipe, offline=settings["offline"]).state)
    return {}


def _fine_tune(node: Node, store: Store, folder: Path, send: SendEvent) -> dict[str, Any]:
    """A fine-tune: released, or trained here."""
    settings = node.settings
    if "pattern" in settings:
        return _released(settings)
    from qvec_deploy.donors.donor_recipe import DonorRecipe
    from qvec_deploy.research.study.trainings import Place, fine_tune, told

    values = dict(settings["recipe"])
    values["base"] = {**values["base"], "checkpoint": _locate(store, settings["base"])}
    recipe = DonorRecipe.model_validate_json(json.dumps(values))
    place = Place(store.work(node.id), node.keyed, recipe.train.save_every, told(send))
    state, seconds = fine_tune(recipe, node.kind, place, offline=settings["offline"])
    _write(folder / f"{node.kind}.safetensors", state)
    return {"seconds": round(seconds, 3)}


def _released(settings: Mapping[str, Any]) -> dict[str, Any]:
    from qvec_deploy.research.study.published import find, require_model

    path = find(settings["hub"], settings["pattern"], offline=settings["offline"]).absolute()
    require_model(path, settings["model"], settings["model_args"], settings["classes"])
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _vector(node: Node, store: Store, folder: Path, send: SendEvent) -> dict[str, Any]:
    """A donor's vector, with second moments where the study calibrates by them."""
    from qvec_deploy.models import describe
    from qvec_deploy.vectors.extract import extract_vector

    settings = node.settings
    fp, qat = (_read(str(store.weights(settings[run]))) for run in ("fp", "qat"))
    base = _locate(store, settings["base"])
    known = None
    if base is not None:
        from qvec_deploy.io.checkpoint import Checkpoint

        source = Checkpoint.open(base, offline=settings["offline"])
        known = {name: source.read(name) for name in source.tensors}, source.fingerprint()
    header = extract_vector(
        fp,
        qat,
        folder / "vector.safetensors",
        scheme=Scheme.from_dict(settings["scheme"]),
        skip=tuple(settings["skip"]),
        task=settings["task"],
        seed=settings["seed"],
        architecture=describe(settings["model"], settings["classes"], settings["model_args"]),
        base=known,
        moments=_moments(settings, fp) if settings["moments"] else None,
    )
    return {"norm": header.norm, "weight_norm": header.weight_norm}


def _moments(settings: Mapping[str, Any], fp: Mapping[str, Any]) -> Any:
    """Second moments of the float donor's Linear inputs on some of its training images."""
    import torch

    from qvec_deploy.datasets import DataConfig, DatasetSpec, batches, open_dataset
    from qvec_deploy.models import create, describe
    from qvec_deploy.quantize.calibrated import collect_moments

    model, args, classes = settings["model"], settings["model_args"], settings["classes"]
    config = DataConfig.from_mapping(describe(model, 1, args).data_config)
    root = None if settings["root"] is None else Path(settings["root"])
    data = open_dataset(DatasetSpec(settings["dataset"], "train", root, settings["moments"]), config)
    network = create(model, classes, args)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in fp.items()})
    return collect_moments(network, [images for images, _ in batches(data, BATCH)], tuple(settings["skip"]))


def _cell(node: Node, store: Store, folder: Path, send: SendEvent) -> dict[str, Any]:
    """Everything that is tried on one receiver; its paths are kept relative to the study's folder."""
    from qvec_deploy.research.study.cell import compute_cell

    request = cell_request(node.settings, store)
    cell = compute_cell(request, send=send, journal=Journal(store.work(node.id) / "trials.jsonl", node.key))
    cell = dataclasses.replace(cell, request=_portable(request, store.out))
    write_bytes(folder / "cell.json", cell_json(cell))
    digest = sha256_bytes(canonical_json([dataclasses.asdict(trial) for trial in cell.trials]))
    return {"seconds": cell.seconds["all"], "sha256": digest}


def cell_request(settings: Mapping[str, Any], store: Store) -> CellRequest:
    """What a cell is computed from, its files found in the store."""
    return CellRequest(
        model=settings["model"],
        model_args=settings["model_args"],
        skip=tuple(settings["skip"]),
        grid=Scheme.from_dict(settings["grid"]),
        seed=settings["seed"],
        receiver=TaskData(**settings["receiver"]),
        fp=str(store.weights(settings["fp"])),
        own_qat=str(store.weights(settings["qat"])),
        base=_locate(store, settings["base"]),
        donors=tuple(
            DonorFiles(
                donor["data"]["name"],
                str(store.weights(donor["vector"])),
                str(store.weights(donor["fp"])),
                TaskData(**donor["data"]),
            )
            for donor in settings["donors"]
        ),
        methods=tuple(settings["methods"]),
        inputs=tuple(settings["inputs"]),
        lambdas=tuple(settings["lambdas"]),
        controls=tuple(settings["controls"]),
        selecting=settings["selecting"],
        testing=settings["testing"],
    )


def _portable(request: CellRequest, out: Path) -> CellRequest:
    def short(path: str) -> str:
        return path.removeprefix(f"{out}/")

    donors = tuple(
        dataclasses.replace(donor, vector=short(donor.vector), fp=short(donor.fp)) for donor in request.donors
    )
    own_qat = None if request.own_qat is None else short(request.own_qat)
    base = None if request.base is None else short(request.base)
    return dataclasses.replace(request, fp=short(request.fp), own_qat=own_qat, base=base, donors=donors)


def _locate(store: Store, where: Mapping[str, str | None] | None) -> str | None:
    """The path of weights that are a node's or a file's."""
    if where is None:
        return None
    return where["path"] if where["node"] is None else str(store.weights(where["node"]))


def _read(path: str) -> dict[str, Any]:
    from qvec_deploy.io.checkpoint import Checkpoint

    source = Checkpoint.open(path)
    return {name: source.read(name) for name in source.tensors}


def _write(path: Path, state: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(dict(state), temporary)
        except SafetensorError as error:  # how it reports what the disk refuses
            raise OSError(str(error)) from error


_MAKERS: dict[str, Callable[[Node, Store, Path, SendEvent], dict[str, Any]]] = {
    "base": _base,
    "fp": _fine_tune,
    "qat": _fine_tune,
    "vector": _vector,
    "cell": _cell,
}
