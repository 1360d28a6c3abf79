"""What a device needs is installed without extras; what needs one says which."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from without_build import GOLDEN, ROOT, bundle_on_pictures, device_environment

from qvec_deploy.cli.parts import PARTS, missing_part

BROUGHT = {"torchvision"}  # by timm
IN_ONE_PROCESS = """
import json, sys
from qvec_deploy.cli.commands import commands
for arguments in json.loads(sys.argv[1]):
    commands.main(arguments, standalone_mode=False)
sys.stderr.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def _requirements(texts: list[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", text) for text in texts)
    return {name.group().lower().replace("_", "-") for name in names if name}


def test_the_parts_are_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, installed = project["optional-dependencies"], importlib.metadata.packages_distributions()
    assert set(extras) - set(PARTS) == {"dev", "gpu"}
    for part in set(PARTS) - {"tensorrt"}:  # which is seldom installed
        brought = {name.lower().replace("_", "-") for module in PARTS[part] for name in installed[module]}
        assert brought - BROUGHT == _requirements(extras[part]), part
    base = _requirements(project["dependencies"])
    assert not any(base & _requirements(extra) for extra in extras.values())
    assert "onnxruntime" in base and "onnxruntime-gpu" not in base | _requirements(extras["build"] + extras["dev"])


def test_a_module_of_no_part_is_a_bug_of_ours() -> None:
    assert (
        missing_part(ModuleNotFoundError("No module named 'qvec_deploy.nothing'", name="qvec_deploy.nothing")) is None
    )
    assert missing_part(ModuleNotFoundError("no name")) is None
    error = missing_part(ModuleNotFoundError("No module named 'timm.data'", name="timm.data"))
    assert error is not None
    assert (error.exit_code, error.hint) == (4, "pip install 'qvec-deploy[build]'")


def test_a_device_does_its_work_without_what_builds(tmp_path: Path) -> None:
    bundle = str(bundle_on_pictures(tmp_path))
    wanted = [
        ["verify", bundle],
        ["inspect", bundle],
        ["bench", bundle, "--lowering", "int4", "--lowering", "int8", "--blocks", "2", "--quiet", "-o", "bench"],
        ["predict", bundle, "pictures/0/0.png"],
        ["report", bundle, "-o", "report"],
        ["compare", bundle, bundle, "--stored", "-o", "compared", "--quiet"],
        ["export", bundle, "-o", "int8.onnx", "--lowering", "int8"],
        ["export", bundle, "-o", "expanded.onnx", "--expanded"],
        ["release", str(GOLDEN), "--to", "released", "--accept-unverified", "--quiet"],
        ["verify", "released", "--release", "--accept-unverified"],
        ["doctor"],
        ["schema"],
        ["schema", "--of", "report"],
    ]
    command = [sys.executable, "-c", IN_ONE_PROCESS, json.dumps(wanted)]
    environment = device_environment(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in json.loads(done.stderr.splitlines()[-1])
    assert "part build: no: without torch, torchvision, timm" in done.stdout
    page = (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    assert "Not drawn: matplotlib is not installed" in page and "<svg role" not in page
    assert "20 images" in page


@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (["plan", "--recipe", str(ROOT / "recipes" / "demo_3bit.yaml")], "timm"),
        (["build", "--recipe", str(ROOT / "recipes" / "demo_3bit.yaml"), "-o", "built"], "timm"),
        (["bench", str(GOLDEN), "--quiet", "--blocks", "2"], "sklearn"),
        (["study", "run", str(ROOT / "recipes" / "study_tiny.yaml"), "-o", "studied"], "torch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_what_builds_says_what_is_missing(tmp_path: Path, arguments: list[str], needs: str) -> None:
    command = [sys.executable, "-m", "qvec_deploy", *arguments]
    environment = {**device_environment(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "site" / "cache")}  # empty
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    expected = f"error: this needs {needs}, which is not installed\nhint: pip install 'qvec-deploy[build]'\n"
    assert done.stderr.endswith(expected) and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
