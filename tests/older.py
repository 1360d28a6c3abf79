"""Vector files as format 1.0.0 wrote them: no sketch, no norms a tensor."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

FIELDS = ("format", "scheme", "skip", "task", "seed", "norm", "weight_norm", "made_by")


def write_format_1_0(source: Path, target: Path) -> Path:
    """The vector of a newer file in the older format."""
    with safe_open(source, "np") as file:
        header = json.loads(file.metadata()["qvec"])
        names = [name for name in file.keys() if ":" not in name]  # noqa: SIM118 - no mapping
        rho = {name: file.get_tensor(name) for name in names}
    older = {name: header[name] for name in FIELDS} | {"version": "1.0.0"}
    save_file(rho, target, {"qvec": json.dumps(older, sort_keys=True, separators=(",", ":"))})
    return target
