"""What differs between two bundles, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from qvec_deploy.bench.comparison import Changed, GateChange, Group, Value
from qvec_deploy.bench.environment import Environment
from qvec_deploy.bench.results import Report
from qvec_deploy.bench.verdicts import gate_verdict
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.runtimes.engine_files import is_of_engine
from qvec_deploy.runtimes.registry import find_runtime

_PASSING = ("load_average", "load_average_after", "frequency_mhz", "packages", "threads")
"""Fields of an environment that say nothing about which machine it was, or that other groups hold."""
_PASSING_GPU = ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c", "throttling")


def all_changes(old: Bundle, new: Bundle, reports: tuple[Report | None, Report | None]) -> tuple[Changed, ...]:
    """Every field that differs, group by group, sorted by name within each.

    Args:
        reports: Their reports, OLD's first; None where a bundle has none.
    """
    groups: list[tuple[Group, Mapping[str, Value], Mapping[str, Value]]] = [
        ("recipe", _flat(old.recipe.as_dict()), _flat(new.recipe.as_dict())),
        ("sources", _sources(old, new), _sources(new, old)),
        ("versions", old.manifest.versions, new.manifest.versions),
        ("engine", _engine(old), _engine(new)),
        ("sizes", _sizes(old), _sizes(new)),
        ("selection", _selection(old), _selection(new)),
        ("gates", _gates(old), _gates(new)),
        ("environment", _machine(reports[0]), _machine(reports[1])),
    ]
    return tuple(
        Changed(group, name, one.get(name), other.get(name))
        for group, one, other in groups
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    )


def gate_changes(old: Bundle, new: Bundle) -> tuple[GateChange, ...]:
    """Every gate of either bundle, NEW's first."""
    before = {gate.name: gate for gate in old.manifest.gates}
    after = {gate.name: gate for gate in new.manifest.gates}
    found = []
    for name in dict.fromkeys([*after, *before]):
        was, now = before.get(name), after.get(name)
        passed = None if now is None else now.passed
        shown = now or was
        found.append(
            GateChange(
                name=name,
                verdict=gate_verdict(passed),
                old=None if was is None else was.passed,
                new=passed,
                wanted=shown.wanted if shown is not None else "",
                found=now.found if now is not None else "",
            )
        )
    return tuple(found)


def same_engine(old: Bundle, new: Bundle) -> bool:
    """Whether both bundles hold the same engine and were built with the same runtime: nothing can differ then."""
    packages = find_runtime(new.manifest.engine.runtime).packages

    def made_of(bundle: Bundle) -> tuple[object, ...]:
        versions = [bundle.manifest.versions.get(name) for name in packages]
        return bundle.manifest.engine, bundle.recipe.target.engine, versions, _engine_files(bundle)

    return made_of(old) == made_of(new)


def machine_differences(old: Environment, new: Environment, runtimes: set[str]) -> list[str]:
    """What makes stored latencies incomparable: fields of the machine, threads, and the runtimes' packages."""
    one, other = _of_machine(old), _of_machine(new)
    odd = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    odd += ["threads"] if old.threads != new.threads else []
    packages = sorted({name for runtime in runtimes for name in find_runtime(runtime).packages})
    return odd + [name for name in packages if old.packages.get(name) != new.packages.get(name)]


def _sources(bundle: Bundle, other: Bundle) -> Mapping[str, Value]:
    """Hashes of the files that the other was not made from; by file name, for a path says nothing about content."""

    def name_of(path: str) -> str:
        return path.rpartition("/")[2]

    theirs = {(name_of(path), digest) for path, digest in other.manifest.sources.items()}
    own = {path: digest for path, digest in bundle.manifest.sources.items() if (name_of(path), digest) not in theirs}
    by_name = {name_of(path): digest for path, digest in own.items()}
    return by_name if len(by_name) == len(own) else own


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Nested mappings under dotted names, lists whole; what is empty is left out, as if the block were not there."""
    return dict(_leaves(values, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Value]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, (list, tuple)):
            yield f"{prefix}{name}", value
        elif value:
            yield f"{prefix}{name}", list(value)


def _engine_files(bundle: Bundle) -> dict[str, str]:
    """Hashes of what runs."""
    return {name: entry.sha256 for name, entry in bundle.manifest.files.items() if is_of_engine(name)}


def _engine(bundle: Bundle) -> dict[str, Value]:
    """What the recipe does not say: its fields are compared as the recipe's."""
    return {**_engine_files(bundle), "missing": bundle.manifest.engine.missing}


def _sizes(bundle: Bundle) -> dict[str, Value]:
    manifest = bundle.manifest
    return {
        "stored_bytes": manifest.stored_bytes,
        "stored_bits_per_weight": round(manifest.stored_bits_per_weight, 4),
        "runtime_bits_per_weight": round(manifest.runtime_bits_per_weight, 4),
    }


def _selection(bundle: Bundle) -> dict[str, Value]:
    """How the patch was chosen; the recipe has been resolved, so its own fields hold lambda and method."""
    manifest = bundle.manifest
    values: dict[str, Value] = {f"vector {vector.name}": round(vector.weight, 6) for vector in manifest.vectors}
    values |= {"control": manifest.control, "unverified": manifest.unverified}
    chosen = manifest.selection
    if chosen is not None:
        values |= {"by": chosen.by, "images": chosen.images, "shipped": chosen.shipped, "mixing": chosen.mixing}
    return values


def _gates(bundle: Bundle) -> dict[str, Value]:
    return {gate.name: "passed" if gate.passed else "missed" for gate in bundle.manifest.gates}


def _machine(report: Report | None) -> dict[str, Value]:
    return {} if report is None else _of_machine(report.environment)


def _of_machine(environment: Environment) -> dict[str, Value]:
    values = asdict(environment)
    gpu = values.pop("gpu") or {}
    kept = {name: value for name, value in values.items() if name not in _PASSING}
    kept |= {f"gpu.{name}": value for name, value in gpu.items() if name not in _PASSING_GPU}
    return _flat(kept)
