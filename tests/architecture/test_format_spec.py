"""FORMAT.md is true: its worked example, its version and its limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qvec_deploy.io.untrusted import MAX_DIMENSIONS
from qvec_deploy.packed import VERSION, codec, pack_codes, unpack_codes
from qvec_deploy.packed import file_layout as layout

SPEC = (Path(codec.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example() -> dict[str, list[str]]:
    """The worked example: each line's words by its label."""
    (block,) = re.findall(r"```example\n(.*?)```", SPEC, re.DOTALL)
    return {label: words.split() for label, words in (line.split(":") for line in block.splitlines())}


def test_example_packs_to_its_words_and_bytes(example: dict[str, list[str]]) -> None:
    bits = int(example["bits"][0])
    payload = pack_codes(np.array([example["codes"]]).astype(np.int8), bits)
    assert [f"0x{word:08x}" for word in payload.view(np.uint32)[0]] == example["words"]
    assert payload.tobytes().hex(" ").split() == example["bytes"]


def test_example_unpacks_to_its_codes(example: dict[str, list[str]]) -> None:
    bits, columns = int(example["bits"][0]), int(example["columns"][0])
    words = np.array([[int(word, 16) for word in example["words"]]], np.uint32).view(np.int32)
    assert unpack_codes(words, bits, columns)[0].tolist() == [int(code) for code in example["codes"]]


def test_example_fields_are_codes_plus_offset(example: dict[str, list[str]]) -> None:
    bits = int(example["bits"][0])
    assert [int(field) for field in example["fields"]] == [int(code) + 2 ** (bits - 1) for code in example["codes"]]


def test_versions_agree() -> None:
    assert SPEC.startswith(f"# The packed format, version {VERSION}\n")
    assert f"| `version` | `{VERSION}`," in SPEC


def test_limits_agree() -> None:
    assert layout.MAX_HEADER == 4 << 20 and "at most 4 MiB" in SPEC
    assert layout._MAX_NAME == 256 and "1 to 256 printable ASCII" in SPEC
    assert layout._MAX_SIZE == 2**40 and "from 1 to 2^40 - 1" in SPEC
    assert MAX_DIMENSIONS == 8 and "at most 8 dimensions" in SPEC


def test_released_version_has_its_golden_file() -> None:
    golden = Path(__file__).parents[1] / "golden" / "packed" / f"v{VERSION}.qvec.safetensors"
    assert golden.is_file(), "every released version of the format keeps one file for ever"
