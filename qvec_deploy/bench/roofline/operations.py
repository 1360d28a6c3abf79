"""A model's operations: counted once, and found in the user's cache after that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from qvec_deploy.bench.roofline.roofline_values import Operation
from qvec_deploy.io.user_cache import remembered_value
from qvec_deploy.jobs.apart import call
from qvec_deploy.models import DECIDING_PACKAGES, ModelArgs


@dataclass(frozen=True)
class Operations:
    """All operations of one image's forward pass, as JSON can carry them."""

    of: tuple[Operation, ...]


def count_operations(
    name: str, classes: int, args: ModelArgs, input_shape: tuple[int, int, int]
) -> tuple[Operation, ...]:
    """What `trace_operations` gives.

    Raises:
        IncompatibleError: The model's forward pass needs values, not shapes alone.
        ModuleNotFoundError: Nobody has counted them here, and there is no PyTorch.
    """
    inputs = (name, classes, dict(args), input_shape)
    make = partial(call, "qvec_deploy.bench.roofline.operations:count_anew", *inputs)
    return remembered_value(Operations, inputs, make, packages=DECIDING_PACKAGES).of


def count_anew(name: str, classes: int, args: ModelArgs, input_shape: tuple[int, int, int]) -> Operations:
    """The same in this process."""
    from qvec_deploy.bench.roofline.trace import trace_operations

    return Operations(trace_operations(name, classes, args, input_shape))
