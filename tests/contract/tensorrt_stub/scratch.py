"""A folder with NVIDIA's real Python bindings and stubs of the libraries they load; made once, kept in a cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NO_REGISTRY = "QVEC_TEST_NO_REGISTRY"
ZIG = "0.14.1"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


def scratch(cache: Path, version: str) -> Path:
    """The folder for one version of the bindings: `python/` goes on PYTHONPATH, `lib/` on LD_LIBRARY_PATH.

    A machine that cannot reach a package registry fails; where that is expected, QVEC_TEST_NO_REGISTRY=1 skips.
    """
    tag = f"{sys.implementation.cache_tag}-{platform.machine()}"
    ready = cache / f"bindings-{version}-{tag}"
    if ready.is_dir():
        return ready
    work = Path(tempfile.mkdtemp(dir=cache))
    install(f"tensorrt-cu13-bindings=={version}", work / "python")
    (work / "python" / "tensorrt_bindings").rename(work / "python" / "tensorrt")  # as the package above it presents it
    (work / "python" / "tensorrt_libs").mkdir()  # hides real libraries, should this machine have them
    (work / "python" / "tensorrt_libs" / "__init__.py").touch()
    (work / "lib").mkdir()
    compiler, *arguments = find_compiler(cache, tag)
    stub = work / "stub.so"
    subprocess.run(
        [compiler, *arguments, "-shared", "-fPIC", "-nostdlib", "-o", str(stub), str(HERE / "stub.c")],
        check=True,
        timeout=300,
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache / "zig"), "ZIG_LOCAL_CACHE_DIR": str(cache / "zig")},
    )
    for name in LIBRARIES:
        shutil.copy(stub, work / "lib" / f"lib{name}.so.{version.split('.')[0]}")
    keep(work, ready)
    return ready


def keep(work: Path, ready: Path) -> None:
    """Give a finished folder its name."""
    try:
        work.rename(ready)
    except OSError:  # another run was faster
        shutil.rmtree(work)


def install(requirement: str, folder: Path) -> None:
    """One wheel without what it depends on."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:", "--no-compile"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(folder), requirement],
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode == 0:
        return
    if os.environ.get(NO_REGISTRY) == "1":
        pytest.skip(f"NOT CHECKED: {requirement} cannot be installed, and {NO_REGISTRY}=1 says that this is expected")
    pytest.fail(
        f"{requirement} cannot be installed, so the contract with TensorRT was not checked; "
        f"where no registry can be reached, say so with {NO_REGISTRY}=1\n{done.stderr[-2000:]}",
        pytrace=False,
    )


def find_compiler(cache: Path, tag: str) -> list[str]:
    """The machine's C compiler, or the one in the ziglang wheel."""
    system = shutil.which("cc") if os.environ.get("QVEC_TEST_COMPILER") != "ziglang" else None
    if system is not None:
        return [system]
    zig = cache / f"ziglang-{tag}"
    if not zig.is_dir():
        work = Path(tempfile.mkdtemp(dir=cache))
        install(f"ziglang=={ZIG}", work)
        keep(work, zig)
    return [str(zig / "ziglang" / "zig"), "cc"]
