"""Training on two machines: two agents of torchrun, each with its own run folder and one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deformable_detr.training import train
from tests.support.tiny import assert_same_movement, assert_same_run, repeatable_in_parts, rows, state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SECONDS = 300  # for three starts of two processes on a machine that others use, too
CHANGES = {"max_steps": 6, "checkpoint_every": 2}

# What each process runs: sys.argv is the data, the run folder and the folder of the marks. A process that
# finds the mark of an update and its rank removes it and dies.
WORKER = """
import os, signal, sys
from pathlib import Path
import torch
from deformable_detr.training import run
from tests.support.tiny import repeatable_in_parts

data, output, marks = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
update = run.update

def update_or_die(*arguments, number, **options):
    mark = marks / f"{number}-{os.environ['RANK']}"
    if mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*arguments, number=number, **options)

run.update = update_or_die
torch.optim.AdamW = torch.optim.SGD
run.train(data, repeatable_in_parts(batch_size=2, CHANGES), output, resume="auto")
torch.distributed.destroy_process_group()
""".replace("CHANGES", f"**{CHANGES}")


def run_on_two_machines(data: Path, folder: Path, deaths: tuple[str, ...]) -> Path:
    """Train and return the first machine's run folder. `deaths`: "update-rank" of the processes that die."""
    marks = folder / "marks"
    marks.mkdir(parents=True)
    for death in deaths:
        (marks / death).touch()
    script = folder / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        # Else the agents' own counts of restarts, which differ, decide where processes look for each other.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    agents = []
    # torchrun gives rank 0 to the machine whose address comes first in alphabetical order.
    for machine, address in (("first", "127.0.0.1"), ("second", "127.0.0.2")):
        launch = [
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "2",
            "--monitor-interval",
            "0.2",
        ]
        launch += ["--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", endpoint]
        launch += ["--rdzv-conf", f"is_host={machine == 'first'}", "--local-addr", address]
        with (folder / f"{machine}.log").open("w") as log:
            agents.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "torch.distributed.run",
                        *launch,
                        script,
                        data,
                        folder / machine,
                        marks,
                    ],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [agent.wait(SECONDS) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    logs = [(folder / f"{machine}.log").read_text()[-4000:] for machine in ("first", "second")]
    assert codes == [0, 0], "\n\n".join(logs)
    assert not list(marks.iterdir())  # all have died that should
    assert not (folder / "second").exists()
    return folder / "first"


def test_two_machines_train_as_one_and_survive_the_death_of_processes(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = run_on_two_machines(tiny_data, tmp_path / "undisturbed", ())
    # Plain descent instead of AdamW, as in test_update.py: it does not blow up rounding.
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.SGD)
    train(tiny_data, repeatable_in_parts(batch_size=4, max_steps=0), tmp_path / "start")
    train(tiny_data, repeatable_in_parts(batch_size=4, **CHANGES), tmp_path / "alone")
    assert_same_movement(together, tmp_path / "alone", tmp_path / "start", 1e-4)
    assert [row["step"] for row in rows(together, "train")] == [1, 2, 3, 4, 5, 6]

    # Before anything was saved, a process on the second machine dies; later, the first process does.
    killed = run_on_two_machines(tiny_data, tmp_path / "killed", ("2-1", "6-0"))
    assert state(killed)["step"] == 6
    assert_same_run(killed, together)
