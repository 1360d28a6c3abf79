"""Which tensors of a saved object are the network's: wrappers undone, averaged weights told apart, others named."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError

Weights = Literal["raw", "ema"]
Shapes = Mapping[str, tuple[int, ...]]

_RAW = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "ema_model", "ema", "averaged")
"""Entries of a saved dict that hold a network's tensors, and those that hold their moving average."""
_HEADS = {"head", "head_dist", "heads", "classifier", "fc"}
"""What timm calls classification heads."""
_AVERAGED_WORDS = ("ema", "averaged", "average", "avg", "swa")
_WRAPPERS = {"module", "_orig_mod", "model", "net", "network"}
_COMPUTED = (
    "num_batches_tracked",
    "relative_position_index",
    "relative_coords_table",
    "attn_mask",
    "attention_bias_idxs",
)
"""Last part of the names of tensors that no answer depends on, or that timm computes itself; older releases of it
stored them."""
_NETWORK_SHARE = 0.9
"""Of all weights, what lies under a prefix for the rest to count as other things: losses, metrics, counters."""
_PART_SHARE = 0.3
"""What lies at least under a prefix that is one of a file's networks."""

_FOREIGN = {
    ("lora_", "base_model.model."): (
        "LoRA or PEFT adapters",
        "merge them into the model first (`merge_and_unload()` in PEFT) and save its state dict",
    ),
    ("embeddings.patch_embeddings.",): (
        "Transformers' ViT, which names its weights in another way than timm",
        "fine-tune the timm model, or rename the weights to timm's names",
    ),
    ("encoder.layers.encoder_layer_",): (
        "torchvision's ViT, which names its weights in another way than timm",
        "fine-tune the timm model, or rename the weights to timm's names",
    ),
    ("transformer.resblocks.",): (
        "an OpenCLIP model, which names its weights in another way than timm",
        "load it with timm's `vit_*_clip_*` models and save their state dict",
    ),
}


@dataclass(frozen=True)
class NetworkTensors:
    """The tensors of one network in a file.

    Attributes:
        names: The file's name of each tensor, by the network's own name for it.
        weights: Whether these are the averaged weights or the raw ones; None where the file has one kind and does not
            say which.
        aside: What the file holds beside them, by its own names.
    """

    names: Mapping[str, str]
    weights: Weights | None
    aside: tuple[str, ...]


def unwrap(saved: Any, wanted: Weights | None, is_tensor: Any, what: str) -> tuple[dict[str, Any], Weights | None]:
    """The dict of tensors within what a training script saved.

    Args:
        saved: A dict of tensors, or of dicts, to any depth.
        wanted: The kind of weights to take where there are both.
        is_tensor: Whether a value is a tensor.
        what: The file, for errors.

    Raises:
        IntegrityError: There is no dict of tensors.
        RecipeError: There are raw and averaged weights and nobody said which, or not those that were asked for.
    """
    kind: Weights | None = None
    while isinstance(saved, Mapping):
        if any(is_tensor(value) for value in saved.values()):
            return {str(name): value for name, value in saved.items() if is_tensor(value)}, kind
        raw, averaged = (
            next((saved[key] for key in keys if isinstance(saved.get(key), Mapping) and saved[key]), None)
            for keys in (_RAW, _AVERAGED)
        )
        if raw is not None and averaged is not None:
            kind = _choose(wanted, what)
            saved = averaged if kind == "ema" else raw
            continue
        if averaged is not None:
            kind = "ema"
        saved = raw if raw is not None else averaged
    raise IntegrityError(f"{what} is not a state dict", hint="save it with torch.save(model.state_dict(), path)")


def find_network(shapes: Shapes, wanted: Weights | None, kind: Weights | None, what: str) -> NetworkTensors:
    """Undo wrappers' prefixes, in any order and number, and set aside what is not the network's.

    A prefix is a wrapper's where nearly all weights lie under it, and what follows it are modules and no numbers.
    Two prefixes with the same tensors under them are one network twice.

    Args:
        kind: Raw or averaged, where the dict that held these tensors says it.

    Raises:
        IncompatibleError: Weights of another library, or of two networks.
        RecipeError: As `unwrap`.
    """
    _refuse_foreign(shapes, what)
    found = NetworkTensors({name: name for name in shapes}, kind, ())
    while (inner := _unwrap_once(found, shapes, wanted, what)) is not None:
        found = inner
    computed = {name: stored for name, stored in found.names.items() if name.rpartition(".")[2] in _COMPUTED}
    if len(computed) < len(found.names):
        names = {name: stored for name, stored in found.names.items() if name not in computed}
        found = replace(found, names=names, aside=(*found.aside, *computed.values()))
    if wanted is not None and found.weights is not None and found.weights != wanted:
        raise RecipeError(f"{what} holds only {found.weights} weights", hint=f"leave out weights: {wanted}")
    return found


def _unwrap_once(found: NetworkTensors, shapes: Shapes, wanted: Weights | None, what: str) -> NetworkTensors | None:
    kind: Weights | None
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, stored in found.names.items():
        head, dot, rest = name.partition(".")
        if dot:
            groups[head][rest] = stored
    sizes = {head: _size(names.values(), shapes) for head, names in groups.items()}
    total = _size(found.names.values(), shapes)
    networks = [head for head, size in sizes.items() if size > _PART_SHARE * total and _is_network(groups[head])]
    if not networks:
        return None
    head, kind = max(networks, key=sizes.__getitem__), found.weights
    alike = [other for other in networks if _inner_names(groups[other]) == _inner_names(groups[head])]
    if len(alike) > 1:
        head, kind = _one_of(sorted(alike), wanted, what)
    elif sizes[head] < _NETWORK_SHARE * total:
        return None
    elif _is_averaged(head):
        kind = "ema"
    names = groups[head]
    if len(alike) < 2 and _has_head(found.names) and not _has_head(names):
        return None  # a part of the network, such as its encoder
    taken = set(names.values())
    outside = [stored for stored in found.names.values() if stored not in taken]
    return replace(found, names=names, weights=kind, aside=(*found.aside, *outside))


def _is_network(names: Collection[str]) -> bool:
    """Whether names under a prefix look like a network's: several modules, none of them a number."""
    children = {name.partition(".")[0] for name in names}
    return (len(children) > 1 and not any(child.isdigit() for child in children)) or children <= _WRAPPERS


def _has_head(names: Collection[str]) -> bool:
    return any(name.partition(".")[0] in _HEADS for name in names)


def _inner_names(names: Collection[str]) -> set[str]:
    """Names without the wrappers' prefixes that are left before them."""
    parts = [name.split(".") for name in names]
    while all(len(part) > 1 and part[0] in _WRAPPERS for part in parts):
        parts = [part[1:] for part in parts]
    return {".".join(part) for part in parts}


def _is_averaged(head: str) -> bool:
    return any(word in head.lower().split("_") for word in _AVERAGED_WORDS)


def _one_of(heads: list[str], wanted: Weights | None, what: str) -> tuple[str, Weights]:
    averaged = [head for head in heads if _is_averaged(head)]
    raw = [head for head in heads if head not in averaged]
    if len(averaged) != 1 or len(raw) != 1:
        raise IncompatibleError(
            f"{what} holds several networks: {', '.join(f'{head}.*' for head in heads)}",
            hint="save the state dict of the one that is to be deployed",
        )
    kind = _choose(wanted, what)
    return (averaged if kind == "ema" else raw)[0], kind


def _choose(wanted: Weights | None, what: str) -> Weights:
    if wanted is None:
        raise RecipeError(
            f"{what} holds raw and averaged (EMA) weights",
            hint="say ema (what timm evaluates by default) or raw: receiver.weights in a recipe, or --weights",
        )
    return wanted


def _refuse_foreign(shapes: Shapes, what: str) -> None:
    for marks, (library, hint) in _FOREIGN.items():
        if any(mark in name for name in shapes for mark in marks):
            raise IncompatibleError(f"{what} holds {library}", hint=hint)


def _size(names: Collection[str], shapes: Shapes) -> int:
    return sum(math.prod(shapes[name]) for name in names)
