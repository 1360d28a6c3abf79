"""MODEL_CARD.md: what a released model is, what was measured on it, where it comes from, and what is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from qvec_deploy import formatting
from qvec_deploy.bench.decision import Decision, decide
from qvec_deploy.bench.summary import numbered_warnings, rows
from qvec_deploy.bench.warnings import NAMED_CLASSES
from qvec_deploy.bundle.manifest import LAMBDA0
from qvec_deploy.bundle.release.container_image import PICTURES, image_name
from qvec_deploy.bundle.release.release_subject import BOM_FILE, PROVENANCE_FILE, REQUIREMENTS_FILE, RUN_FILE, Subject
from qvec_deploy.bundle.release.signature import SIGNATURE_FILE
from qvec_deploy.io.model_config import PREPROCESSING_FIELDS
from qvec_deploy.io.yaml import dump_yaml
from qvec_deploy.recipe import FLOAT_BITS
from qvec_deploy.report import candidate_text, prose
from qvec_deploy.report import report_verdict as verdict
from qvec_deploy.report.build_report import environment_facts
from qvec_deploy.report.columns import comparison_table
from qvec_deploy.report.page import Table
from qvec_deploy.report.render_markdown import candidate_table, escape, table_text

HUB = re.compile(r"hf://(?P<repository>[^/]+/[^/@]+)")


def model_card(subject: Subject) -> str:
    """The card as Markdown with the Hugging Face Hub's YAML front matter.

    Every statement follows from manifest, recipe and report. No licence and, for a receiver that is a local file, no
    base model is named: nobody has said which.
    """
    manifest, report = subject.manifest, subject.report
    sections = [
        f"---\n{dump_yaml(_front_matter(subject))}---",
        f"# {escape(manifest.name)}",
        _decision(subject),
        _quick_start(subject),
        escape(prose.headline(report, rows(report))),
        "## What it is",
        _definitions(_facts(subject)),
        "## Measurements",
        escape(prose.setup(report)),
        _measurements(subject),
        _warnings(subject),
        "## Gates",
        _gates(subject),
        "## How it was selected",
        escape(
            " ".join((verdict.chosen(subject.report), *verdict.remarks(subject.report)))
            or "It was not selected: the recipe names method and lambda."
        ),
        "## Lineage",
        _lineage(subject),
        "## Use and limits",
        escape(_use(subject)),
        "What is known, and what is not:",
        "\n".join(f"- {escape(sentence)}" for sentence in subject.limits()),
        "## Where it was measured",
        _definitions(fact for fact in environment_facts(report) if fact[0] not in report.environment.packages),
        "## Verify and run",
        _commands(subject),
        f"Written by {escape(report.created_by)} from the bundle of {escape(manifest.created)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _decision(subject: Subject) -> str:
    decision, reason = decide(subject.report), subject.manifest.unverified
    if reason is not None:
        decision = Decision("do not ship", (f"Unverified: {reason}.",))
    return f"**{decision.verdict.capitalize()}:** {escape(' '.join(decision.reasons))}" if decision is not None else ""


def _front_matter(subject: Subject) -> dict[str, object]:
    recipe = subject.recipe
    bits = recipe.quantize.bits
    tags = ["qvec-deploy", "image-classification", "onnx", recipe.target.runtime]
    if bits not in FLOAT_BITS:
        tags += ["quantized", f"{bits}-bit"]
    values: dict[str, object] = {"library_name": "onnx", "pipeline_tag": "image-classification", "tags": tags}
    hub = HUB.match(recipe.receiver.checkpoint)
    if hub is not None:
        values["base_model"] = hub["repository"]
        if bits not in FLOAT_BITS:
            values["base_model_relation"] = "quantized"
    if subject.report.images:
        values["metrics"] = ["accuracy"]
    return values


def _quick_start(subject: Subject) -> str:
    """How to run it without qvec-deploy."""
    if not subject.stands_alone:
        return ""
    commands = (
        "```bash\n"
        f"pip install -r {REQUIREMENTS_FILE}   # ONNX Runtime, numpy, Pillow\n"
        f"python {RUN_FILE} picture.png         # the five most probable classes\n"
        f"python {RUN_FILE} --json *.png        # many pictures, as JSON\n"
        "```"
    )
    if not subject.with_docker:
        return commands
    image = image_name(subject)
    return (
        f"{commands}\n\n"
        "Or in a container, which is built in this folder and used in that of the pictures:\n\n"
        "```bash\n"
        f"docker build -t {image} .\n"
        f'docker run --rm -v "$PWD:{PICTURES}:ro" {image} picture.png\n'
        "```"
    )


def _facts(subject: Subject) -> Iterable[tuple[str, str]]:
    manifest, own = subject.manifest, subject.shipped.candidate
    arguments = ", ".join(f"{name} = {value}" for name, value in sorted(manifest.model.args.items()))
    engine = manifest.engine
    threads = f", {engine.threads} thread{'' if engine.threads == 1 else 's'}" if engine.threads is not None else ""
    yield (
        "Receiver",
        f"{subject.receiver}, timm {manifest.model.name}{f' ({arguments})' if arguments else ''}",
    )
    yield "Takes", f"images of {' × '.join(map(str, manifest.model.input_shape))}, normalised as below"
    model = manifest.model
    named, more = ", ".join(model.class_names[:NAMED_CLASSES]), len(model.class_names) - NAMED_CLASSES
    named = (f": {named}" if named else "") + (f" and {more:,} more, all in manifest.json" if more > 0 else "")
    yield "Gives", f"logits of {model.classes:,} classes{named}"
    origins = model.preprocessing_from or dict.fromkeys(
        (name for name in PREPROCESSING_FIELDS if name in model.data_config), ""
    )
    yield "Preprocessing", formatting.preprocessing(model.data_config, origins).replace(" ()", "")
    yield "Engine", f"{engine.runtime}, lowering {engine.lowering}{threads}"
    yield "Weights", candidate_text.grid(own)
    yield "Method", subject.method
    yield "Patch", candidate_text.mixture(own)
    yield "Bits per weight", f"{candidate_text.bits(own)} (stored / at run time)"
    yield "Size", f"{formatting.megabytes(manifest.stored_bytes)} MB ({manifest.stored_bytes:,} bytes)"
    if manifest.parity is not None:
        parity = manifest.parity
        yield (
            "Agreement with PyTorch",
            f"relative error {parity.relative_error:.1e} on {parity.images} generated images",
        )


def _measurements(subject: Subject) -> str:
    table = comparison_table(subject.report, rows(subject.report))
    unmarked = tuple(replace(entry, marks=()) for entry in table.candidates)  # the doubts below have no numbers
    return candidate_table(replace(table, candidates=unmarked))


def _warnings(subject: Subject) -> str:
    """Each with its remedy, and with its reason where it is about the machine or the shipped candidate; else whom."""
    own = (subject.shipped.candidate.name, "images", "machine")
    lines = []
    for entry in numbered_warnings(subject.report):
        details = "; ".join(detail.rstrip(".") for name, detail in entry.details if name in own)
        others = ", ".join(dict.fromkeys(name for name, _ in entry.details if name not in own))
        named = f"{'Also' if details else 'Others'}: {others}." if others else ""
        about = " ".join(part for part in (f"{details}." if details else "", named, entry.remedy) if part)
        lines.append(f"- **{escape(entry.title.capitalize())}.** {escape(about)}")
    return "Doubts about these numbers:\n\n" + "\n".join(lines) if lines else ""


def _gates(subject: Subject) -> str:
    table = verdict.gates(subject.report)
    return table_text(table) if table is not None else "The recipe asks for none."


def _lineage(subject: Subject) -> str:
    manifest = subject.manifest
    files = table_text(Table("Sources", ("Made from", "File", "SHA-256"), tuple(subject.sources()), "lll"))
    mix = ", ".join(f"{formatting.short(weight)} × {name}" for name, weight in subject.mixture()) or "none"
    facts = [("Lambda", formatting.short(manifest.lam)), ("Vectors in the patch", mix)]
    facts += [("Control", f"{manifest.control}, in place of the vector")] if manifest.control is not None else []
    looked_at = subject.looked_at()
    facts += [("Images", f"{name}: {purpose}") for name, purpose in looked_at or [("none", "nothing was looked at")]]
    facts += [("Recipe", f"recipe.yaml, SHA-256 {manifest.recipe_sha256}")]
    facts += [("Made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())))]
    return f"{files}\n\n{_definitions(facts)}"


def _use(subject: Subject) -> str:
    manifest = subject.manifest
    beside = f" The engine without the patch is in {LAMBDA0}." if f"{LAMBDA0}/model.onnx" in manifest.files else ""
    return (
        f"To sort images of the receiver's task into its {manifest.model.classes:,} classes, on "
        f"{manifest.engine.runtime} with lowering {manifest.engine.lowering}.{beside}"
    )


def _commands(subject: Subject) -> str:
    return (
        f"The manifest holds the hash of every file; {SIGNATURE_FILE}, where there is one, signs them all; {BOM_FILE} "
        f"is the bill of materials; {PROVENANCE_FILE} says how it was made; every sample is in report.json.\n\n"
        "```bash\n"
        "qvec-deploy verify --key public.pem .   # signature, hashes, formats, agreement with PyTorch\n"
        "qvec-deploy verify .                    # the same without signature\n"
        "qvec-deploy bench .                     # latency on this machine\n"
        "```"
    )


def _definitions(entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- **{escape(term)}:** {escape(text)}" for term, text in entries)
