"""Short names of vectors tell them apart."""

from __future__ import annotations

import pytest

from qvec_deploy.vectors.short_names import short_names


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((), ()),
        (("demo/vector_lower.safetensors",), ("vector_lower",)),
        (("d/a.safetensors", "d/b.safetensors"), ("a", "b")),
        (("d/a/vector.safetensors", "d/b/vector.safetensors"), ("a/vector", "b/vector")),
        (("a/x/v.safetensors", "b/x/v.safetensors", "c/w.safetensors"), ("a/x/v", "b/x/v", "w")),
        (("x/v.safetensors", "q/x/v.safetensors"), ("x/v", "q/x/v")),
        (("hf://o/r@1/v.safetensors", "hf://o/s@1/v.safetensors"), ("r@1/v", "s@1/v")),
        (("d/v.safetensors", "d/v.pt"), ("v.safetensors", "v.pt")),
        (("q.pt - f.pt", "d/v.safetensors"), ("q.pt - f.pt", "v")),
        (("v.safetensors", "./v.safetensors"), ("v", "./v")),
    ],
)
def test_the_shortest_tails_that_differ(labels: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert short_names(labels) == names
    assert len(set(names)) == len(labels)
