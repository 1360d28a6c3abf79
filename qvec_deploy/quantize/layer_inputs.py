"""What reaches the Linears of a model: second moments of their inputs, and forward passes held in step."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qvec_deploy.errors import IncompatibleError
from qvec_deploy.tensors import Float32

Pass = tuple[nn.Module, Float32]

_BLOCK = 256
"""Columns of a moment that are computed at a time, with those after them."""


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """A Linear by its dotted name."""
    return cast(nn.Linear, model.get_submodule(name))


def weight_at(model: nn.Module, name: str) -> Float32:
    """A Linear's weights (out, in) by its dotted name."""
    weights: Float32 = linear_at(model, name).weight.detach().float().cpu().numpy()
    return weights


class Moments:
    """The sum of x x' over a Linear's inputs x, and how many there were.

    Products are float32, batch by batch, and their sum float64; only blocks above the diagonal are computed.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._rows = 0

    def add(self, flat: Tensor) -> None:
        """Add inputs (rows, in) float32."""
        for start in range(0, len(self._sum), _BLOCK):
            self._sum[start : start + _BLOCK, start:] += flat[:, start : start + _BLOCK].T @ flat[:, start:]
        self._rows += len(flat)

    def total(self) -> Tensor:
        """The sum (in, in) float64, symmetric."""
        for start in range(0, len(self._sum), _BLOCK):
            end = start + _BLOCK
            self._sum[end:, start:end] = self._sum[start:end, end:].T
        return self._sum

    def mean(self) -> Tensor:
        """The mean (in, in) float64, symmetric."""
        return self.total() / self._rows


def accumulate_moments(model: nn.Module, images: Sequence[Float32], names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of x x' over the inputs x of Linears.

    Returns:
        (in, in) float64 by Linear name, in the order the model calls them; Linears it does not call are missing.
    """
    moments: dict[str, Moments] = {}

    def look(name: str, values: Tensor) -> None:
        flat = flatten(values)
        if name not in moments:
            moments[name] = Moments(flat.shape[1], flat.device)
        moments[name].add(flat)

    with _hooks([model], names, look), torch.no_grad():
        for batch in images:
            model(on_device_of(model, batch))
    return {name: moments.pop(name).mean() for name in list(moments)}


def called_linears(model: nn.Module, images: Float32, names: Sequence[str]) -> set[str]:
    """Which Linears images (B, C, H, W) reach."""
    called: set[str] = set()
    with _hooks([model], names, lambda name, _: called.add(name)), torch.no_grad():
        model(on_device_of(model, images))
    return called


def flatten(values: Tensor) -> Tensor:
    """Inputs of a Linear as (rows, in) float32."""
    return values.detach().reshape(-1, values.shape[-1]).float()


def on_device_of(model: nn.Module, batch: Float32) -> Tensor:
    """A batch as a tensor where the model's parameters are."""
    return torch.from_numpy(batch).to(next(model.parameters()).device)


def in_step(passes: Sequence[Pass], names: Sequence[str]) -> Generator[tuple[str, list[Tensor]]]:
    """Run forward passes side by side, all of them waiting at each Linear for the last to arrive.

    Whoever iterates may change the Linear's weight before the passes go through it: one forward pass per batch does
    for a whole network, whatever its structure, where running it anew for each Linear would take as many passes
    as there are Linears. What is kept is each pass's live activations, no more.

    Args:
        passes: Models, in evaluation mode, each with a batch (B, C, H, W). A model may occur several times.
        names: Linears to wait at, which all models have.

    Yields:
        Name of the Linear, and its input in every pass; the list is emptied when the passes go on.
    """
    models = list({id(model): model for model, _ in passes}.values())
    threads = [_Stepper(model, batch) for model, batch in passes]
    with _hooks(models, names, _stop_here):
        try:
            while True:
                stops = [thread.advance() for thread in threads]  # one at a time: the order of sums is fixed
                reached = {name for name, _ in stops}
                if len(reached) > 1:
                    raise IncompatibleError(
                        f"model and teacher call their Linears in different orders: {sorted(map(str, reached))}",
                        hint="the teacher is the unpatched receiver: the same model with other weights",
                    )
                (name,), inputs = reached, [values for _, values in stops if values is not None]
                if name is None:
                    return
                stops.clear()
                yield name, inputs
                inputs.clear()
        finally:
            for thread in threads:
                thread.abandon()


_Stop = tuple[str, Tensor] | tuple[None, None]
_END: _Stop = (None, None)


class _Abandoned(BaseException):
    """Unwinds a forward pass that nobody waits for any more."""


class _Stepper(threading.Thread):
    """A forward pass that goes on only while the caller waits for its next stop: a coroutine, as a thread.

    A thread, because a model's forward can be held in the middle in no other way. Never two run at once.
    """

    def __init__(self, model: nn.Module, batch: Float32) -> None:
        super().__init__(daemon=True)
        self._model = model
        self._batch = batch
        self._go, self._arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self._stop_at: _Stop = _END
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Called by the thread itself."""
        self._go.acquire()
        try:
            if not self._abandoned:
                with torch.no_grad():  # which is a thread's own setting
                    self._model(on_device_of(self._model, self._batch))
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            self._error = error
        finally:
            self._arrived.release()

    def stop(self, name: str, values: Tensor) -> None:
        """Called by the thread itself at a Linear: wait for the caller."""
        self._stop_at = (name, values)
        self._arrived.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def advance(self) -> _Stop:
        """Called by others: run to the next Linear or to the end."""
        self._go.release()
        self._arrived.acquire()
        if self._error is not None:
            raise self._error
        reached, self._stop_at = self._stop_at, _END  # a pass keeps no input that it needs no more
        return reached

    def abandon(self) -> None:
        """Called by others: end the pass where it is."""
        self._abandoned = True
        self._go.release()
        self.join()


def _stop_here(name: str, values: Tensor) -> None:
    thread = threading.current_thread()
    if isinstance(thread, _Stepper):
        thread.stop(name, values)


@contextlib.contextmanager
def _hooks(models: Sequence[nn.Module], names: Sequence[str], look: Any) -> Iterator[None]:
    """Call `look(name, input)` before every call of the named Linears."""

    def hook(name: str) -> Any:
        return lambda module, inputs: look(name, inputs[0])

    handles: list[RemovableHandle] = [
        model.get_submodule(name).register_forward_pre_hook(hook(name)) for model in models for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
