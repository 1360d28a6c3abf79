"""A model's operations, by running it on shapes: torch's `meta` device holds no values and computes none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from qvec_deploy.bench.roofline.roofline_values import REST, Kind, MatrixProduct, Operation
from qvec_deploy.errors import IncompatibleError, first_line
from qvec_deploy.models import ModelArgs, structure

_ATEN = torch.ops.aten
_FACTORS = {  # where an operator has its two factors among its arguments
    _ATEN.mm: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.bmm: (0, 1),
    _ATEN.baddbmm: (1, 2),
}
_SOFTMAX = (_ATEN._softmax, _ATEN._safe_softmax)
_COPIES = (_ATEN.clone, _ATEN.copy_, _ATEN._to_copy, _ATEN.cat, _ATEN.roll, _ATEN.constant_pad_nd, _ATEN.index)


def trace_operations(
    name: str, classes: int, args: ModelArgs, input_shape: tuple[int, int, int]
) -> tuple[Operation, ...]:
    """Operations of one image's forward pass, in the order of execution, `rest` last.

    No weight is allocated. A run of several images does the same for each of them and reads the weights once.
    Elementwise operators and copies are left out: runtimes compute most of them within the layer before or after, so
    that their values never go to memory, and what is counted has to be a lower bound.

    Raises:
        IncompatibleError: The model's forward pass needs values, not shapes alone.
    """
    model = structure(name, classes, args).to("meta")
    record = _Record({id(value): key.removesuffix(".weight") for key, value in model.named_parameters()})
    images = torch.empty((1, *input_shape), device="meta")
    try:
        with torch.no_grad(), _names_of(model, record), _Functions(record), _Operators(record):
            model(images)
    except RuntimeError as error:
        raise IncompatibleError(
            f"the operations of `{name}` cannot be counted: {first_line(error)}",
            hint="the roofline is known to work for ViT, DeiT-III and Swin models",
        ) from error
    return record.operations()


@dataclass
class _Sum:
    kind: Kind
    products: list[MatrixProduct] = field(default_factory=list)
    weights: int = 0
    values: int = 0


@dataclass
class _Record:
    """What ran so far, by layer.

    Attributes:
        names: Layer by the identity of its weight.
        modules: Those that are running, innermost last.
        paused: Whether operators belong to something that is recorded as one.
    """

    names: Mapping[int, str]
    modules: list[str] = field(default_factory=list)
    paused: bool = False
    sums: dict[str, _Sum] = field(default_factory=dict)

    def add(
        self, layer: str, kind: Kind, tensors: Iterable[Tensor], product: MatrixProduct | None = None, weights: int = 0
    ) -> None:
        entry = self.sums.setdefault(layer, _Sum(kind))
        entry.products += [product] if product is not None else []
        entry.weights += weights
        entry.values += sum(tensor.numel() for tensor in tensors)

    @property
    def module(self) -> str:
        """The innermost module that is running; a softmax belongs to what it is in."""
        names = [name for name in self.modules if name.rpartition(".")[2] != "softmax"]
        return (names[-1] if names else "") or "model"

    def operations(self) -> tuple[Operation, ...]:
        names = sorted(self.sums, key=lambda name: name == REST)
        return tuple(
            Operation(name, one.kind, tuple(one.products), one.weights, one.values)
            for name, one in ((name, self.sums[name]) for name in names)
        )


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators of torch that no runtime can leave out; views cost nothing, and the rest can be fused."""

    def __init__(self, record: _Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._record.paused and not _is_view(func):
            self._note(func, args, list(_tensors([result])))
        return result

    def _note(self, func: Any, args: tuple[Any, ...], results: list[Tensor]) -> None:
        record, operator = self._record, func.overloadpacket
        if operator is _ATEN.convolution:
            image, weight, result = args[0], args[1], results[0]
            rows, columns = result.numel() // result.shape[1], weight.numel() // weight.shape[0]
            product = MatrixProduct(rows, columns, weight.shape[0])
            layer = record.names.get(id(weight), record.module)
            record.add(layer, "convolution", (image, result), product, weight.numel())
        elif operator in _FACTORS:
            left, right = (args[index] for index in _FACTORS[operator])
            if left.dim() == 2:
                product = MatrixProduct(left.shape[0], left.shape[1], right.shape[1])
                record.add(record.module, "linear", (left, *results), product, right.numel())
            else:
                product = MatrixProduct(left.shape[1], left.shape[2], right.shape[2], left.shape[0])
                record.add(record.module, "attention", (left, right, *results), product)
        elif operator in _SOFTMAX:
            record.add(record.module, "attention", (args[0], *results))
        elif torch.Tag.pointwise not in func.tags and operator not in _COPIES:  # those can be a part of a neighbour
            read = [tensor for tensor in _tensors(args) if not isinstance(tensor, nn.Parameter)]
            record.add(REST, "rest", (*read, results[0]))  # a norm's other results are for training


class _Functions(TorchFunctionMode):
    """Takes a Linear by its weight's name, and attention as one operation as fused kernels do, not as their parts."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self._record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        notes: dict[Any, Callable[..., None]] = {linear: self._linear, scaled_dot_product_attention: self._attention}
        note = notes.get(func)
        if note is None or self._record.paused:
            return func(*args, **given)
        self._record.paused = True
        try:
            result = func(*args, **given)
        finally:
            self._record.paused = False
        note(result, *args, *given.values())
        return result

    def _linear(self, result: Tensor, x: Tensor, weight: Tensor, *_: object) -> None:
        rows, columns = weight.shape
        layer = self._record.names.get(id(weight), self._record.module)
        product = MatrixProduct(x.numel() // columns, columns, rows)
        self._record.add(layer, "linear", (x, result), product, weight.numel())

    def _attention(self, result: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> None:
        queries, width = query.shape[-2:]
        keys, heads = key.shape[-2], query.shape[:-2].numel()
        layer = self._record.module
        self._record.add(layer, "attention", (query, key), MatrixProduct(queries, width, keys, heads))
        self._record.add(layer, "attention", (value, result), MatrixProduct(queries, keys, value.shape[-1], heads))


@contextlib.contextmanager
def _names_of(model: nn.Module, record: _Record) -> Iterator[None]:
    """Keep the names of the modules that are running in `record.modules`, innermost last."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: record.modules.append(name)))
        handles.append(module.register_forward_hook(lambda *_: record.modules.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_view(func: Any) -> bool:
    if func.overloadpacket is _ATEN._unsafe_view:  # a view that torch does not declare
        return True
    returned = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
