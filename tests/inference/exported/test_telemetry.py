"""Exported models leave no trace outside: ONNX Runtime and OpenVINO look up no name, and so send nothing, and
keep no identifier in the home folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.exported_files import write_toy

for name in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(name)

COMPILER = shutil.which("cc")
# Loaded before the C library, it writes down what the process looks up, in whatever language the caller is.
WATCH = r"""
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>

int getaddrinfo(const char *node, const char *service,
                const struct addrinfo *hints, struct addrinfo **found) {
    FILE *log = fopen(getenv("LOOKED_UP"), "a");
    fprintf(log, "%s\n", node ? node : "-");
    fclose(log);
    return EAI_FAIL;
}
"""

PROGRAM = """
import socket, sys, time
import numpy as np
import deformable_detr as dd
for file in sys.argv[1:]:
    dd.load(file).predict(np.zeros((40, 40, 3), dtype=np.uint8))
time.sleep(1.5)
try:
    socket.getaddrinfo("control.invalid", 80)
except OSError:
    pass
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
@pytest.mark.skipif(COMPILER is None, reason="no C compiler here")
def test_nothing_is_looked_up_and_nothing_is_left(tmp_path: Path) -> None:
    assert COMPILER is not None
    (tmp_path / "watch.c").write_text(WATCH)
    library = tmp_path / "watch.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, tmp_path / "watch.c"], check=True)
    files = [write_toy(tmp_path / f"toy{suffix}") for suffix in (".onnx", ".xml")]
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    hidden = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HOME": str(home), "LD_PRELOAD": str(library), "LOOKED_UP": str(log)}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, files)], env=environment, cwd=tmp_path, check=True
    )
    assert log.read_text().split() == ["control.invalid"]
    left = {path.name for path in home.rglob("*") if path.is_file()}
    assert not [name for name in left if "device" in name or "onnxruntime" in name or "openvino" in name]
    assert not (home / "intel").exists()
