"""Model names to structures: timm models without weights, and which of their tensors are what."""

from __future__ import annotations

import copy
import difflib
import functools
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from qvec_deploy.errors import RecipeError, first_line
from qvec_deploy.io.user_cache import remembered_value
from qvec_deploy.jobs.apart import call

if TYPE_CHECKING:
    from torch import nn

ModelArgs = Mapping[str, int | float | bool | str | list[int]]

DECIDING_PACKAGES = ("torch", "timm")
"""Packages whose versions decide what a model looks like."""
HEAD = "head"
"""The entry of a skip list that stands for every classification head."""


@dataclass(frozen=True)
class Architecture:
    """What a timm model looks like, known without any weights.

    Attributes:
        shapes: Shape of every float tensor of the state dict, in its order.
        linears: Names of the nn.Linear modules, the heads' included.
        convolutions: Names of the nn.Conv2d modules without depthwise ones, whose few weights share no input.
        heads: Names of the classification heads' modules: one, or two of a distilled model, which timm averages.
        data_config: timm's preprocessing: input_size (C, H, W), interpolation, mean, std, crop_pct, crop_mode.
        fixed_size: Whether the model takes images of one size only.
    """

    name: str
    classes: int
    shapes: Mapping[str, tuple[int, ...]]
    linears: tuple[str, ...]
    convolutions: tuple[str, ...]
    heads: tuple[str, ...]
    data_config: Mapping[str, Any]
    fixed_size: bool = True

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.data_config["input_size"]
        return int(channels), int(height), int(width)

    @property
    def backbone(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all that is no head."""
        return {name: shape for name, shape in self.shapes.items() if not in_head(name, self.heads)}

    def quantized(self, skip: tuple[str, ...], *, convolutions: bool = False) -> list[str]:
        """Names of the modules that are quantized: all but those under a child named in `skip`."""
        left_out = named_heads(skip, self.heads)
        candidates = (*self.linears, *self.convolutions) if convolutions else self.linears
        return [name for name in candidates if not is_skipped(name, left_out)]


@dataclass(frozen=True)
class KnownModel:
    """What timm knows of a model by its name.

    Attributes:
        heads: Module names of the classification heads.
        classes: Outputs where nobody says how many.
    """

    heads: tuple[str, ...]
    classes: int


def head_names(name: str) -> tuple[str, ...]:
    """Module names of the classification heads of a timm model: `head` for a ViT, `head.fc` for a Swin.

    Raises:
        RecipeError: timm does not know the model, or it has no classification head.
    """
    return _known_model(name).heads


def pretrained_classes(name: str) -> int:
    """Outputs that timm's model has where nobody says how many.

    Raises:
        RecipeError: As `head_names`.
    """
    return _known_model(name).classes


@functools.cache
def _known_model(name: str) -> KnownModel:
    return remembered_value(
        KnownModel, name, lambda: call("qvec_deploy.models:look_up", name), packages=DECIDING_PACKAGES
    )


def look_up(name: str) -> KnownModel:
    """What timm knows of a model, asked anew."""
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
    heads = (head,) if isinstance(head, str) else tuple(head or ())
    if not heads:
        raise RecipeError(f"`{name}` has no classification head", hint="models that tell classes apart are deployed")
    return KnownModel(heads, int((config.num_classes if config is not None else 0) or 1000))


def in_head(tensor: str, heads: tuple[str, ...]) -> bool:
    """Whether a tensor is one of a classification head's."""
    return tensor.startswith(tuple(f"{head}." for head in heads))


def is_running_statistic(tensor: str) -> bool:
    """Whether a tensor is what BatchNorm has measured: a part of the model, and no weight."""
    return tensor.endswith((".running_mean", ".running_var"))


def describe(name: str, classes: int, args: ModelArgs) -> Architecture:
    """Look at a timm model's structure; no weights are allocated or read.

    Raises:
        RecipeError: Unknown model, or arguments it does not take.
    """
    return _describe(name, classes, json.dumps(args))


@functools.lru_cache(maxsize=16)
def _describe(name: str, classes: int, args_json: str) -> Architecture:
    inputs = (name, classes, args_json)
    make = partial(call, "qvec_deploy.models:look_at", *inputs)
    found = remembered_value(Architecture, inputs, make, packages=DECIDING_PACKAGES)
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in found.data_config.items()}
    return replace(found, data_config=config)  # JSON has no tuples


def look_at(name: str, classes: int, args_json: str) -> Architecture:
    """What a model looks like, looked at anew."""
    import torch

    model, args = _template(name, classes, args_json), json.loads(args_json)
    data_config = dict(_timm().data.resolve_model_data_config(model))
    pretrained: Any = model.pretrained_cfg or {}
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or args.get("img_size")
    size = [size, size] if isinstance(size, int) else size
    channels = args.get("in_chans", data_config["input_size"][0])
    sides = data_config["input_size"][1:] if size is None else size
    data_config["input_size"] = (channels, *sides)  # timm answers with the pretrained size whatever it was given
    return Architecture(
        name=name,
        classes=classes,
        shapes={key: tuple(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()},
        linears=tuple(key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)),
        convolutions=tuple(
            key
            for key, module in model.named_modules()
            if isinstance(module, torch.nn.Conv2d) and not 1 < module.groups == module.in_channels
        ),
        heads=head_names(name),
        data_config=data_config,
        fixed_size=size is not None or bool(pretrained.get("fixed_input_size")),
    )


def create(name: str, classes: int, args: ModelArgs) -> nn.Module:
    """A timm model with `classes` outputs and initial weights, in evaluation mode.

    Raises:
        RecipeError: Unknown model, or arguments it does not take.
    """
    head_names(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: nn.Module = _timm().create_model(name, pretrained=False, num_classes=classes, **args)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise RecipeError(
                f"timm cannot create `{name}` with {dict(args)}: {error}", hint="check receiver.model_args"
            ) from error
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):  # BEiT, EVA, SwinV2: else a Linear's weight is used without the Linear
            setattr(module, "qkv_bias_separate", True)  # noqa: B010 - a module of any class
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
    if not _computes_values(model):
        for module in model.modules():
            if "num_batches_tracked" in module._buffers:  # BatchNorm's; not a weight
                module.num_batches_tracked = torch.zeros((), dtype=torch.long)
        return model
    model = create(name, classes, args)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            setattr(module, key, torch.nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad))
    return model


def _computes_values(model: nn.Module) -> bool:
    """Whether a model holds tensors that checkpoints do not bring: masks, indices, frequencies."""
    import torch

    stored = {
        key
        for key, value in model.state_dict().items()
        if value.is_floating_point() or key.endswith(".num_batches_tracked")
    }
    if not all(key in stored for key, _ in model.named_buffers()):
        return True
    return any(isinstance(value, torch.Tensor) for module in model.modules() for value in vars(module).values())


def quantized_linears(model: nn.Module, skip: tuple[str, ...]) -> list[str]:
    """Names of the nn.Linear modules that are quantized: all but those under a child named in `skip`.

    The entry `head` stands for every classification head, whatever timm calls it.
    """
    from torch import nn

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    left_out = named_heads(skip, (heads,) if isinstance(heads, str) else tuple(heads))
    return [name for name in names if not is_skipped(name, left_out)]


def named_heads(skip: tuple[str, ...], heads: tuple[str, ...]) -> tuple[str, ...]:
    """A skip list with the heads by the names that timm gives them, where it has the entry `head`."""
    return (*skip, *(head.partition(".")[0] for head in heads)) if HEAD in skip else skip


@dataclass(frozen=True)
class ForwardPass:
    """What a forward pass showed that computed shapes and no values.

    Attributes:
        outputs: Shape of what the model returns for two images; None where that is no tensor.
        outside: Modules whose weight was used by others than themselves.
        shared: Further names of modules with weights that have a name already.
        error: Why it ended early; None if it did not.
    """

    outputs: tuple[int, ...] | None
    outside: tuple[str, ...]
    shared: tuple[str, ...]
    error: str | None = None


@functools.lru_cache(maxsize=16)
def trace_forward(name: str, classes: int, args_json: str, input_shape: tuple[int, int, int]) -> ForwardPass:
    """Run a model on two images without any values.

    Args:
        args_json: Arguments for timm.create_model, as JSON.
    """
    inputs = (name, classes, args_json, input_shape)
    make = partial(call, "qvec_deploy.models:trace", *inputs)
    return remembered_value(ForwardPass, inputs, make, packages=DECIDING_PACKAGES)


def trace(name: str, classes: int, args_json: str, input_shape: tuple[int, int, int]) -> ForwardPass:
    """What a forward pass shows, run anew."""
    import torch
    from torch.overrides import TorchFunctionMode

    model = structure(name, classes, json.loads(args_json)).to("meta")
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    names = {key for key, _ in model.named_modules()}
    further = [each for each in model.named_modules(remove_duplicate=False) if each[0] not in names]
    shared = tuple(key for key, module in further if any(True for _ in module.parameters(recurse=False)))
    owners = {id(module.weight): key for key, module in model.named_modules() if isinstance(module, kinds)}
    running: list[str] = []
    outside: dict[str, None] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):  # not a look at its type or shape
                used = [owners.get(id(value)) for value in (*args, *(kwargs or {}).values())]
                outside.update(dict.fromkeys(key for key in used if key is not None and key not in running))
            return result

    for key in owners.values():
        module = model.get_submodule(key)
        module.register_forward_pre_hook(lambda *_, key=key: running.append(key))
        module.register_forward_hook(lambda *_: running.pop() and None)
    try:
        with torch.no_grad(), Watch():
            result = model(torch.empty((2, *input_shape), device="meta"))
    except NotImplementedError:  # it asks for values: nothing is known
        return ForwardPass((2, classes), tuple(outside), shared)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        return ForwardPass(None, tuple(outside), shared, first_line(error))
    outputs = tuple(result.shape) if isinstance(result, torch.Tensor) else None
    return ForwardPass(outputs, tuple(outside), shared)


def is_skipped(name: str, skip: tuple[str, ...]) -> bool:
    """Whether a component of the dotted module name equals an entry of `skip` (never a substring)."""
    return not set(skip).isdisjoint(name.split("."))


def load() -> None:
    """Load timm and PyTorch."""
    _timm()


def _timm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
        import timm.data
    return timm
