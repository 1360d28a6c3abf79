"""Feeds one reader changed files for a time, and tells what it did that no reader may do.

    python tests/fuzz/fuzz_target.py pt --seconds 20 --out found.json

A reader answers, or refuses with a documented error, within a second of CPU time and a gigabyte of memory; and what it
takes means the same as before, or what others read in it. Where atheris is installed, code that no input has reached
before leads it on; elsewhere inputs are drawn blindly.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import importlib.util
import json
import os
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

CORPUS = Path(__file__).parent / "corpus"
MOST_SECONDS, MOST_KILOBYTES, MOST_MESSAGE, MOST_BYTES = 1.0, 1 << 20, 4100, 1 << 20


@dataclass
class Target:
    """One reader, with a folder in which its file lies.

    Attributes:
        inputs: Files that were read.
        accepted: How many of them were not refused.
        findings: How often something was wrong, by what and where.
        examples: The first input of each.
    """

    kind: str
    folder: Path
    inputs: int = 0
    accepted: int = 0
    findings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from fuzz_readers import BUNDLE, READERS, STUDY, meaning

        self.reader, self._meaning = READERS[self.kind], meaning
        self._clean = self.folder.with_name(f"{self.folder.name}.clean")
        for source in (STUDY, BUNDLE):
            shutil.copytree(source, self._clean, dirs_exist_ok=True)
        made = self._clean / self.reader.name
        made.parent.mkdir(parents=True, exist_ok=True)
        self.reader.make(made)
        self._path = self.folder / self.reader.name
        self._restore()
        self.original = self._path.read_bytes()
        self._expected = meaning(self.reader.read(self._path))  # also shows that it does not refuse everything
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def _restore(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._clean, self.folder)

    def seeds(self) -> list[bytes]:
        """The real file, and what was found before."""
        folder = CORPUS / self.kind.replace(" ", "_")
        return [self.original, *(path.read_bytes() for path in sorted(folder.glob("*")))]

    def check_bytes(self, rng: random.Random) -> None:
        """Read the real file with bytes changed blindly, where that must be noticed."""
        from fuzz_mutations import changed_bytes

        if self.reader.sealed:
            self.check(changed_bytes(self.original, rng), blind=True)

    def check(self, data: bytes, *, blind: bool = False) -> None:
        """Read one file, and keep in mind what was wrong."""
        try:
            self._path.write_bytes(data)
        except FileNotFoundError:  # the reader has removed the folder
            self._path.parent.mkdir(parents=True)
            self._path.write_bytes(data)
        wrong, seconds = self._timed(blind=blind)
        if seconds > MOST_SECONDS:  # others may have been at work
            seconds = min(self._timed(blind=blind)[1] for _ in range(2))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.inputs += 1
        if wrong is None and seconds > MOST_SECONDS:
            wrong = "hang: over a second"
        if peak - self._before > MOST_KILOBYTES:
            self._before, wrong = peak, "memory: over a gigabyte"
        if wrong is not None:
            self.findings[wrong] += 1
            self.examples.setdefault(wrong, data)

    def _timed(self, *, blind: bool) -> tuple[str | None, float]:
        start = time.process_time()
        wrong = self._read(blind=blind)
        return wrong, time.process_time() - start

    def _read(self, *, blind: bool) -> str | None:
        from qvec_deploy.errors import QvecError, RecipeError

        try:
            value = self.reader.read(self._path)
        except QvecError as error:
            if len(error.message) > MOST_MESSAGE:
                return "crash: an endless message"
            if isinstance(error, RecipeError) and not self.kind.endswith(("recipe", "class names")):
                return f"crash: {error.message[:80]} is told as a recipe's"
            return None
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            return f"crash: {type(error).__name__} at {Path(place.filename).name}:{place.name}"
        self.accepted += 1
        if blind and self.reader.sealed and self._meaning(value) != self._expected:
            return "different: changed bytes were not noticed"
        return self._as_others(value)

    def _as_others(self, value: Any) -> str | None:
        if self.reader.reference is None:
            return None
        known = self.reader.reference(self._path)
        if known is None:
            return "different: others refuse it"
        for name, array in value.items():
            others = [each for key, each in known.items() if name == key or key.endswith(f".{name}")]
            if others and not any(self._meaning(array) == self._meaning(each) for each in others):
                return "different: others read other values"
        return None

    def write(self, path: Path) -> None:
        """What was done and found, as JSON, and an input of every finding beside it."""
        for wrong, data in self.examples.items():
            name = hashlib.sha256(data).hexdigest()[:12]
            path.with_name(f"{path.stem}-{wrong.partition(':')[0]}-{name}").write_bytes(data)
        document = {"inputs": self.inputs, "accepted": self.accepted, "findings": dict(self.findings)}
        path.write_text(json.dumps(document))


def run_blindly(target: Target, rng: random.Random, *, inputs: int, until: float) -> None:
    """Change what is known, again and again."""
    from fuzz_mutations import changed

    seeds = target.seeds()
    for data in seeds:
        target.check(data)
    while target.inputs < inputs and time.monotonic() < until:
        target.check_bytes(rng)
        target.check(changed(rng.choice(seeds), rng))


def run_guided(target: Target, rng: random.Random, corpus: Path, *, inputs: int, until: float, out: Path) -> NoReturn:
    """Change what is known and what led to new code; the library ends the process."""
    import atheris
    from fuzz_mutations import changed

    for index, data in enumerate(target.seeds()):
        (corpus / str(index)).write_bytes(data)

    def run(data: bytes) -> None:
        target.check(data)
        target.check_bytes(rng)
        if target.inputs >= inputs or time.monotonic() >= until:
            target.write(out)
            sys.stdout.flush()
            os._exit(bool(target.findings))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        mine = random.Random(seed)
        if mine.random() < 0.4:  # else changes of files that are refused at once become most of what is tried
            data = target.original
        return changed(data, mine)[:most] if mine.random() < 0.8 else bytes(atheris.Mutate(data, most))

    options = [
        f"-seed={rng.randrange(1, 1 << 31)}",
        f"-max_len={MOST_BYTES}",
        "-rss_limit_mb=0",
        "-timeout=120",
        "-len_control=0",
        "-mutate_depth=1",
    ]
    atheris.Setup(["fuzz", *options, f"-artifact_prefix={out.parent}/native-", str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()
    raise AssertionError("the library returned")


@contextlib.contextmanager
def _followed(*, guided: bool) -> Iterator[None]:
    """Import the package so that atheris sees which lines run."""
    if not guided:
        yield
        return
    import atheris

    with atheris.instrument_imports(include=["qvec_deploy"]):
        yield


def main() -> int:
    """One run, in a process of its own: native code may end it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--inputs", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="draw inputs without atheris")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file for what was done and found")
    asked = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    rng = random.Random(asked.seed)
    guided = not asked.blind and importlib.util.find_spec("atheris") is not None
    folder = asked.out.parent / f"{asked.out.stem}.files"
    (folder / "corpus").mkdir(parents=True)
    with _followed(guided=guided):
        target = Target(asked.kind, folder / "here")
        until = time.monotonic() + asked.seconds
        if guided:
            run_guided(target, rng, folder / "corpus", inputs=asked.inputs, until=until, out=asked.out)
        run_blindly(target, rng, inputs=asked.inputs, until=until)
    target.write(asked.out)
    return bool(target.findings)


if __name__ == "__main__":
    sys.exit(main())
