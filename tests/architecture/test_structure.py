"""The shape of the code: direction of imports, what starts quickly, names, docstrings."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "qvec_deploy"
HEAVY = ("torch", "timm", "onnx", "onnxruntime", "modelopt", "scipy", "matplotlib", "sklearn", "pydantic", "numpy")


def _modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_imports_go_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "from click.testing import CliRunner\nfrom qvec_deploy.cli.commands import commands\n"
    code += "assert 'doctor' in CliRunner().invoke(commands, ['--help']).output"
    assert not _modules_after(code) & set(HEAVY)


def test_reading_a_recipe_imports_no_framework() -> None:
    loaded = _modules_after("from qvec_deploy.recipe import load_recipe\nimport qvec_deploy.io.checkpoint")
    assert not loaded & {"torch", "timm", "onnx", "onnxruntime", "modelopt"}


def test_running_an_engine_needs_no_torch() -> None:
    code = "import qvec_deploy.runtimes.registry, qvec_deploy.bundle.bundle, onnxruntime\n"
    code += "import qvec_deploy.runtimes.onnxruntime.ort_lowering"
    assert not _modules_after(code) & {"torch", "timm", "modelopt"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_small_named_and_documented(path: Path) -> None:
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400, "is it one thing?"
    assert ast.get_docstring(ast.parse(source)), "what is this module? (ruff looks at functions and classes)"
