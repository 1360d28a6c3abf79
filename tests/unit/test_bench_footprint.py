"""The probe, with a tiny fake engine in a module that only the child imports."""

import sys
from pathlib import Path

import pytest

from qvec_deploy.bench.footprint import probe
from qvec_deploy.errors import IncompatibleError

FAKE_ENGINE = """
import contextlib, os, signal, sys, time
import numpy as np

class Session:
    def __init__(self, megabytes, shape):
        self.weights, self.shape = np.ones(megabytes * 2**20, np.uint8), shape

    def run(self, images):
        assert list(images.shape) == self.shape and images.dtype == np.float32, images.shape
        return images[:, 0, 0, :1]

@contextlib.contextmanager
def open_session(megabytes, shape, late_import=None):
    print("a chatty library")
    time.sleep(0.05)
    assert late_import is None or late_import in sys.modules
    spike = np.ones(2 * megabytes * 2**20, np.uint8)
    del spike
    yield Session(megabytes, shape)

def broken():
    raise ValueError("no such operator: qvec.QvecLinear")

def silent():
    sys.exit(3)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def slow():
    time.sleep(60)
"""

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_engine.py").write_text(FAKE_ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_load_time_and_memory():
    arguments = {"megabytes": 64, "shape": [1, 3, 4, 5]}
    footprint = probe("fake_engine:open_session", arguments, input_shape=(3, 4, 5))
    assert 0.05 <= footprint.load_s < 5
    added = footprint.rss_bytes - footprint.baseline_rss_bytes
    assert 60 * MEGABYTE < added < 100 * MEGABYTE
    if sys.platform == "linux":
        assert footprint.peak_rss_bytes - footprint.baseline_rss_bytes > 120 * MEGABYTE


def test_the_baseline_does_not_carry_the_parent_or_scipy():
    footprint = probe("fake_engine:open_session", {"megabytes": 1, "shape": [1, 1, 1, 1]}, input_shape=(1, 1, 1))
    assert footprint.baseline_rss_bytes < 60 * MEGABYTE


def test_modules_are_imported_before_the_clock_starts():
    arguments = {"megabytes": 1, "shape": [1, 1, 1, 1], "late_import": "sqlite3"}
    probe("fake_engine:open_session", arguments, input_shape=(1, 1, 1), preload=["sqlite3"])
    with pytest.raises(IncompatibleError, match="AssertionError"):
        probe("fake_engine:open_session", arguments, input_shape=(1, 1, 1))


@pytest.mark.parametrize(
    ("function", "last_words", "hint"),
    [
        ("broken", "ValueError: no such operator: qvec.QvecLinear", "rebuild"),
        ("silent", "exited with 3", "rebuild"),
        ("killed", "ended by SIGKILL", "out of memory"),
        ("missing", "no attribute 'missing'", "rebuild"),
    ],
)
def test_a_child_that_fails_is_quoted(function, last_words, hint):
    with pytest.raises(IncompatibleError, match=last_words) as caught:
        probe(f"fake_engine:{function}", {}, input_shape=(1, 1, 1))
    assert hint in caught.value.hint


def test_a_child_that_hangs_is_ended():
    with pytest.raises(IncompatibleError, match=r"within 1 s"):
        probe("fake_engine:slow", {}, input_shape=(1, 1, 1), timeout_s=1)
