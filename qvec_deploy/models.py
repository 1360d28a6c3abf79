"""Model names to structures: timm models without weights, and which of their tensors are what."""

from __future__ import annotations

import copy
import difflib
import functools
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

ModelArgs = Mapping[str, int | float | bool | str | list[int]]


@dataclass(frozen=True)
class Architecture:
    """What a timm model looks like, known without any weights.

    Attributes:
        shapes: Shape of every tensor of the state dict, in its order.
        linears: Names of the nn.Linear modules, the head's included.
        head: Name of the classification head module.
        data_config: timm's preprocessing: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.
        fixed_size: Whether the model takes images of one size only.
    """

    name: str
    classes: int
    shapes: Mapping[str, tuple[int, ...]]
    linears: tuple[str, ...]
    head: str
    data_config: Mapping[str, Any]
    fixed_size: bool = True

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.data_config["input_size"]
        return int(channels), int(height), int(width)


@functools.cache
def head_name(name: str) -> str:
    """Module name of the classification head of a timm model, `head` for a ViT, `head.fc` for a Swin.

    Raises:
        RecipeError: timm does not know the model, or it has no single classification head.
    """
    timm = _timm()
    known = timm.list_models()
    base = name.split(".", 1)[0]
    if base not in known:
        near = difflib.get_close_matches(base, known, n=3)
        raise RecipeError(
            f"timm has no model `{name}`",
            hint=f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists the names",
        )
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the model is known, its pretrained tag is not
        near = difflib.get_close_matches(name, timm.list_pretrained(f"{base}.*"), n=3)
        raise RecipeError(f"timm has no model `{name}`", hint=f"did you mean {' or '.join([base, *near])}?") from error
    head = config.classifier if config is not None else "head"
    if not isinstance(head, str):
        raise RecipeError(f"`{name}` has no single classification head", hint="models with one head are supported")
    return head


def pretrained_classes(name: str) -> int:
    """Outputs that timm's model has where nobody says how many."""
    head_name(name)
    config = _timm().get_pretrained_cfg(name)
    return int((config.num_classes if config is not None else 0) or 1000)


def describe(name: str, classes: int, args: ModelArgs) -> Architecture:
    """Look at a timm model's structure; no weights are allocated or read.

    Raises:
        RecipeError: Unknown model, or arguments it does not take.
    """
    return _describe(name, classes, json.dumps(args))


@functools.lru_cache(maxsize=16)
def _describe(name: str, classes: int, args_json: str) -> Architecture:
    import torch

    model, args = _template(name, classes, args_json), json.loads(args_json)
    data_config = dict(_timm().data.resolve_model_data_config(model))
    pretrained: Any = model.pretrained_cfg or {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or args.get("img_size")
    size = [size, size] if isinstance(size, int) else size
    if size is not None:  # timm answers with the pretrained size even where `img_size` was given
        data_config["input_size"] = (args.get("in_chans", data_config["input_size"][0]), *size)
    return Architecture(
        name=name,
        classes=classes,
        shapes={key: tuple(value.shape) for key, value in model.state_dict().items()},
        linears=tuple(key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)),
        head=head_name(name),
        data_config=data_config,
        fixed_size=size is not None or bool(pretrained.get("fixed_input_size")),
    )


def create(name: str, classes: int, args: ModelArgs) -> nn.Module:
    """A timm model with `classes` outputs and initial weights, in evaluation mode.

    Raises:
        RecipeError: Unknown model, or arguments it does not take.
    """
    head_name(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: nn.Module = _timm().create_model(name, pretrained=False, num_classes=classes, **args)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise RecipeError(
                f"timm cannot create `{name}` with {dict(args)}: {error}", hint="check receiver.model_args"
            ) from error
    return model.eval()


def structure(name: str, classes: int, args: ModelArgs) -> nn.Module:
    """A timm model of its own whose parameters hold no values yet, in evaluation mode.

    timm builds it once in a process; this is a copy. Load weights with `load_state_dict(..., assign=True)`. Buffers
    that are computed and not stored, such as a Swin's masks, have their values.

    Raises:
        RecipeError: Unknown model, or arguments it does not take.
    """
    return copy.deepcopy(_template(name, classes, json.dumps(args)))


@functools.lru_cache(maxsize=4)
def _template(name: str, classes: int, args_json: str) -> nn.Module:
    import torch

    args = json.loads(args_json)
    with torch.device("meta"):
        model = create(name, classes, args)
    stored = set(model.state_dict())
    if all(key in stored for key, _ in model.named_buffers()):
        return model
    model = create(name, classes, args)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            setattr(module, key, torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad))
    return model


def quantized_linears(model: nn.Module, skip: tuple[str, ...]) -> list[str]:
    """Names of the nn.Linear modules that are quantized: all but those under a child named in `skip`."""
    from torch import nn

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in names if not is_skipped(name, skip)]


def is_skipped(name: str, skip: tuple[str, ...]) -> bool:
    """Whether a component of the dotted module name equals an entry of `skip` (never a substring)."""
    return not set(skip).isdisjoint(name.split("."))


def _timm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
        import timm.data
    return timm
