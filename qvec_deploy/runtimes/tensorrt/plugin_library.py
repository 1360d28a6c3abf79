"""Our plugin as a compiled library, for releases of TensorRT that take none from Python."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).parent / "plugin"
"""What it is built from, by CMake."""
