"""One suite for every row of RUNTIMES and its lowerings, and for the example that shows how to add one.

Where a runtime is missing, that is said and refused the right way. Runtimes of GPUs are also held to the suite with
the same sessions on the CPU, as far as their libraries can do that.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from example_runtime import TORCH_CPU
from pico import PICO_ARGS
from small_engines import SCHEME, relative_error, write_engine

from qvec_deploy.bench.parity import parity_images
from qvec_deploy.errors import IncompatibleError
from qvec_deploy.packed import PackedFile
from qvec_deploy.runtimes.engine_files import WEIGHTS_FILE
from qvec_deploy.runtimes.registry import RUNTIMES, check_lowering, find_runtime, runtime_bits_per_weight
from qvec_deploy.runtimes.runtime import Lowering, Runtime
from qvec_deploy.runtimes.session import Compiler, ModelWriter
from qvec_deploy.tensors import Scheme

ROWS = (
    *RUNTIMES.values(),
    TORCH_CPU,
    replace(RUNTIMES["torch-cuda"], backend="small_engines:torch_on_cpu"),
    replace(RUNTIMES["onnxruntime-cuda"], backend="small_engines:onnxruntime_cuda_on_cpu"),
)
LOWERINGS = [pytest.param(row, each, id=f"{row.backend}-{each.name}") for row in ROWS for each in row.lowerings]
SHAPE = (3, 32, 32)

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.backend)
every_lowering = pytest.mark.parametrize(("row", "lowering"), LOWERINGS)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, np.ndarray]]:
    """Directories as `build` leaves them, with PyTorch's logits: quantized or not."""
    made = {}
    for quantized in (False, True):
        folder = tmp_path_factory.mktemp("engine")
        made[quantized] = folder, write_engine(folder, SCHEME if quantized else None, PICO_ARGS, graph=True)
    return made


def _of(engines: dict[bool, tuple[Path, np.ndarray]], row: Runtime, lowering: Lowering) -> tuple[Path, np.ndarray]:
    return engines[lowering is not row.baseline]


@every_row
def test_a_row_says_what_the_rest_has_to_know(row: Runtime) -> None:
    assert row.baseline.bits == (row.float_bits,) and row.baseline.arithmetic == row.floats
    assert len({each.name for each in row.lowerings}) == len(row.lowerings)
    assert row.remedy and row.packages and row.preload
    assert row.compiles == isinstance(row.load(), Compiler)
    assert row.stands_alone == isinstance(row.load(), ModelWriter)
    if not row.compiles:
        with pytest.raises(IncompatibleError, match="compiles nothing"):
            row.load_compiler()


@every_row
def test_a_runtime_that_works_has_its_packages(row: Runtime) -> None:
    missing = row.load().missing()
    assert missing is None or missing, "an empty reason tells nobody anything"
    if missing is None:
        assert any(_installed(package) for package in row.packages)


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


@every_lowering
def test_an_engine_gives_the_reference_logits_or_is_refused(
    engines: dict[bool, tuple[Path, np.ndarray]], row: Runtime, lowering: Lowering
) -> None:
    folder, reference = _of(engines, row, lowering)
    if row.missing(lowering.name) is not None or row.compiles:  # what is compiled has no engine here yet
        with pytest.raises(IncompatibleError) as caught, row.load().open(folder, lowering.name, 1):
            pytest.fail("opened")
        assert caught.value.hint
        return
    images = parity_images(SHAPE)
    with row.load().open(folder, lowering.name, 1) as session:
        assert session.input_shape == SHAPE
        for repeats in (1, 3, 1):  # another batch size, and the first again
            logits = session.run(np.tile(images, (repeats, 1, 1, 1)))
            assert logits.dtype == np.float32
            assert relative_error(logits, np.tile(reference, (repeats, 1))) <= lowering.tolerance
        assert session.run(images[:1]).shape == (1, reference.shape[1])
        for wrong in (images[:, :, :16], images[:0], images.astype(np.float64), images[0]):
            with pytest.raises(IncompatibleError, match=r"takes float32 images \(batch, 3, 32, 32\), got"):
                session.run(wrong)


@every_row
def test_a_lowering_that_is_not_there_is_refused(engines: dict[bool, tuple[Path, np.ndarray]], row: Runtime) -> None:
    folder, _ = engines[True]
    with pytest.raises(IncompatibleError), row.load().open(folder, "int1", 1):
        pytest.fail("opened")


@every_lowering
def test_bits_at_run_time_hold_the_codes_and_are_those_of_a_plan(
    engines: dict[bool, tuple[Path, np.ndarray]], monkeypatch: pytest.MonkeyPatch, row: Runtime, lowering: Lowering
) -> None:
    monkeypatch.setitem(RUNTIMES, row.name, row)
    folder, _ = _of(engines, row, lowering)
    found = runtime_bits_per_weight(PackedFile.open(folder / WEIGHTS_FILE).tensors.values(), row.name, lowering.name)
    assert found == row.float_bits if lowering is row.baseline else 3 <= found <= 32 + 32
    widths = [bits for bits in lowering.bits if bits <= 8]
    for bits, granularity, size in product(widths, lowering.granularities, (16, 64, 128)):
        if granularity == "group" and not lowering.takes_groups(size):
            continue
        scheme = Scheme(bits, granularity, size if granularity == "group" else 0)  # type: ignore[arg-type]
        assert lowering.weight_bits(768, 768, scheme) >= 768 * 768 * bits


@every_lowering
def test_what_a_lowering_does_not_take_is_refused(
    monkeypatch: pytest.MonkeyPatch, row: Runtime, lowering: Lowering
) -> None:
    monkeypatch.setitem(RUNTIMES, row.name, row)
    for bits in set(range(1, 33)) - set(lowering.bits):
        with pytest.raises(IncompatibleError, match=f"cannot take {bits} bits"):
            check_lowering(row.name, lowering.name, bits, "channel", 0)
    bits = lowering.bits[0]
    for granularity in {"tensor", "channel", "group"} - set(lowering.granularities):
        with pytest.raises(IncompatibleError, match=f"granularity `{granularity}`"):
            check_lowering(row.name, lowering.name, bits, granularity, 0)
    for size in range(1, 257):
        if "group" in lowering.granularities and not lowering.takes_groups(size):
            with pytest.raises(IncompatibleError, match=f"groups of {size}"):
                check_lowering(row.name, lowering.name, bits, "group", size)
    check_lowering(row.name, lowering.name, bits, "channel", 0)


def test_what_is_in_no_row_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="no runtime `tpu`") as caught:
        find_runtime("tpu")
    assert all(name in caught.value.hint for name in RUNTIMES)
    with pytest.raises(IncompatibleError, match="has no lowering `w8a8`"):
        check_lowering("onnxruntime", "w8a8", 3, "channel", 0)
