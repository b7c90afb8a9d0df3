"""Two trainings do not share a run folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deformable_detr.errors import UserError
from deformable_detr.run_folder.lock import locked
from deformable_detr.run_folder.names import LOCK_FILE
from deformable_detr.training import train
from tests.support.tiny import tiny_config

pytest.importorskip("fcntl", reason="Windows has no such locks")

# Without the package, whose import takes seconds.
OTHER = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.write(lock, b"%d" % os.getpid())
print("locked", flush=True)
if os.fork() == 0:  # as loader processes are
    import time
    time.sleep(60)
sys.stdin.read()
"""


def test_the_second_training_is_refused_at_its_start(tiny_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, run / LOCK_FILE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=rf"another training .*{run} \(process {other.pid}\).*--output"):
            train(tiny_data, tiny_config(), run)
        assert {path.name for path in run.iterdir()} == {LOCK_FILE}
        other.kill()
        other.wait()
        with locked(run):  # what a killed process leaves behind stops nobody, nor do its children
            assert (run / LOCK_FILE).exists()
    assert not list(run.iterdir())


def test_a_refused_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train(tmp_path / "no_data", tiny_config(), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
