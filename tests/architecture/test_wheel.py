"""The built wheel carries everything that runs from it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "qvec_deploy", source / "qvec_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-w", "."]
    command = [sys.executable, "-m", "pip", "wheel", *options, "./source"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("qvec_deploy-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "qvec_deploy").rglob("*.py")}
    pages = {"report/page.html", "report/page.css"}
    data = {"py.typed", "recipe.schema.json", "report.schema.json", "packed/FORMAT.md", *pages}
    assert package <= names
    assert {f"qvec_deploy/{name}" for name in data} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
