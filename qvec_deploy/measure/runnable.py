"""What can be measured: anything that turns images into logits."""

from __future__ import annotations

from typing import Protocol

from qvec_deploy.tensors import Float32


class Runnable(Protocol):
    """A loaded engine. `qvec_deploy.targets.Session` is one; so is a test's fake. It has no clock."""

    def run(self, images: Float32) -> Float32:
        """Logits (batch, classes) of `images` (batch, channels, height, width)."""
        ...
