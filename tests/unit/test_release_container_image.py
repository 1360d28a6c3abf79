"""What Docker builds an image from: every line, against the files that a release has."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fnmatch import fnmatch

import pytest
import release_example

from qvec_deploy.bundle.release.container_image import container_files, image_name
from qvec_deploy.bundle.release.model_card import model_card
from qvec_deploy.datasets import standalone_run

RELEASED = {*release_example.FILES, "manifest.json", "run.py", "requirements.txt", "MODEL_CARD.md", "sbom.cdx.json"}


def _lines(name: str) -> list[str]:
    return container_files(release_example.subject())[name].splitlines()


def _sent_to_docker() -> set[str]:
    """Files of the release that .dockerignore lets through: the last line that matches a name decides."""
    sent = set()
    for name in RELEASED:
        matching = [line for line in _lines(".dockerignore") if fnmatch(name, line.removeprefix("!"))]
        if not matching or matching[-1].startswith("!"):
            sent.add(name)
    return sent


def test_the_image_holds_what_runs_the_model_and_nothing_else() -> None:
    copied = [line.split()[1:-1] for line in _lines("Dockerfile") if line.startswith("COPY ")]
    needed = {"run.py", "requirements.txt", "manifest.json", "model.onnx", "weights.qvec.safetensors"}
    assert {name for names in copied for name in names} == needed == _sent_to_docker()
    interface = release_example.subject().manifest.interface
    assert interface is not None and {interface.model, interface.weights} <= needed


def test_its_lines_are_in_an_order_that_works() -> None:
    lines = _lines("Dockerfile")
    words = [line.split()[0] for line in lines]
    assert words == ["FROM", "ENV", "WORKDIR", "COPY", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT"]
    assert re.fullmatch(r"FROM python:3\.\d+-slim", lines[0])
    install = lines[words.index("RUN")].split()
    assert install[1:] == ["pip", "install", "--no-cache-dir", "-r", "requirements.txt"]
    user, _, group = lines[words.index("USER")].split()[1].partition(":")
    assert int(user) > 1000 and int(group) > 1000, "not root"
    folder = lines[2].split()[1]
    assert json.loads(lines[-1].removeprefix("ENTRYPOINT ")) == ["python", f"{folder}/run.py"]


def test_it_installs_three_libraries() -> None:
    names = {re.split("[<>=]", line)[0] for line in standalone_run.REQUIREMENTS.splitlines()}
    assert names == {"onnxruntime", "numpy", "pillow"}


@pytest.mark.parametrize(
    ("name", "image"), [("demo_3bit", "demo-3bit"), ("ViT-B_.16", "vit-b-16"), ("a__b-.c_", "a-b-c")]
)
def test_docker_takes_the_name(name: str, image: str) -> None:
    subject = release_example.subject()
    named = replace(subject, manifest=subject.manifest.model_copy(update={"name": name}))
    assert image_name(named) == image
    assert re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", image)


def test_the_card_says_how_to_serve_a_picture_where_docker_was_asked_for() -> None:
    subject = release_example.subject()
    assert "docker" not in model_card(subject)
    card = model_card(replace(subject, with_docker=True))
    assert "\ndocker build -t eurosat-3bit .\n" in card
    assert '\ndocker run --rm -v "$PWD:/pictures:ro" eurosat-3bit picture.png\n' in card
    assert _lines("Dockerfile")[-2] == "WORKDIR /pictures", "where the command mounts the pictures"
