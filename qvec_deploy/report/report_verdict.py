"""How the shipped candidate was chosen and what the recipe's gates say of it: sentences and small tables."""

from __future__ import annotations

from collections.abc import Callable

from qvec_deploy import formatting
from qvec_deploy.bench.results import GateResult, Report
from qvec_deploy.bench.selection import Confirmed, Selection
from qvec_deploy.datasets.generated import PREFIX as GENERATED
from qvec_deploy.report.page import Table
from qvec_deploy.vectors.short_names import short_names

MIXING = {
    "given": "mixed as the recipe says",
    "one": "the best single one taken",
    "ridge": "mixed by ridge regression of the logits",
    "descent": "mixed by gradient descent on the divergence",
}


def quantity(selection: Selection) -> tuple[str, str]:
    """What a score is and its unit; less is better."""
    return ("wrong answers", "%") if selection.by == "labelled" else ("divergence", "nats")


def factor(selection: Selection) -> float:
    """From a score to its unit."""
    return 100.0 if selection.by == "labelled" else 1.0


def images_of(selection: Selection) -> str:
    """What selected, in words."""
    source = "that the tool generated" if selection.images.startswith(GENERATED) else f"of {selection.images}"
    return f"{selection.selecting:,} images {source}"


def donor_names(selection: Selection) -> tuple[str, ...]:
    """Names of vector files as short as tells them apart."""
    return short_names([donor.name for donor in selection.donors])


def chosen(report: Report) -> str:
    """How the shipped candidate was selected and confirmed, with its score and its rival's; empty without selection.

    The rival of a patch is the best finalist at lambda 0, and that of lambda 0 the best patch.
    """
    selection = report.selection
    if selection is None:
        return ""
    shipped = next(entry for entry in selection.confirmed if entry.name == selection.shipped)
    means = {
        "labelled": "by labels",
        "label_free": "label-free",
        "best": f"label-free over {len(selection.curves)} method{'s' if len(selection.curves) > 1 else ''}",
    }[selection.by]
    what, unit = quantity(selection)
    score = f"{what} {_plus_minus(selection, shipped)} {unit}"
    rival = _rival(report, selection, shipped)
    if rival is not None:
        score += f" against {_plus_minus(selection, rival)} {unit} of {_with_lambda(report, rival)}"
    place = "the built engines" if selection.on == "engine" else selection.on
    return (
        f"{_with_lambda(report, shipped)}, {means}, on {images_of(selection)}, confirmed on {selection.confirming:,} "
        f"others with {place}: {score}; ± is one standard error."
    )


def remarks(report: Report) -> tuple[str, ...]:
    """What a reader must not overlook about the selection."""
    selection = report.selection
    if selection is None:
        return ()
    found = []
    tried = any(len(curve.points) > 1 for curve in selection.curves)  # else there was no vector to try
    if tried and _lam(report, selection.shipped) == 0:
        patched = any(_lam(report, entry.name) != 0 for entry in selection.confirmed)
        shipped = next(entry for entry in selection.confirmed if entry.name == selection.shipped)
        no_better = "The patch was not clearly better" if patched else "No lambda was better than 0"
        if shipped.changed == 0:
            no_better = f"Without a patch it gives float's answer to all {selection.confirming:,} confirming images"
        found.append(f"{no_better}: lambda 0 was taken, without a patch.")
    if selection.images.startswith(GENERATED):
        found.append("It was selected and confirmed on generated images only, on none of the receiver's task.")
    return tuple(found)


def missed(report: Report) -> str:
    """`misses 1 of 3 gates: beats lambda0`; empty where none is missed."""
    names = [gate.name for gate in report.gates if not gate.passed]
    return f"{standing(report)[0]}: {', '.join(names)}" if names else ""


def standing(report: Report) -> tuple[str, str]:
    """Whether the shipped candidate is within the gates, in a few words, and `passed`, `missed` or `none` for it."""
    if not report.gates:
        return "no gates", "none"
    total, names = len(report.gates), [gate.name for gate in report.gates if not gate.passed]
    if names:
        return f"misses {len(names)} of {total} gate{'s' if total > 1 else ''}", "missed"
    return f"passes all {total} gates" if total > 1 else "passes its gate", "passed"


def verdict_of(gate: GateResult) -> str:
    """`passed` or `MISSED`, told apart without colour."""
    return "passed" if gate.passed else "MISSED"


def finalists(report: Report) -> Table | None:
    """The candidates between which the confirmation decided."""
    selection = report.selection
    if selection is None:
        return None
    what, unit = quantity(selection)
    columns: dict[str, Callable[[Confirmed], str]] = {
        "Finalist": lambda entry: entry.name,
        "Method": lambda entry: report[entry.name].method,
        "λ": lambda entry: formatting.short(_lam(report, entry.name)),
        f"{what.capitalize()}, {unit}": lambda entry: _texts(selection, entry)[0],
        "Standard error": lambda entry: _texts(selection, entry)[1],
        "Better than its λ = 0 by": lambda entry: _gain(selection, entry),
    }
    title = f"Finalists, on {selection.confirming:,} images that chose nothing"
    return Table.of(title, selection.confirmed, columns, words=2, shipped=selection.shipped)


def donors(report: Report) -> Table | None:
    """Every donor alone and its weight in the mix; None with a single one."""
    selection = report.selection
    if selection is None or not selection.donors:
        return None
    what, unit = quantity(selection)
    scale, columns = factor(selection), ("Donor", f"Alone at λ = 1: {what}, {unit}", "Weight in the mix")
    rows = tuple(
        (name, formatting.three(scale * donor.score), formatting.signed_text(f"{donor.weight:.3f}"))
        for name, donor in zip(donor_names(selection), selection.donors, strict=True)
    )
    return Table(f"Donors, {MIXING[selection.mixing]}", columns, rows, "lrr")


def gates(report: Report) -> Table | None:
    """Wanted and found; None without gates."""
    if not report.gates:
        return None
    rows = tuple((gate.name, gate.wanted, gate.found, verdict_of(gate)) for gate in report.gates)
    return Table("Gates", ("Gate", "Wanted", "Found", "Result"), rows, "llll", titled=False)


def _lam(report: Report, name: str) -> float:
    patch = report[name].patch
    return patch.lam if patch is not None else 0.0


def _with_lambda(report: Report, entry: Confirmed) -> str:
    return f"{entry.name} (λ = {formatting.short(_lam(report, entry.name))})"


def _rival(report: Report, selection: Selection, shipped: Confirmed) -> Confirmed | None:
    others = [entry for entry in selection.confirmed if entry.name != shipped.name]
    patched = _lam(report, shipped.name) != 0
    unlike = [entry for entry in others if (_lam(report, entry.name) != 0) != patched]
    return min(unlike or others, key=lambda entry: entry.score, default=None)


def _texts(selection: Selection, entry: Confirmed) -> tuple[str, str]:
    scale = factor(selection)
    return formatting.with_error(scale * entry.score, scale * entry.error)


def _gain(selection: Selection, entry: Confirmed) -> str:
    if entry.gain is None or entry.gain_error is None:
        return formatting.NONE
    scale = factor(selection)
    return " ± ".join(formatting.with_error(scale * entry.gain, scale * entry.gain_error))


def _plus_minus(selection: Selection, entry: Confirmed) -> str:
    return " ± ".join(_texts(selection, entry))
