"""Routes in two processes under torchrun: the same movement as in one, also if a process has no object."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deformable_detr.training import train
from tests.support.tiny import assert_same_movement, changed_data, repeatable_in_parts, rows

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "queries": "mixed",
    "look_forward_twice": True,
    "train.routes.no_self_attention": 0.33,
    "train.routes.instructed": 1.0,
}
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from tests.support.tiny import repeatable_in_parts
from deformable_detr.training import train

torch.optim.AdamW = torch.optim.SGD
data, output, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
train(data, repeatable_in_parts(batch_size=2, max_steps=3, **settings), output / "two")
settings["train.routes.denoising"] = 1.0
train(data, repeatable_in_parts(batch_size=1, max_steps=6, **settings), output / "denoising")
torch.distributed.destroy_process_group()
"""


def few_objects(content: dict[str, Any]) -> None:
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] % 3 == 0]


def test_two_processes_train_as_one(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Plain descent instead of AdamW, as in test_processes.py: it does not blow up rounding.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    data = changed_data(tiny_data, tmp_path / "data", few_objects)
    for name, max_steps in (("start", 0), ("one", 3)):
        train(data, repeatable_in_parts(batch_size=4, max_steps=max_steps, **SETTINGS), tmp_path / name)
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    finished = subprocess.run(
        [sys.executable, *launch, str(script), str(data), str(tmp_path), json.dumps(SETTINGS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert_same_movement(tmp_path / "two", tmp_path / "one", tmp_path / "start", 1e-4)
    assert len(rows(tmp_path / "denoising", "train")) == 6
