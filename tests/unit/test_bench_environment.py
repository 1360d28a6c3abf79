"""What is recorded of a machine, and what is not."""

import getpass
import json
import platform
from dataclasses import asdict, replace
from types import SimpleNamespace

import psutil
import pytest

from qvec_deploy.bench import environment
from qvec_deploy.bench.environment import GpuState, capture_environment, complete_environment

CPUINFO = """\
processor\t: 0
model name\t: Fast CPU
flags\t\t: fpu avx2 amx_int8 sse

processor\t: 1
model name\t: Slow CPU
flags\t\t: fpu
"""


def test_the_environment_of_this_machine():
    captured = capture_environment(threads=3)
    assert captured.threads == 3
    assert captured.python == platform.python_version()
    assert captured.packages["numpy"]
    assert 1 <= captured.usable_cores <= captured.logical_cores == psutil.cpu_count()
    assert captured.memory_bytes == psutil.virtual_memory().total


def test_packages_that_are_missing_are_left_out(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    assert list(capture_environment(threads=1).packages) == ["numpy"]


def test_cpu_name_and_the_flags_that_matter(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    captured = capture_environment(threads=1)
    assert (captured.cpu, captured.cpu_flags) == ("Fast CPU", ("avx2", "amx_int8"))


def test_a_system_without_proc_or_governor(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(environment, "GOVERNOR", tmp_path / "missing")
    captured = capture_environment(threads=1)
    assert captured.cpu
    assert (captured.cpu_flags, captured.governor) == ((), None)


def test_the_governor_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "GOVERNOR", tmp_path / "governor")
    (tmp_path / "governor").write_text("powersave\n")
    assert capture_environment(threads=1).governor == "powersave"


def test_cores_are_recorded_in_order():
    assert capture_environment(threads=1, cores=(3, 1)).affinity == (1, 3)
    assert capture_environment(threads=1).affinity is None


def test_what_only_shows_afterwards(monkeypatch):
    before = capture_environment(threads=1)
    assert (before.frequency_mhz, before.load_average_after, before.gpu) == (None, None, None)
    frequencies = [SimpleNamespace(current=1000.0), SimpleNamespace(current=3000.0), SimpleNamespace(current=2500.0)]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: frequencies)
    monkeypatch.setattr(psutil, "getloadavg", lambda: (1.234, 0.0, 0.0))
    monkeypatch.setattr(environment, "_affinity", lambda: [0, 1])
    gpu = GpuState("NVIDIA Test", "580.65", 1)
    assert complete_environment(before, gpu) == replace(before, frequency_mhz=2000.0, load_average_after=1.23, gpu=gpu)


@pytest.mark.parametrize("told", [[], None, [SimpleNamespace(current=0.0)]])
def test_a_frequency_that_cannot_be_seen(monkeypatch, told):
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: told)
    assert complete_environment(capture_environment(threads=1)).frequency_mhz is None


def test_a_system_without_frequencies_or_affinity(monkeypatch):
    monkeypatch.delattr(psutil, "cpu_freq")
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    captured = complete_environment(capture_environment(threads=1))
    assert captured.frequency_mhz is None
    assert captured.usable_cores == captured.logical_cores


def test_nothing_says_who_or_where():
    values = [*asdict(capture_environment(threads=1)).values()]
    text = json.dumps(values)
    assert platform.node() not in values
    assert "/home" not in text and "/work" not in text
    assert f'"{getpass.getuser()}"' not in text
