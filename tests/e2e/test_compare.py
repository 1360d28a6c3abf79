"""`compare` on two built pico bundles, through the command line: every verdict, every exit code, every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qvec_deploy.bench.accuracy import PairedAnswers
from qvec_deploy.bench.footprint import Footprint
from qvec_deploy.bench.latency import LatencySamples
from qvec_deploy.bench.predictions import PREDICTIONS_FILE, Predictions, read_predictions, write_predictions
from qvec_deploy.bench.results import Report
from qvec_deploy.bundle.bundle import Bundle
from qvec_deploy.bundle.compare_stored import paired_answers
from qvec_deploy.bundle.manifest import Gate, hash_files, read_manifest, write_manifest
from qvec_deploy.report.report_json import from_json, to_json

Run = Callable[..., tuple[int, str, str]]
COUNT = 5000
STEADY_MS = tuple(10 + 0.01 * (index % 7) for index in range(60))


@pytest.fixture(scope="module")
def _images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(10):
        place = folder / "test" / f"class{label}"
        place.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture
def pair(build_once: Callable[..., Path], _images: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of two evaluated bundles, of lowering int4 and packed, this test's own."""
    evaluate = {"dataset": "folder", "root": str(_images)}
    built = {name: build_once(name, evaluate=evaluate, name=name, target__lowering=name) for name in ("int4", "packed")}
    old, new = (Path(shutil.copytree(path, tmp_path / name)) for name, path in built.items())
    return old, new


def rewrite(bundle: Path, **manifest: Any) -> None:
    """Write the manifest anew after a file or one of its own fields was changed."""
    before = read_manifest(bundle)
    files = hash_files(bundle, [name for name in before.files if (bundle / name).exists()])
    write_manifest(bundle, before.model_copy(update={"files": files, **manifest}))


def keep_answers(bundle: Path, wrong: range, *, images: str = "0" * 64, count: int = COUNT) -> None:
    """Give a bundle answers to `count` images that are right but for a range of them."""
    labels = np.zeros(count, np.int32)
    predicted = labels.copy()
    predicted[wrong.start : wrong.stop] = 1
    answers = Predictions(labels, {read_manifest(bundle).name: predicted}, images, "scripted", "test")
    write_predictions(bundle / PREDICTIONS_FILE, answers)
    rewrite(bundle)


def keep_samples(bundle: Path, samples_ms: tuple[float, ...], **environment: Any) -> None:
    """Give the shipped candidate of a bundle's report other latencies, and the report another environment."""
    report = from_json((bundle / "report.json").read_bytes())
    candidates = tuple(replace(candidate, latency=(LatencySamples(1, samples_ms),)) for candidate in report.candidates)
    changed = replace(report.environment, **environment)
    (bundle / "report.json").write_bytes(to_json(replace(report, candidates=candidates, environment=changed)))
    rewrite(bundle)


@pytest.fixture(autouse=True)
def no_footprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison does not show memory: spare its two processes an engine."""
    monkeypatch.setattr("qvec_deploy.bench.run._probe", lambda *_: Footprint(0.1, 1, 2, 3))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the measurement give scripted samples: NEW takes `factor` times as long as OLD."""

    def script(factor: float) -> None:
        def fake(directories: Sequence[Path], **_: Any) -> Report:
            reports = [from_json((directory / "report.json").read_bytes()) for directory in directories]
            samples = STEADY_MS, tuple(factor * sample for sample in STEADY_MS)
            old, new = (
                replace(report[str(report.selected)], name=name, accuracy=None, latency=(LatencySamples(1, taken),))
                for report, name, taken in zip(reports, ("a", "b"), samples, strict=True)
            )
            return replace(reports[0], candidates=(old, new), baseline="a", selected=None, gates=())

        monkeypatch.setattr("qvec_deploy.bundle.compare.bench_bundles", fake)

    return script


def compare(run: Run, *arguments: object) -> tuple[int, dict[str, Any], str]:
    code, out, err = run("compare", *arguments, "--json")
    return code, json.loads(out), err


def test_a_path_is_no_content(pair: tuple[Path, Path], run: Run) -> None:
    """The same files from elsewhere are the same; another file of the same name is one change."""
    old, new = pair
    name, digest = next(iter(read_manifest(new).sources.items()))
    moved = {f"/elsewhere/{Path(path).name}": found for path, found in read_manifest(new).sources.items()}
    rewrite(new, sources=moved)
    _, found, _ = compare(run, old, new, "--stored")
    assert "sources" not in {entry["group"] for entry in found["changes"]}
    rewrite(new, sources={**moved, f"/elsewhere/{Path(name).name}": "0" * 64})
    _, found, _ = compare(run, old, new, "--stored")
    (change,) = [entry for entry in found["changes"] if entry["group"] == "sources"]
    assert (change["field"], change["old"], change["new"]) == (Path(name).name, digest, "0" * 64)


def test_two_real_bundles(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    code, found, _ = compare(run, *pair, "--blocks", "8", "--size-tolerance", "0.5", "-o", tmp_path / "out")
    assert (found["old"]["lowering"], found["new"]["lowering"]) == ("int4", "packed")
    fields = {(entry["group"], entry["field"]): (entry["old"], entry["new"]) for entry in found["changes"]}
    assert fields["recipe", "target.lowering"] == ("int4", "packed")
    assert fields["recipe", "name"] == ("int4", "packed")
    assert fields["sizes", "runtime_bits_per_weight"][1] == 32
    assert not {"versions", "sources", "environment"} & {group for group, _ in fields}
    # Both lowerings give the same codes and nearly the same logits, on 20 images.
    assert found["accuracy"]["source"] == "stored" and found["accuracy"]["paired"]["count"] == 20
    assert found["accuracy"]["verdict"] == "UNSURE" and found["accuracy"]["p"] == 1
    (latency,) = found["latency"]
    assert latency["source"] == "measured" and latency["batch_size"] == 1
    assert len(latency["old"]["samples_ms"]) == len(latency["new"]["samples_ms"]) == 8
    assert (latency["verdict"], latency["ratio"]) == ("UNSURE", None)
    assert latency["reason"] == "22 more blocks are needed for a verdict"
    assert found["environment"]["threads"] == 1
    assert code == (3 if found["derived"]["outcome"] == "REGRESSION" else 0)
    assert json.loads((tmp_path / "out" / "comparison.json").read_bytes()) == found
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert markdown.startswith(f"# {found['derived']['outcome']}: packed (onnxruntime, packed) against int4")


def test_the_terminal_shows_words_and_evidence(
    pair: tuple[Path, Path], run: Run, clock: Callable[[float], None]
) -> None:
    clock(0.5)
    code, out, err = run("compare", *pair, "--quiet")
    assert code == 0, err
    assert "FASTER" in out and "2.00× as fast" in out and "at 99 %, 60 blocks" in out
    assert (
        "unsure: accuracy: 20 images reveal a loss of 37 points in four of five cases" in out
        and "recipe: target.lowering" in out
    )
    assert err == ""


def test_a_bundle_and_itself_are_the_same(pair: tuple[Path, Path], run: Run) -> None:
    for options in ((), ("--stored",)):
        code, found, _ = compare(run, pair[0], pair[0], "--strict", *options)
        assert code == 0 and found["changes"] == [] and found["derived"]["outcome"] == "OK"
        words = [found["accuracy"], found["latency"][0], found["size"]]
        assert [entry["verdict"] for entry in words] == ["SAME"] * 3
        assert found["accuracy"]["old_correct"] == found["accuracy"]["new_correct"]


def test_another_runtime_version_is_not_the_same_engine(pair: tuple[Path, Path], run: Run) -> None:
    old, _ = pair
    new = Path(shutil.copytree(old, old.parent / "rebuilt"))
    versions = read_manifest(new).versions
    name = "onnxruntime-gpu" if "onnxruntime-gpu" in versions else "onnxruntime"
    rewrite(new, versions={**versions, name: "0.0.1"})
    _, found, _ = compare(run, old, new, "--blocks", "6")
    assert [(entry["group"], entry["field"]) for entry in found["changes"]] == [("versions", name)]
    assert found["latency"][0]["source"] == "measured" and found["accuracy"]["source"] == "stored"


@pytest.mark.parametrize(
    ("factor", "options", "word", "code"),
    [
        (0.5, (), "FASTER", 0),
        (1.0, (), "SAME", 0),
        (1.5, (), "SLOWER", 3),
        (1.5, ("--latency-tolerance", "0.6"), "SAME", 0),
    ],
)
def test_latency_verdicts(
    pair: tuple[Path, Path],
    run: Run,
    clock: Callable[[float], None],
    factor: float,
    options: tuple[str, ...],
    word: str,
    code: int,
) -> None:
    clock(factor)
    ended, found, err = compare(run, *pair, *options)
    assert found["latency"][0]["verdict"] == word and ended == code
    assert ("latency at batch size 1 is SLOWER" in err) is (code == 3)


@pytest.mark.parametrize(
    ("old_wrong", "new_wrong", "options", "word", "code"),
    [
        (range(0), range(5), (), "SAME", 0),
        (range(200), range(50), (), "BETTER", 0),
        (range(50), range(200), (), "WORSE", 3),
        (range(50), range(200), ("--accuracy-tolerance", "4"), "SAME", 0),
        (range(50), range(200), ("--accuracy-tolerance", "3.2"), "WORSE", 0),
        (range(100), range(100, 205), (), "UNSURE", 0),
        (range(100), range(100, 205), ("--strict",), "UNSURE", 3),
    ],
)
def test_accuracy_verdicts(
    pair: tuple[Path, Path],
    run: Run,
    clock: Callable[[float], None],
    old_wrong: range,
    new_wrong: range,
    options: tuple[str, ...],
    word: str,
    code: int,
) -> None:
    clock(1.0)
    old, new = pair
    keep_answers(old, old_wrong)
    keep_answers(new, new_wrong)
    ended, found, err = compare(run, old, new, *options)
    assert found["accuracy"]["verdict"] == word and ended == code
    assert found["accuracy"]["paired"]["lost"] == len(set(new_wrong) - set(old_wrong))
    assert found["accuracy"]["old_correct"] == COUNT - len(old_wrong)
    assert ("accuracy" in err) is (code == 3)


def test_kept_answers_of_two_bundles_are_paired_without_a_comparison(pair: tuple[Path, Path]) -> None:
    old, new = pair
    keep_answers(old, range(100))
    keep_answers(new, range(40, 110))
    found = paired_answers(Bundle.open(new), Bundle.open(old))
    assert found == PairedAnswers(gained=40, lost=10, agreeing=COUNT - 50, count=COUNT)
    keep_answers(new, range(5), images="1" * 64)
    assert paired_answers(Bundle.open(new), Bundle.open(old)) is None
    (new / PREDICTIONS_FILE).unlink()
    rewrite(new)
    assert paired_answers(Bundle.open(new), Bundle.open(old)) is None


def test_answers_to_other_images_are_measured_anew(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    keep_answers(new, range(5), images="1" * 64)
    _, found, _ = compare(run, old, new, "--blocks", "6")
    assert found["accuracy"]["source"] == "measured" and found["accuracy"]["paired"]["count"] == 20
    assert found["accuracy"]["dataset"] == "folder"


def test_answers_to_other_images_are_unsure_where_those_are_not_here(
    pair: tuple[Path, Path], run: Run, _images: Path, tmp_path: Path
) -> None:
    old, new = pair
    keep_answers(new, range(5), images="1" * 64)
    code, found, _ = compare(run, old, new, "--stored")
    assert code == 0 and found["accuracy"]["verdict"] == "UNSURE"
    assert "evaluated on other images" in found["accuracy"]["reason"]
    moved = _images.rename(_images.with_name("moved"))
    try:
        _, found, _ = compare(run, old, new, "--blocks", "6")
        assert found["accuracy"]["verdict"] == "UNSURE" and found["accuracy"]["source"] is None
        assert "images cannot be opened here" in found["accuracy"]["reason"]
        assert found["latency"][0]["source"] == "measured"
        _, found, _ = compare(run, old, new, "--blocks", "6", "--data", moved)
        assert found["accuracy"]["source"] == "measured"
    finally:
        moved.rename(_images)
    code, out, err = run("compare", old, new, "--blocks", "6", "--data", tmp_path / "nowhere", "--json")
    assert code == 6 and json.loads(out)["exit_code"] == 6 and "no such folder" in err


def test_bundles_that_were_never_evaluated(bundle: Path, pair: tuple[Path, Path], run: Run) -> None:
    never = Path(shutil.copytree(bundle, bundle.parent / "again"))
    rewrite(never, versions={})  # or it would be the same engine
    _, found, _ = compare(run, bundle, never, "--blocks", "6")
    reason = found["accuracy"]["reason"]
    assert found["accuracy"]["verdict"] == "UNSURE"
    assert reason == "OLD keeps no answers to labelled images; neither recipe has `evaluate`"
    _, found, _ = compare(run, bundle, pair[1], "--blocks", "6")  # NEW's recipe names images
    assert found["accuracy"]["source"] == "measured" and found["accuracy"]["paired"]["count"] == 20


def test_stored_samples(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    keep_samples(old, STEADY_MS)
    keep_samples(new, tuple(2 * sample for sample in STEADY_MS[:40]))
    code, found, _ = compare(run, old, new, "--stored")
    (latency,) = found["latency"]
    assert code == 0 and latency["verdict"] == "SLOWER" and found["derived"]["outcome"] == "UNSURE"
    assert compare(run, old, new, "--stored", "--strict")[0] == 3
    assert latency["source"] == "stored" and "not paired" in latency["reason"] and found["environment"] is None
    assert latency["ratio"]["value"] == pytest.approx(0.5)
    assert [len(latency[side]["samples_ms"]) for side in ("old", "new")] == [60, 40]
    _, out, _ = run("compare", old, new, "--stored")
    assert "60 and 40 runs; separate runs, not paired" in " ".join(out.split())
    keep_samples(new, tuple(2 * sample for sample in STEADY_MS[:12]))
    _, found, _ = compare(run, old, new, "--stored")
    assert found["latency"][0]["verdict"] == "UNSURE" and found["latency"][0]["reason"].startswith("18 more blocks")
    _, found, _ = compare(run, old, new, "--stored", "--batch-size", "4")
    assert "no batch size in common" in found["latency"][0]["reason"]


def test_stored_samples_of_another_machine_are_unsure(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    keep_samples(old, STEADY_MS)
    keep_samples(new, STEADY_MS, cpu="another", threads=7)
    code, found, _ = compare(run, old, new, "--stored")
    (latency,) = found["latency"]
    assert code == 0 and latency["verdict"] == "UNSURE" and latency["batch_size"] is None
    assert "different places (cpu, threads differ); compare without --stored" in latency["reason"]
    assert ("environment", "cpu") in {(entry["group"], entry["field"]) for entry in found["changes"]}
    assert compare(run, old, new, "--stored", "--strict")[0] == 3


def test_stored_without_a_report_is_unsure(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    (new / "report.json").unlink()
    rewrite(new)
    _, found, _ = compare(run, old, new, "--stored")
    assert "NEW has no report" in found["latency"][0]["reason"]


@pytest.mark.parametrize("change", [{"schema_version": 1}, {"a field of another version": 1}])
def test_a_report_that_another_version_wrote_is_no_damage(
    pair: tuple[Path, Path], run: Run, clock: Callable[[float], None], change: dict[str, Any]
) -> None:
    old, new = pair
    report = json.loads((old / "report.json").read_bytes())
    (old / "report.json").write_text(json.dumps({**report, **change}))
    rewrite(old)
    code, found, _ = compare(run, old, new, "--stored")
    assert code == 0 and "OLD has no report that can be read here" in found["latency"][0]["reason"]
    assert {"environment"} <= {entry["group"] for entry in found["changes"]}


@pytest.mark.parametrize(("tolerance", "code"), [("0.01", 3), ("0.2", 0)])
def test_a_larger_bundle(
    pair: tuple[Path, Path], run: Run, clock: Callable[[float], None], tolerance: str, code: int
) -> None:
    clock(1.0)
    old, new = pair
    grown = int(1.1 * read_manifest(old).stored_bytes)
    rewrite(new, stored_bytes=grown)
    ended, found, err = compare(run, old, new, "--size-tolerance", tolerance)
    assert ended == code and found["size"]["new_bytes"] == grown
    assert found["size"]["verdict"] == ("LARGER" if code else "SAME") and ("size is LARGER" in err) is bool(code)


def test_gates_that_old_passed(pair: tuple[Path, Path], run: Run, clock: Callable[[float], None]) -> None:
    clock(1.0)
    old, new = pair
    kept = Gate(name="max_stored_bits", wanted="at most 4", found="3.2", passed=True)
    lost = Gate(name="min_speedup", wanted="at least 2×", found="2.4×", passed=True)
    rewrite(old, gates=(kept, lost))
    rewrite(new, gates=(kept, lost.model_copy(update={"passed": False, "found": "1.1×"})))
    code, found, err = compare(run, old, new)
    assert code == 3 and "gate min_speedup is MISSED: wanted at least 2×, found 1.1×" in err
    assert [gate["verdict"] for gate in found["gates"]] == ["PASSED", "MISSED"]
    rewrite(new, gates=(kept,))
    code, found, _ = compare(run, old, new)
    assert code == 0 and "gate min_speedup: not judged" in found["derived"]["doubts"]
    assert ("gates", "min_speedup") in {(entry["group"], entry["field"]) for entry in found["changes"]}
    assert compare(run, old, new, "--strict")[0] == 3


def test_an_engine_that_cannot_be_opened_here_is_unsure(
    pair: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qvec_deploy.errors import IncompatibleError

    old, new = pair
    real = Bundle.session

    def refuse(self: Bundle, **options: Any) -> Any:
        if self.directory == new:
            raise IncompatibleError("no such runtime here", hint="install it")
        return real(self, **options)

    monkeypatch.setattr(Bundle, "session", refuse)
    code, found, _ = compare(run, old, new)
    assert code == 0 and found["derived"]["outcome"] == "UNSURE"
    assert found["latency"][0]["reason"] == "NEW cannot be opened here: no such runtime here"
    assert found["accuracy"]["source"] == "stored"  # the kept answers need no engine
    monkeypatch.undo()
    reasons = {new: "TensorRT is not here"}
    monkeypatch.setattr(Bundle, "engine_missing", lambda self: reasons.get(self.directory))
    _, found, _ = compare(run, old, new)
    assert found["latency"][0]["reason"] == "NEW has no engine: TensorRT is not here"


def test_an_engine_that_computes_something_else_is_refused(pair: tuple[Path, Path], run: Run) -> None:
    from qvec_deploy.bench.parity import read_reference, write_reference

    old, new = pair
    write_reference(new, read_reference(new) + 1)
    rewrite(new)
    code, out, err = run("compare", old, new, "--quiet")
    assert code == 4 and out == "" and "differ from PyTorch's" in err


def test_refusals(pair: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    old, new = pair
    code, _, err = run("compare", old, tmp_path / "nothing")
    assert code == 6 and "is not a bundle" in err
    code, _, err = run("compare", old, new, "-o", new)
    assert code == 6 and "is a bundle" in err
    code, _, err = run("compare", old, new, "--stored", "--blocks", "9", "--threads", "2")
    assert code == 2 and "--threads, --blocks cannot go with it" in err
    for odd in (("--level", "0"), ("--level", "nan"), ("--accuracy-tolerance", "-1"), ("--size-tolerance", "nan")):
        assert run("compare", old, new, *odd)[0] == 2
    assert run("compare", old)[0] == 2
    (new / "weights.qvec.safetensors").write_bytes(b"odd")
    code, out, err = run("compare", old, new)
    assert code == 5 and out == "" and "was changed after the build" in err


def test_damaged_answers_are_refused(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    (new / PREDICTIONS_FILE).write_bytes((new / PREDICTIONS_FILE).read_bytes()[:-1])
    assert run("compare", old, new)[0] == 5
    rewrite(new)  # even where the manifest lists the damage
    code, _, err = run("compare", old, new)
    assert code == 5 and "is damaged" in err
    assert read_predictions(old / PREDICTIONS_FILE).dataset == "folder"


def test_bundles_of_other_tasks_are_refused(pair: tuple[Path, Path], run: Run) -> None:
    old, new = pair
    model = read_manifest(new).model
    rewrite(new, model=model.model_copy(update={"classes": 11}))
    code, _, err = run("compare", old, new)
    assert code == 4 and "differ in classes" in err
