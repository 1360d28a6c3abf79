"""A realistic report: candidates of a 3-bit recipe, with made-up measurements that never change."""

from __future__ import annotations

from dataclasses import replace

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.environment import Environment, GpuState
from qvec_deploy.bench.footprint import Footprint
from qvec_deploy.bench.gates import judge
from qvec_deploy.bench.latency import LatencySamples, StageSamples
from qvec_deploy.bench.results import (
    AnswerChange,
    AnswerCounts,
    Candidate,
    ClassCount,
    ConfidenceBin,
    LayerError,
    LayerTime,
    Patch,
    PatchDonor,
    Report,
    Role,
)
from qvec_deploy.bench.roofline.roofline_values import Device, LayerPrediction, TimePrediction
from qvec_deploy.bench.selection import Confirmed, DonorScore, Selection, SelectionCurve, SelectionPoint
from qvec_deploy.bench.warnings import Finding, accuracy_findings, latency_findings, machine_findings
from qvec_deploy.recipe import Gates
from qvec_deploy.tensors import Scheme

IMAGES = 2700
BLOCKS = 40
LAYERS = [f"blocks.{i}.{part}" for i in range(12) for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]

KINDS_MS = {"attn.qkv": (0.24, 0.16), "attn.proj": (0.09, 0.05), "mlp.fc1": (0.33, 0.21), "mlp.fc2": (0.30, 0.20)}
"""Of one layer, measured in float and predicted at batch 1."""

CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)

DEVICE = Device("AMD EPYC 9575F", "measured", 38.4, {"fp32": 412.0, "int8": 1310.0}, threads=4)

GPU = GpuState(
    name="NVIDIA L4",
    driver="570.86",
    memory_bytes=24 * 2**30,
    sm_clock_mhz=1950.0,
    max_sm_clock_mhz=2040.0,
    memory_clock_mhz=6251.0,
    clocks_locked=False,
    power_w=61.3,
    power_limit_w=72.0,
    temperature_c=58.0,
    throttling=("power cap",),
)

ENVIRONMENT = Environment(
    cpu="AMD EPYC 9575F",
    cpu_flags=("avx2", "avx512_vnni"),
    logical_cores=8,
    usable_cores=4,
    threads=4,
    load_average=0.42,
    memory_bytes=16 * 2**30,
    governor="powersave",
    operating_system="Linux 6.8.0 x86_64",
    python="3.11.7",
    packages={"qvec-deploy": "0.1.0", "torch": "2.11.0", "timm": "1.0.27", "onnx": "1.22.0", "numpy": "2.3.1"},
    affinity=(0, 1, 2, 3),
    frequency_mhz=3280.0,
    load_average_after=3.87,
)

# of the float receiver's class, now another; images, gained, lost
CHANGES = [
    (6, 0, 61, 9, 47),
    (2, 6, 38, 4, 29),
    (3, 8, 22, 3, 17),
    (2, 5, 15, 2, 10),
    (0, 6, 9, 1, 6),
    (8, 3, 7, 0, 5),
    (5, 2, 4, 1, 2),
]

RTN, MSE = Scheme(3, "channel"), Scheme(3, "channel", method="mse")
RECEIVER_CORRECT, PLAIN_CORRECT = 2612, 2011

# name, role, scheme, patch, images right, median ms at batch 1
CANDIDATES: list[tuple[str, Role, Scheme | None, Patch | None, int, float]] = [
    ("float", "float", None, None, RECEIVER_CORRECT, 11.8),
    ("ptq", "ptq", RTN, None, PLAIN_CORRECT, 9.1),
    ("ptq_mse", "ptq", MSE, None, 2371, 9.1),
    ("one_donor", "variant", RTN, Patch(1.0, (PatchDonor("svhn", 1.0),)), 2290, 9.1),
    ("mean", "patched", RTN, Patch(1.0, (PatchDonor("svhn", 0.5), PatchDonor("pets", 0.5))), 2463, 9.1),
    ("random_1", "variant", RTN, Patch(1.0, (), "random direction, same norms, seed 1"), 1996, 9.1),
    ("random_2", "variant", RTN, Patch(1.0, (), "random direction, same norms, seed 2"), 2018, 9.1),
    ("random_3", "variant", RTN, Patch(1.0, (), "random direction, same norms, seed 3"), 1973, 9.1),
]


SELECTION = Selection(
    by="best",
    images="eurosat",
    selecting=200,
    confirming=200,
    on="engine",
    donors=(
        DonorScore("donors/svhn.safetensors", 0.412, 0.471),
        DonorScore("donors/pets.safetensors", 0.498, 0.389),
        DonorScore("donors/stanford_cars_long_name.safetensors", 1.31, -0.062),
    ),
    mixing="ridge",
    curves=(
        SelectionCurve(
            "rtn",
            tuple(
                SelectionPoint(lam, score)
                for lam, score in (
                    (-0.5, 2.31),
                    (-0.25, 1.62),
                    (0.0, 1.153),
                    (0.25, 0.741),
                    (0.5, 0.463),
                    (0.75, 0.294),
                    (1.0, 0.251),
                    (1.125, 0.262),
                    (1.25, 0.289),
                    (1.5, 0.402),
                )
            ),
            best=1.0,
            at_edge=False,
        ),
        SelectionCurve(
            "gptaq",
            (
                SelectionPoint(-0.25, 0.118),
                SelectionPoint(0.0, 0.061),
                SelectionPoint(0.25, 0.064),
                SelectionPoint(1.0, 0.2),
            ),
            0.0,
            at_edge=False,
        ),
        SelectionCurve("mse", (SelectionPoint(0.0, 0.512),), 0.0, at_edge=False),
    ),
    confirmed=(
        Confirmed("ptq", 1.1874, 0.0712),
        Confirmed("mean", 0.2533, 0.0309, 0.9341, 0.0655),
        Confirmed("gptaq", 0.0603, 0.0101),
        Confirmed("ptq_mse", 0.5402, 0.0417),
    ),
    shipped="gptaq",
)
GATES = Gates(beats=("lambda0", "ptq"), max_top1_drop=1.0, max_stored_bits=3.1)


def selecting_report(*, batch_sizes: tuple[int, ...] = (1,)) -> Report:
    """The same with a selection in which no patch was better than lambda 0 of another method, and with gates."""
    report = example_report(batch_sizes=batch_sizes)
    made = replace(_candidate(8, batch_sizes, "gptaq", "variant", MSE, None, 2574, 9.1), method="gptaq")
    report = replace(report, candidates=(*report.candidates, made), selected="gptaq", selection=SELECTION)
    return replace(report, gates=judge(GATES, report))


def gpu_report() -> Report:
    """Two engines on a GPU, whose runs have parts; nothing else was measured."""
    report = example_report(batch_sizes=(1, 8))
    made = []
    for name in ("float", "mean"):
        candidate = report[name]
        latency = tuple(replace(entry, stages=_stages(entry.samples_ms)) for entry in candidate.latency)
        bare = {"accuracy": None, "paired": {}, "layer_times": (), "predictions": ()}
        made.append(replace(candidate, runtime="tensorrt", latency=latency, **bare))
    environment = replace(ENVIRONMENT, gpu=GPU)
    return replace(
        report, candidates=tuple(made), environment=environment, warnings=(), images=0, dataset="none", split="none"
    )


def _stages(samples_ms: tuple[float, ...]) -> StageSamples:
    shares = (0.02, 0.05, 0.88, 0.01)
    return StageSamples(*(tuple(round(share * sample, 4) for sample in samples_ms) for share in shares))


def patched_report(*, by: str = "label_free", images: str = "eurosat") -> Report:
    """The same with a selection that the patch has won, and no gates."""
    (curve, *_), (plain, mean, *_) = SELECTION.curves, SELECTION.confirmed
    points = tuple(replace(point, score=point.score / 4) for point in curve.points)
    selection = replace(
        SELECTION,
        by=by,
        images=images,
        donors=tuple(replace(donor, score=donor.score / 4) for donor in SELECTION.donors),
        curves=(replace(curve, points=points),),
        confirmed=tuple(replace(entry, score=entry.score / 4, error=entry.error / 4) for entry in (plain, mean)),
        shipped="mean",
    )
    return replace(example_report(), selection=selection)


def example_report(*, batch_sizes: tuple[int, ...] = (1,), selected: str | None = "mean") -> Report:
    """The same report for the same arguments, on any machine; nothing was selected, there are no gates."""
    candidates = tuple(_candidate(index, batch_sizes, *entry) for index, entry in enumerate(CANDIDATES))
    return Report(
        title="EuroSAT classifier at 3 bits",
        recipe="edge_3bit",
        dataset="eurosat",
        split="test",
        images=IMAGES,
        candidates=candidates,
        baseline="float",
        selected=selected,
        warmup=10,
        environment=ENVIRONMENT,
        warnings=_warnings(candidates, batch_sizes),
        created_by="qvec-deploy 0.1.0",
        class_names=CLASSES,
        device=DEVICE,
    )


def _wobble(seed: int, size: int) -> list[float]:
    """Numbers in [0, 1) that look irregular and are the same with every version of numpy."""
    golden = 0.6180339887498949
    return [(golden * (seed * 31 + index + 1)) % 1.0 for index in range(size)]


def _samples_ms(seed: int, median_ms: float) -> tuple[float, ...]:
    """Most samples within 3 % of the median, a few slow; blocks disturb all candidates alike."""
    block, own = _wobble(0, BLOCKS), _wobble(seed, BLOCKS)
    return tuple(round(median_ms * (0.98 + 0.03 * b**4 + 0.03 * o), 4) for b, o in zip(block, own, strict=True))


def _candidate(
    index: int,
    batch_sizes: tuple[int, ...],
    name: str,
    role: Role,
    scheme: Scheme | None,
    patch: Patch | None,
    correct: int,
    median_ms: float,
) -> Candidate:
    quantized = scheme is not None
    base = 0.19 if scheme is MSE else 0.22
    errors = tuple(
        LayerError(layer, round(base + 0.05 * w, 4))
        for layer, w in zip(LAYERS, _wobble(index, len(LAYERS)), strict=True)
    )
    return Candidate(
        name=name,
        role=role,
        scheme=scheme,
        method=scheme.method if scheme is not None else "rtn",
        skip=("head", "patch_embed") if quantized else (),
        patch=patch,
        runtime="onnxruntime-cpu",
        lowering="int4" if quantized else "float",
        stored_bytes=8_571_904 if quantized else 86_743_296,
        stored_bits_per_weight=3.0417 if quantized else 32.0,
        runtime_bits_per_weight=4.0417 if quantized else 32.0,
        accuracy=_answers(correct, is_float=not quantized),
        paired={
            other: _paired(correct, against)
            for other, against in (("float", RECEIVER_CORRECT), ("ptq", PLAIN_CORRECT))
            if other != name
        },
        latency=tuple(
            LatencySamples(batch, _samples_ms(7 * index + batch, median_ms * batch**0.9), warmup=14)
            for batch in batch_sizes
        ),
        footprint=Footprint(
            load_s=0.08 if quantized else 0.21,
            baseline_rss_bytes=88_000_000,
            rss_bytes=112_000_000 if quantized else 190_000_000,
            peak_rss_bytes=131_000_000 if quantized else 278_000_000,
        ),
        layer_errors=errors if quantized else (),
        layer_times=_layer_times(index, median_ms / 11.8) if batch_sizes else (),
        predictions=tuple(_prediction(batch, 0.9 if quantized else 1.0) for batch in batch_sizes),
    )


def _answers(correct: int, *, is_float: bool) -> AnswerCounts:
    """Answers whose parts add up: classes and bins to all images, changes to gains and losses."""
    per_class, wrong = IMAGES // len(CLASSES), IMAGES - correct
    missed = [wrong * share // 24 for share in (3, 0, 5, 4, 1, 2, 6, 0, 2, 1)]
    missed[6] += wrong - sum(missed)
    counts = [ClassCount(label, per_class - count, per_class) for label, count in enumerate(missed)]
    shares = (0, 0, 0.002, 0.008, 0.02, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.07, 0.1, 0.14)
    sizes = [round(share * IMAGES) for share in shares]
    sizes.append(IMAGES - sum(sizes))
    left, hits = correct, []
    for size in reversed(sizes):  # from the surest images down, a few of each bin wrong
        hits.insert(0, min(left, round(size * 0.96)))
        left -= hits[0]
    hits[-1] += left
    confidences = [round(size * (place + 0.6) / 15, 4) for place, size in enumerate(sizes)]
    bins = [ConfidenceBin(*entry) for entry in zip(sizes, hits, confidences, strict=True)]
    changes = () if is_float else tuple(AnswerChange(*entry) for entry in CHANGES)
    top5 = correct + (IMAGES - correct) * 7 // 10
    return AnswerCounts(correct, IMAGES, top5, tuple(counts), tuple(bins), changes, waited=0.04)


def _layer_times(index: int, pace: float) -> tuple[LayerTime, ...]:
    wobble = _wobble(index + 3, len(LAYERS))
    times = [
        LayerTime(layer, round(KINDS_MS[layer.split(".", 2)[2]][0] * pace * (0.9 + 0.2 * w), 4))
        for layer, w in zip(LAYERS, wobble, strict=True)
    ]
    return (*times, LayerTime("rest", 0.61))


def _prediction(batch: int, pace: float) -> TimePrediction:
    scale = pace * batch**0.85
    layers = [
        LayerPrediction(layer, round(KINDS_MS[layer.split(".", 2)[2]][1] * scale, 4), "compute") for layer in LAYERS
    ]
    return TimePrediction(batch, (*layers, LayerPrediction("rest", round(0.18 * scale, 4), "memory")))


def _paired(correct: int, against: int) -> PairedAnswers:
    """Two accuracies on the same images that disagree a little more than they must."""
    extra = 40
    gained, lost = max(correct - against, 0) + extra, max(against - correct, 0) + extra
    return PairedAnswers(gained, lost, agreeing=IMAGES - gained - lost - 38, count=IMAGES)


def _warnings(candidates: tuple[Candidate, ...], batch_sizes: tuple[int, ...]) -> tuple[Finding, ...]:
    findings = machine_findings(ENVIRONMENT)
    for index, _ in enumerate(batch_sizes):
        findings += latency_findings({entry.name: entry.latency[index] for entry in candidates}, "float")
    for entry in candidates:
        if "ptq" in entry.paired:
            pair = entry.paired["ptq"]
            findings += accuracy_findings(entry.name, "ptq", pair.gained, pair.lost, pair.count)
    return tuple(findings)
