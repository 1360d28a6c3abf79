"""Quantization-vector deployment: patch, quantize, pack, export, measure, release.

What a program needs, each imported when it is first used:

    load_recipe(path, overrides)      a recipe from a YAML file
    plan(recipe)                      what will happen to every tensor; reads no weights
    build(recipe, directory)          a measured bundle: its `bundle` and its `report`
    Bundle.open(directory)            a bundle whose files are what its manifest says; `session()` runs its engine,
                                      `predict(images)` names what is in pictures
    compare(old, new)                 whether a bundle is better or worse than another
    release(directory, to, keys=...)  a bundle checked, described and signed
    QuantizationVector.open(path)     a donor's vector
    pack(tensor), unpack(tensor)      the packed format

Everything raises subclasses of `QvecError`, each with a `hint`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvec_deploy.builder.pipeline import build, plan
    from qvec_deploy.bundle.bundle import Bundle
    from qvec_deploy.bundle.compare import compare_bundles as compare
    from qvec_deploy.bundle.release.release import release
    from qvec_deploy.errors import QvecError
    from qvec_deploy.packed.codec import pack, unpack
    from qvec_deploy.recipe.load import load_recipe
    from qvec_deploy.vectors.vector_file import QuantizationVector

for _switch, _value in (("ORT_DISABLE_TELEMETRY", "1"), ("DO_NOT_TRACK", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
    os.environ.setdefault(_switch, _value)  # libraries read them when they are loaded, and every process begins here

__all__ = [
    "Bundle",
    "QuantizationVector",
    "QvecError",
    "build",
    "compare",
    "load_recipe",
    "pack",
    "plan",
    "release",
    "unpack",
]

_HOMES = {
    "Bundle": "bundle.bundle:Bundle",
    "QuantizationVector": "vectors.vector_file:QuantizationVector",
    "QvecError": "errors:QvecError",
    "build": "builder.pipeline:build",
    "compare": "bundle.compare:compare_bundles",
    "load_recipe": "recipe.load:load_recipe",
    "pack": "packed.codec:pack",
    "plan": "builder.pipeline:plan",
    "release": "bundle.release.release:release",
    "unpack": "packed.codec:unpack",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: most programs need a few, and torch takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, symbol = _HOMES[name].split(":")
    return getattr(import_module(f"qvec_deploy.{module}"), symbol)


def __dir__() -> list[str]:
    return __all__
