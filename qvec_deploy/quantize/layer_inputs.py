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


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """A Linear by its dotted name."""
    return cast(nn.Linear, model.get_submodule(name))


def weight_at(model: nn.Module, name: str) -> Float32:
    """A Linear's weights (out, in) by its dotted name."""
    weights: Float32 = linear_at(model, name).weight.detach().float().cpu().numpy()
    return weights


def accumulate_moments(model: nn.Module, images: Sequence[Float32], names: Sequence[str]) -> dict[str, Tensor]:
    """The mean of x x' over the inputs x of Linears.

    Returns:
        (in, in) float64 by Linear name, in the order the model calls them; Linears it does not call are missing.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def look(name: str, values: Tensor) -> None:
        flat = flatten(values)
        sums[name] = sums.get(name, 0) + (flat.T @ flat).double()
        rows[name] = rows.get(name, 0) + len(flat)

    with _hooks([model], names, look), torch.no_grad():
        for batch in images:
            model(on_device_of(model, batch))
    return {name: total / rows[name] for name, total in sums.items()}


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
        Name of the Linear, and its input in every pass.
    """
    models = list({id(model): model for model, _ in passes}.values())
    threads = [_Stepper(model, batch) for model, batch in passes]
    with _hooks(models, names, _stop_here):
        try:
            while True:
                stops = [thread.advance() for thread in threads]  # one at a time: the order of sums is fixed
                reached = {stop[0] if stop else None for stop in stops}
                if len(reached) > 1:
                    raise IncompatibleError(
                        f"model and teacher call their Linears in different orders: {sorted(map(str, reached))}",
                        hint="the teacher is the unpatched receiver: the same model with other weights",
                    )
                if reached == {None}:
                    return
                yield stops[0][0], [values for _, values in stops]  # type: ignore[index, misc]
        finally:
            for thread in threads:
                thread.abandon()


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
        self._stop_at: tuple[str, Tensor] | None = None
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
            self._stop_at = None
            self._arrived.release()

    def stop(self, name: str, values: Tensor) -> None:
        """Called by the thread itself at a Linear: wait for the caller."""
        self._stop_at = (name, values)
        self._arrived.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def advance(self) -> tuple[str, Tensor] | None:
        """Called by others: run to the next Linear; None at the end."""
        self._go.release()
        self._arrived.acquire()
        if self._error is not None:
            raise self._error
        return self._stop_at

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
