"""Counts that say how large the code is and how much a change touches: `python scripts/count_code.py [--json]`.

A change touches every file of the package that would have to name the new thing. That is counted on things that exist:
for a runtime `torch-cuda`, for a method `gptaq`, for a lowering `w8a8`, for a column of the report `Throughput`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qvec_deploy"
EXAMPLES = {"runtime": "torch-cuda", "method": "gptaq", "lowering": "w8a8", "column": "Throughput"}


def sources(folder: Path = PACKAGE) -> list[Path]:
    """Every Python file of a folder."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def lines(path: Path) -> int:
    """Lines of a file."""
    return path.read_text(encoding="utf-8").count("\n")


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and name of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{path.relative_to(ROOT)}:{node.name}"


def classes(path: Path) -> Iterator[str]:
    """Names of the classes of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node.name


def repeated(names: Iterator[str]) -> list[str]:
    """Names that stand for two or more things."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def naming(word: str) -> list[str]:
    """Files with a string that is the word."""
    found = []
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        strings = (
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        if any(re.fullmatch(re.escape(word), text) for text in strings):
            found.append(str(path.relative_to(PACKAGE)))
    return found


def counts() -> dict[str, object]:
    """All of it."""
    paths = sources()
    sizes = {path: lines(path) for path in paths}
    parts: dict[str, int] = defaultdict(int)
    for path, size in sizes.items():
        parts[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] += size
    files = (path.name for path in paths if path.name not in ("__init__.py", "__main__.py"))
    longest = max(entry for path in paths for entry in functions(path))
    return {
        "files": len(paths),
        "lines": sum(sizes.values()),
        "lines_of_tests": sum(lines(path) for path in sources(ROOT / "tests")),
        "median_lines_of_a_file": statistics.median(sizes.values()),
        "longest_file": max((size, str(path.relative_to(ROOT))) for path, size in sizes.items()),
        "longest_function": longest,
        "classes": sum(1 for path in paths for _ in classes(path)),
        "class_names_used_twice": repeated(name for path in paths for name in classes(path)),
        "file_names_used_twice": repeated(files),
        "files_that_name": {f"{kind} `{word}`": naming(word) for kind, word in EXAMPLES.items()},
        "lines_by_part": dict(sorted(parts.items(), key=lambda entry: -entry[1])),
    }


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="as one JSON document")
    found = counts()
    if parser.parse_args().json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{name.replace('_', ' ')}:")
            for key, entry in value.items():
                shown = (
                    f"{len(entry):>6}  {key}: {', '.join(entry)}" if isinstance(entry, list) else f"{entry:>6}  {key}"
                )
                print(f"  {shown}")
        elif isinstance(value, list):
            print(f"{name.replace('_', ' ')}: {len(value)} {', '.join(value)}")
        else:
            print(f"{name.replace('_', ' ')}: {value}")


if __name__ == "__main__":
    main()
