"""Write the table by which `qvec-deploy init` tells timm's models apart: their fingerprints, for the timm that is here.

python scripts/fingerprint_models.py      # a few minutes; run it for a new timm and read the diff
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from pathlib import Path

import timm
import torch
from rich.progress import track

from qvec_deploy.builder.identify import FINGERPRINTS, fingerprint


def main() -> None:
    """Fingerprint every model of timm."""
    found: dict[str, list[str]] = defaultdict(list)
    warnings.simplefilter("ignore")
    for name in track(timm.list_models()):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
        except Exception as error:  # noqa: BLE001 - whatever timm raises, and needs, beside torch
            print(f"{name} is left out: {error}")
            continue
        state = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
        found[fingerprint({key: tuple(value.shape) for key, value in state.items()})].append(name)
    path = Path(__file__).resolve().parents[1] / "qvec_deploy" / FINGERPRINTS
    models = {key: sorted(names) for key, names in sorted(found.items())}
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(names)}" for key, names in models.items())
    path.write_text(f'{{\n  "timm": "{timm.__version__}",\n  "models": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")
    print(f"{path}: {sum(map(len, models.values()))} models, {len(models)} fingerprints")


if __name__ == "__main__":
    main()
