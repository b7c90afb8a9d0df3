"""Run folders like those of training, written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from deformable_detr.config import RunConfig, to_dict


def make_run(folder: Path, config: RunConfig, aps: list[float], seconds: float = 3600.0) -> Path:
    """Write a run that was evaluated after each epoch, with these APs; an epoch takes `seconds`."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    lines = []
    for epoch, ap in enumerate(aps):
        step = 10 * (epoch + 1)
        lines.append({"kind": "train", "epoch": epoch, "step": step, "loss": 1.0, "seconds": seconds})
        metrics = {"AP": ap, "AP50": ap + 0.1, "AP75": ap, "APs": -1.0, "APm": ap / 2, "APl": ap * 2}
        lines.append({"kind": "evaluation", "epoch": epoch, "step": step, **metrics})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "tra')  # a crash in the middle of a line
    return folder
