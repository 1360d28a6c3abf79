"""The files from which Docker builds an image that runs a release."""

from __future__ import annotations

import re

from qvec_deploy.bundle.release.release_subject import (
    DOCKERFILE,
    DOCKERIGNORE_FILE,
    REQUIREMENTS_FILE,
    RUN_FILE,
    Subject,
)
from qvec_deploy.runtimes.engine_files import MODEL_FILE, WEIGHTS_FILE

BASE = "python:3.12-slim"
PICTURES = "/pictures"
"""Where the image looks for pictures."""
_FILES = (RUN_FILE, "manifest.json", MODEL_FILE, WEIGHTS_FILE)
_USER = 10001  # no user of the base image, and none that a host is likely to have


def image_name(subject: Subject) -> str:
    """The release's name as Docker takes it: lower case, single separators."""
    return re.sub(r"[^a-z0-9]+", "-", subject.manifest.name.lower()).strip("-")


def container_files(subject: Subject) -> dict[str, str]:
    """Dockerfile and .dockerignore by name; the image holds what runs the model and nothing else of the release."""
    dockerfile = (
        f"FROM {BASE}\n"
        "ENV PYTHONDONTWRITEBYTECODE=1\n"
        "WORKDIR /model\n"
        f"COPY {REQUIREMENTS_FILE} ./\n"
        f"RUN pip install --no-cache-dir -r {REQUIREMENTS_FILE}\n"
        f"COPY {' '.join(_FILES)} ./\n"
        f"USER {_USER}:{_USER}\n"
        f"WORKDIR {PICTURES}\n"
        f'ENTRYPOINT ["python", "/model/{RUN_FILE}"]\n'
    )
    ignored = "".join(["*\n", *(f"!{name}\n" for name in (REQUIREMENTS_FILE, *_FILES))])
    return {DOCKERFILE: dockerfile, DOCKERIGNORE_FILE: ignored}
