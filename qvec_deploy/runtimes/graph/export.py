"""A timm model to an ONNX skeleton: its structure, every quantized Linear as one `qvec::QvecLinear` node, no weights.

The skeleton depends on the architecture and the skip list alone, so all candidates of a build share one export, and
float weights never enter the exporter. `graph.py` puts the weights back by name.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.models import ModelArgs, quantized_linears, structure
from qvec_deploy.runtimes.graph import DOMAIN, INPUT, OPSET, OUTPUT


class _SkeletonLinear(nn.Module):
    """Stands where an nn.Linear stood and emits the operator; its buffers only lend their names."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.columns, self.rows = linear.in_features, linear.out_features
        self.register_buffer("weight", torch.zeros((self.rows, 1)))  # models ask for its type and device
        self.register_buffer("scale", torch.zeros((self.rows, 1)))
        self.register_buffer("bias", torch.zeros(self.rows))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::QvecLinear",
            (x, self.weight, self.scale, self.bias),
            attrs={"K": self.columns, "N": self.rows},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.rows),
            version=1,
        )
        return y


def export_skeleton(
    name: str, classes: int, args: ModelArgs, skip: tuple[str, ...], input_shape: tuple[int, int, int]
) -> onnx.ModelProto:
    """Export a model's structure.

    Args:
        input_shape: (C, H, W) of an image.

    Returns:
        An ONNX model with input `images` (batch, C, H, W), output `logits` (batch, classes), a dynamic batch, and
        initializers under the state dict's names whose values mean nothing.

    Raises:
        IncompatibleError: The exporter cannot express the model.
    """
    model = structure(name, classes, args)
    weights = set(model.state_dict())
    for path in quantized_linears(model, skip):
        parent, _, child = path.rpartition(".")
        linear: Any = model.get_submodule(path)
        setattr(model.get_submodule(parent), child, _SkeletonLinear(linear))
    for module in model.modules():  # the values of weights mean nothing here; computed buffers have theirs
        for key, parameter in module.named_parameters(recurse=False):
            setattr(module, key, nn.Parameter(torch.zeros_like(parameter, device="cpu"), requires_grad=False))
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, key, torch.zeros_like(buffer, device="cpu"))
    return _export(model, torch.zeros((2, *input_shape)), set(model.state_dict()) | weights)


def export_compressed(
    name: str, classes: int, args: ModelArgs, skip: tuple[str, ...], input_shape: tuple[int, int, int]
) -> bytes:
    """What `export_skeleton` returns, serialized and compressed: its values are all zeros."""
    with _collected():
        skeleton = export_skeleton(name, classes, args, skip, input_shape)
    return zlib.compress(skeleton.SerializeToString(deterministic=True), 1)


def _export(model: nn.Module, images: Tensor, weights: set[str]) -> onnx.ModelProto:
    with _quiet(), torch.no_grad(), _AttentionOfFourDimensions():
        try:
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                optimize=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise IncompatibleError(
                f"the model cannot be exported to ONNX: {_reason(error)}",
                hint="scripts/families.record.json lists the families of timm that can be",
            ) from error
        assert program is not None  # noqa: S101 - with dynamo=True the exporter returns a program
        return _optimize(program.model, weights)


class _AttentionOfFourDimensions(TorchFunctionMode):
    """Attention of (batch, heads, tokens, channels) wherever a model calls any: the exporter knows no other."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not scaled_dot_product_attention or args[0].dim() == 4:
            return func(*args, **given)
        query, key, value, *rest = args
        mask = rest.pop(0) if rest else given.pop("attn_mask", None)
        lead = query.shape[:-2]
        if mask is not None:
            mask = mask.expand(*lead, *mask.shape[-2:]).reshape(-1, 1, *mask.shape[-2:])
        query, key, value = (part.reshape(-1, 1, *part.shape[-2:]) for part in (query, key, value))
        result: Tensor = func(query, key, value, mask, *rest, **given)
        return result.reshape(*lead, *result.shape[-2:])


def _reason(error: BaseException) -> str:
    """What was wrong in the first place, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _optimize(model: ir.Model, weights: set[str]) -> onnx.ModelProto:
    """Simplify the graph without looking at weights: as graph inputs without values they cannot be folded or merged.

    The values mean nothing here. Seeing them, the optimizer would drop every bias, for they are zeros.
    """
    graph = model.graph
    hidden = {name: graph.initializers.pop(name) for name in sorted(weights & set(graph.initializers))}
    values = {name: value.const_value for name, value in hidden.items()}
    for value in hidden.values():
        value.const_value = None
    graph.inputs.extend(hidden.values())
    onnxscript.optimizer.optimize(model, num_iterations=1)
    graph.inputs[:] = [value for value in graph.inputs if value.name not in hidden]
    for name, value in hidden.items():
        value.const_value = values[name]
        graph.initializers[name] = value
    return ir.to_proto(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation notes away from the user."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Collect the garbage that the block makes, without walking the millions of objects that were there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
