"""Training in processes of its own: two of them under torchrun, and the command line stopped by signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deformable_detr.config import to_dict
from deformable_detr.evaluation import evaluate
from deformable_detr.training.run import train
from tests.support.tiny import (
    as_detr,
    assert_same_movement,
    assert_same_run,
    repeatable_in_parts,
    rows,
    tiny_config,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SECONDS = 600  # for a program to start and work on a machine that others use, too
EPOCHS = 1000  # of six updates: more than a machine does while this process waits for its turn
COMMAND_LINE = "import sys; from deformable_detr.cli import main; sys.exit(main())"

# What each of the two processes runs: sys.argv is data, output.
TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from tests.support.tiny import as_detr, repeatable_in_parts
from deformable_detr.evaluation import evaluate
from deformable_detr.training import train

torch.optim.AdamW = torch.optim.SGD
data, output = sys.argv[1], Path(sys.argv[2])
train(data, repeatable_in_parts(batch_size=2, max_steps=3, report=True), output / "focal2")
train(data, as_detr(repeatable_in_parts(batch_size=2, max_steps=3)), output / "softmax2")
for name in ("start", "focal2"):
    metrics = evaluate(output / name, data, progress=False)
    if torch.distributed.get_rank() == 0:
        (output / f"{name}.json").write_text(json.dumps(metrics))
torch.distributed.destroy_process_group()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_two_processes_train_as_one(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Plain descent instead of AdamW, as in test_update.py: it does not blow up rounding.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    for family, name in ((lambda config: config, "focal"), (as_detr, "softmax")):
        start = "start" if name == "focal" else "start-softmax"
        train(tiny_data, family(repeatable_in_parts(batch_size=4, max_steps=0)), tmp_path / start)
        train(tiny_data, family(repeatable_in_parts(batch_size=4, max_steps=3)), tmp_path / name)
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    finished = subprocess.run(
        [sys.executable, *launch, str(script), str(tiny_data), str(tmp_path)],
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    for name, start in (("focal", "start"), ("softmax", "start-softmax")):
        assert_same_movement(tmp_path / f"{name}2", tmp_path / name, tmp_path / start, 1e-4)
        assert [row["step"] for row in rows(tmp_path / f"{name}2", "train")] == [1, 2, 3]
        assert len(rows(tmp_path / f"{name}2", "evaluation")) == 1
    assert "2 processes" in (tmp_path / "focal2" / "report.html").read_text()
    assert finished.stdout.count("report: ") == 1
    for name in ("start", "focal2"):
        together = json.loads((tmp_path / f"{name}.json").read_text())
        alone = evaluate(tmp_path / name, tiny_data, progress=False)
        assert {**together, "seconds": 0} == {**alone, "seconds": 0}


def start_training(data: Path, output: Path, **changes: Any) -> subprocess.Popen[str]:
    """The command line, in a process group of its own, once it has done some updates."""
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(to_dict(tiny_config(epochs=EPOCHS, evaluate_every=EPOCHS, **changes))))
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            COMMAND_LINE,
            "train",
            str(data),
            "--config",
            str(config),
            "--output",
            str(output),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + SECONDS
    metrics = output / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "to_group", "num_workers"),
    [(signal.SIGTERM, False, 0), (signal.SIGTERM, True, 2), (signal.SIGINT, True, 2)],
    ids=["kill", "a scheduler's SIGTERM", "Ctrl-C in a terminal"],
)
def test_stopped_by_a_signal_and_resumed(
    tiny_data: Path, tmp_path: Path, number: signal.Signals, to_group: bool, num_workers: int
) -> None:
    run = tmp_path / "run"
    process = start_training(tiny_data, run, num_workers=num_workers)
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, error
    assert "stopped after update" in error
    assert "--resume" in error
    assert "Traceback" not in error
    stopped_at = rows(run, "train")[-1]["step"]
    assert stopped_at < 6 * EPOCHS

    last = stopped_at + 3
    train(tiny_data, None, run, resume=True, max_steps=last)
    whole = tiny_config(epochs=EPOCHS, evaluate_every=EPOCHS, num_workers=0, max_steps=last)
    train(tiny_data, whole, tmp_path / "whole")
    assert_same_run(run, tmp_path / "whole")
