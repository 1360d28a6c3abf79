"""The parts that qvec-deploy can be installed with beyond what a device needs, and what to do where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from qvec_deploy.errors import IncompatibleError

PARTS: dict[str, tuple[str, ...]] = {
    "build": (
        "torch",
        "torchvision",
        "timm",
        "modelopt",
        "onnxscript",
        "scipy",
        "sklearn",
        "matplotlib",
        "huggingface_hub",
        "requests",
        "threadpoolctl",
    ),
    "sign": ("model_signing", "OpenSSL"),
    "ray": ("ray",),
    "tensorrt": ("tensorrt",),
    "rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
}
"""By the name of the extra in pyproject.toml: the modules that it brings."""


def missing_modules(part: str) -> list[str]:
    """The modules of a part that are not installed here."""
    return [name for name in PARTS[part] if find_spec(name) is None]


def missing_part(error: ModuleNotFoundError) -> IncompatibleError | None:
    """What an import that failed says to the user; None where the module is of no part."""
    module = (error.name or "").partition(".")[0]
    for part, modules in PARTS.items():
        if module in modules:
            return IncompatibleError(
                f"this needs {module}, which is not installed", hint=f"pip install 'qvec-deploy[{part}]'"
            )
    return None
