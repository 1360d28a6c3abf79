"""Which tensors of a saved object are the network's: wrappers undone, averaged weights told apart, others named."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qvec_deploy.errors import IncompatibleError, IntegrityError, RecipeError
from qvec_deploy.io.other_files import SAVE

Weights = Literal["raw", "ema"]
Shapes = Mapping[str, tuple[int, ...]]

_RAW = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_state_dict_ema", "ema_model", "ema", "averaged")
"""Entries of a saved dict that hold a network's tensors, and those that hold their moving average."""
_HEADS = {"head", "head_dist", "heads", "classifier", "fc"}
"""What timm calls classification heads."""
_AVERAGED_WORDS = ("ema", "averaged", "average", "avg", "swa", "shadow")
_WRAPPERS = {"module", "model", "net", "network"}
_INSERTED = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""What compiling, sharding and recomputing put before the names of any module, wherever it lies."""
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
        tensors = {str(name): value for name, value in saved.items() if is_tensor(value)}
        parts = _parts(saved, is_tensor)
        if len(tensors) < sum(map(is_tensor, saved.values())):
            names = [str(name) for name, value in saved.items() if is_tensor(value)]
            twice = next(name for name in names if names.count(name) > 1)
            raise IntegrityError(f"{what} has two tensors named {twice}", hint=SAVE)
        if tensors and (_is_named(tensors) or not parts):  # beside a network in a dict of its own: losses, counters
            return tensors, kind
        averaged = _first(parts, _AVERAGED, [key for key in parts if _is_averaged(key)], is_tensor, what)
        raw = _first(parts, _RAW, [key for key in parts if not _is_averaged(key)], is_tensor, what)
        if raw is not None and averaged is not None:
            kind = _choose(wanted, what)
        elif averaged is not None:
            kind = "ema"
        saved = averaged if raw is None or (averaged is not None and kind == "ema") else raw
    raise IntegrityError(f"{what} holds no state dict", hint=SAVE)


def _parts(saved: Mapping[Any, Any], is_tensor: Any) -> dict[str, Mapping[Any, Any]]:
    """The entries that are networks: by their name, or as they hold tensors of a network's names."""
    dicts = {str(key): value for key, value in saved.items() if isinstance(value, Mapping) and value}
    known = (*_RAW, *_AVERAGED)
    return {key: value for key, value in dicts.items() if key in known or _is_named(_leaves(value, is_tensor))}


def _leaves(value: Any, is_tensor: Any) -> dict[str, Any]:
    """All tensors in a dict of dicts by the last of their names; those of parameters by number are an optimizer's."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        if is_tensor(inner):
            found[str(key)] = inner
        elif isinstance(inner, Mapping) and isinstance(key, str):
            found |= _leaves(inner, is_tensor)
    return found


def _is_named(tensors: Mapping[str, Any]) -> bool:
    """Whether one of them is a matrix in a module: a network's, and no metric."""
    return any("." in name and len(value.shape) > 1 for name, value in tensors.items())


def _first(
    parts: Mapping[str, Mapping[Any, Any]], known: Collection[str], keys: Collection[str], is_tensor: Any, what: str
) -> Mapping[Any, Any] | None:
    """Of several entries the first that has a known name, unless another one holds the same network."""
    ordered = [key for key in (*known, *keys) if key in keys]
    if not ordered:
        return None
    names = {key: _inner_names(_leaves(parts[key], is_tensor)) for key in keys}
    alike = [key for key in keys if names[key] == names[ordered[0]]]
    if len(alike) > 1 or (ordered[0] not in known and len(keys) > 1):
        raise _several(alike if len(alike) > 1 else keys, what)
    return parts[ordered[0]]


def _several(networks: Collection[str], what: str) -> IncompatibleError:
    return IncompatibleError(
        f"{what} holds several networks: {', '.join(networks)}",
        hint="save the state dict of the one that is to be deployed",
    )


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
    plain = {".".join(part for part in name.split(".") if part not in _INSERTED): name for name in shapes}
    found = NetworkTensors(plain if len(plain) == len(shapes) else {name: name for name in shapes}, kind, ())
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
    whole = _whole_networks(found.names, groups)
    networks = [head for head, size in sizes.items() if size > _PART_SHARE * total and _is_network(groups[head])]
    if not networks and len(whole) != 1:
        return None
    head, kind = max(networks or whole, key=sizes.__getitem__), found.weights
    inner = {name: _inner_names(n for n, stored in groups[name].items() if shapes[stored]) for name in networks}
    alike = [other for other in networks if inner[other] == inner[head]]
    if len(alike) > 1:
        head, kind = _one_of(sorted(alike), wanted, what)
    elif len(whole) > 1:
        raise _several([f"{name}.*" for name in whole], what)
    elif sizes[head] < _NETWORK_SHARE * total:
        if not whole:
            return None
        head = whole[0]
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
    return (len(children) > 1 and not any(child.isdigit() for child in children)) or all(map(_is_wrapper, children))


def _whole_networks(names: Collection[str], groups: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Prefixes that hold a head and a good part of all tensors, where none lies outside of them."""
    if _has_head(names):
        return []
    return [
        head
        for head, inner in groups.items()
        if 3 * len(inner) > len(names) and _is_network(inner) and _has_head(_inner_names(inner))
    ]


def _has_head(names: Collection[str]) -> bool:
    return any(name.partition(".")[0] in _HEADS for name in names)


def _inner_names(names: Iterable[str]) -> set[str]:
    """Names without the wrappers' prefixes that are left before them."""
    parts = [name.split(".") for name in names]
    while parts and all(len(part) > 1 and _is_wrapper(part[0]) for part in parts):
        parts = [part[1:] for part in parts]
    return {".".join(part) for part in parts}


def _is_wrapper(name: str) -> bool:
    return name in _WRAPPERS or _is_averaged(name)


def _is_averaged(head: str) -> bool:
    return any(word in head.lower().split("_") for word in _AVERAGED_WORDS)


def _one_of(heads: list[str], wanted: Weights | None, what: str) -> tuple[str, Weights]:
    averaged = [head for head in heads if _is_averaged(head)]
    raw = [head for head in heads if head not in averaged]
    if len(averaged) != 1 or len(raw) != 1:
        raise _several([f"{head}.*" for head in heads], what)
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
