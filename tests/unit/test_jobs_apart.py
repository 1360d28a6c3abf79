"""Work with PyTorch in another process: results, errors, deaths; and here, where PyTorch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from qvec_deploy.errors import IncompatibleError, QvecError
from qvec_deploy.jobs import apart

ROOT = Path(__file__).resolve().parents[2]


def run(program: str) -> subprocess.CompletedProcess[str]:
    """A program in a process that has not loaded PyTorch."""
    text = "import os, sys\nfrom qvec_deploy.jobs import apart\n" + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_here_where_pytorch_is_loaded() -> None:
    import torch  # noqa: F401

    assert apart.call("os:getpid") == os.getpid()
    later = apart.submit("os:getenv", "QVEC_TESTS_NOW", "not yet")
    os.environ["QVEC_TESTS_NOW"] = "now"
    try:
        assert later() == "now"
    finally:
        del os.environ["QVEC_TESTS_NOW"]


def test_one_other_process_answers_in_order_and_ends() -> None:
    done = run("""
        first, second = apart.submit("os:getpid"), apart.submit("operator:add", 2, b"x" * 0 or 3)
        assert second() == 5
        other = first()
        assert other != os.getpid() and first() == other == apart.call("os:getpid")
        large = apart.call("builtins:bytes", 10_000_000)
        assert len(large) == 10_000_000
        apart.submit("builtins:len", large), apart.submit("builtins:bytes", 10_000_000)
        assert apart.call("builtins:len", large) == 10_000_000
        apart.end()
        try:
            os.kill(other, 0)
        except ProcessLookupError:
            print("ended")
        with apart.ended():
            again = apart.call("os:getpid")
        assert again != other
        assert "torch" not in sys.modules
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


def test_errors_are_raised_here() -> None:
    done = run("""
        from qvec_deploy.errors import RecipeError
        try:
            apart.call("qvec_deploy.models:look_up", "no_such_model")
        except RecipeError as error:
            print(error.message, "|", error.hint)
        try:
            apart.call("operator:truediv", 1, 0)
        except RuntimeError as error:
            print(str(error).splitlines()[0], "ZeroDivisionError" in str(error))
        print(apart.call("operator:add", 1, 1))
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "timm has no model `no_such_model` | timm.list_models() lists the names",
        "division by zero True",
        "2",
    ]


def test_it_finds_modules_where_this_process_does(tmp_path: Path) -> None:
    (tmp_path / "a_module_of_mine.py").write_text("def answer(): return 42")
    done = run(f"""
        sys.path.append({str(tmp_path)!r})
        print(apart.call("a_module_of_mine:answer"))
    """)
    assert (done.stdout, done.stderr) == ("42\n", "")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ('apart.call("os:kill", apart.call("os:getpid"), 9)', "was ended by signal 9"),
        ('apart.call("os:_exit", 3)', "exited with 3"),
    ],
)
def test_its_death_is_told_and_the_next_call_works(how: str, told: str) -> None:
    done = run(f"""
        from qvec_deploy.errors import IncompatibleError
        try:
            {how}
        except IncompatibleError as error:
            print(error.message)
        print(apart.call("operator:add", 1, 1))
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"the process that works with PyTorch {told}", "2"]


def test_it_does_not_outlive_its_parent() -> None:
    done = run("""
        print(apart.call("os:getpid"), flush=True)
        os.kill(os.getpid(), 9)
    """)
    other = int(done.stdout)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{other}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{other}").exists()


def test_what_it_prints_is_not_in_the_output() -> None:
    done = run('apart.call("builtins:print", "from a library")')
    assert (done.stdout, done.stderr) == ("", "from a library\n")


@pytest.mark.parametrize("kind", [IncompatibleError, *IncompatibleError.__mro__[1:2]])
def test_errors_can_be_pickled(kind: type[QvecError]) -> None:
    import pickle

    again = pickle.loads(pickle.dumps(kind("what", hint="do")))
    assert type(again) is kind and (again.message, again.hint, str(again)) == ("what", "do", "what")
