"""What a reader needs before anything else: the decision, what is known, the file and how to run it, and the words."""

from __future__ import annotations

from collections.abc import Sequence

from qvec_deploy import formatting
from qvec_deploy.bench.decision import Decision, Verdict, decide
from qvec_deploy.bench.results import Candidate, Report
from qvec_deploy.bench.summary import CandidateRow, NumberedWarning, numbered_warnings
from qvec_deploy.quantize.methods import METHODS
from qvec_deploy.report import prose
from qvec_deploy.report.accuracy_section import class_costs
from qvec_deploy.report.page import Answer, Block, Commands, Facts, Points, Prose
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE
from qvec_deploy.runtimes.registry import RUNTIMES

STYLES: dict[Verdict, str] = {"ship": "passed", "do not ship": "missed", "you decide": "none"}
_FILE: dict[Verdict, str] = {
    "ship": "The file to ship",
    "do not ship": "The file, which should not be shipped",
    "you decide": "The file, if you ship it",
}
_FLOAT = "Your model as it is, not quantized: what everything else is held against."
_PATCH = "A difference of weights, learned by models of other tasks, that is added to yours before it is quantized."
_LAMBDA = "How much of the patch is added: 0 is none of it, 1 all of it."
_CONTROL = "Something of the patch's size but without its knowledge, in its place: a real patch has to beat it."


def answer(report: Report) -> Answer | None:
    """The decision and its reasons; None where nothing is to be decided."""
    decision = decide(report)
    if decision is None:
        return None
    return Answer(f"{decision.verdict.capitalize()}:", " ".join(decision.reasons), style=STYLES[decision.verdict])


def known(report: Report, computed: Sequence[CandidateRow]) -> tuple[Block, ...]:
    """What the numbers say beside the tiles, which classes pay, and how many doubts there are."""
    row = next((row for row in computed if row.selected), None)
    if row is None:
        return ()
    said = (*prose.remarkable(report, row, computed), *class_costs(report))
    blocks: list[Block] = [Points(said)] if said else []
    warnings = numbered_warnings(report)
    return (*blocks, Prose(doubts_line(warnings), "remark", ("warnings", "See them"))) if warnings else tuple(blocks)


def doubts_line(warnings: Sequence[NumberedWarning]) -> str:
    """How many doubts there are, and about what."""
    listed = ", ".join(f"{entry.title} ({len(entry.details)})" for entry in warnings)
    return f"{len(warnings)} doubt{'' if len(warnings) == 1 else 's'} about these numbers: {listed}."


def file_and_commands(report: Report) -> tuple[Block, ...]:
    """What is to be shipped, and how it is run; empty where nothing is to be decided."""
    decision = decide(report)
    if decision is None or report.selected is None:
        return ()
    return (Facts(_file(report[report.selected]), _FILE[decision.verdict]), Commands(_commands(report, decision)))


def _file(candidate: Candidate) -> tuple[tuple[str, str], ...]:
    size = formatting.megabytes(candidate.stored_bytes)
    row = RUNTIMES.get(candidate.runtime)
    how = "opened by any ONNX Runtime" if row is None or row.stands_alone else f"run by qvec-deploy on {row.name}"
    if row is not None and row.compiles:
        anywhere = f"beside them the engine for {row.name}"
        how = anywhere if row.compute_capabilities else f"compiled for {row.name} where the engine runs"
    return (
        ("Engine", f"{MODEL_FILE}, with {WEIGHTS_FILE} beside it: {size} MB together, {how}."),
        ("BUNDLE", f"The folder of {MODEL_FILE}: that of this page, unless it was written elsewhere."),
    )


def _commands(report: Report, decision: Decision) -> tuple[str, ...]:
    row = RUNTIMES.get(report[report.selected or ""].runtime)
    lines = ["# the five most probable classes of a picture", "qvec-deploy predict BUNDLE picture.png"]
    if row is not None and row.compiles and not row.compute_capabilities:
        lines = ["# the engine, on the device", "qvec-deploy compile BUNDLE", *lines]
    if decision.verdict != "do not ship":
        lines += ["# checked, with all that a device needs", "qvec-deploy release BUNDLE --to release/NAME"]
    return tuple(lines)


def words(report: Report) -> Facts:
    """What the words of the tables mean, those that occur."""
    quantized = [candidate for candidate in report.candidates if candidate.scheme is not None]
    plain, patches = report.first("ptq"), [entry.patch for entry in quantized if entry.patch is not None]
    found = [("float", _FLOAT)] if report.first("float") is not None else []
    if plain is not None and plain.name == "ptq":
        found.append(("ptq", f"Post-training quantization: {plain.method}, without a patch."))
    for method in dict.fromkeys(candidate.method for candidate in quantized):
        if method in METHODS and METHODS[method].meaning:
            found.append((method, METHODS[method].meaning))
    found += [("patch", _PATCH), ("λ, lambda", _LAMBDA)] if patches else []
    found += [("control", _CONTROL)] if any(patch.control for patch in patches) else []
    return Facts(tuple(found), "Words")
