"""The launch lines of docs/scale_training.md are options that torchrun and `train` know."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from torch.distributed.run import get_args_parser

from deformable_detr.cli.main import parser_of

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale_training.md").read_text(encoding="utf-8")


def check(words: list[str]) -> None:
    launch = get_args_parser().parse_args(words)
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "8", 3)
    assert launch.rdzv_backend == "c10d"
    assert launch.rdzv_endpoint.endswith(":29400")
    assert (launch.module, launch.training_script) == (True, "deformable_detr")
    command, *options = launch.training_script_args
    assert command == "train"
    train = parser_of("train").read(options)
    assert train.resume == "auto"
    assert vars(train)["train.checkpoint_every"] == 500


def test_the_launch_lines_of_plain_machines_and_slurm() -> None:
    lines = re.findall(r"torchrun (--nnodes.*?)\n\n?```", PAGE, re.DOTALL)
    assert len(lines) == 2
    for line in lines:
        check(shlex.split(line.replace("\\\n", " ").replace("$SLURM_NNODES", "2")))


def test_the_manifest_of_kubernetes() -> None:
    (text,) = re.findall(r"```yaml\n(apiVersion.*?)```", PAGE, re.DOTALL)
    service, job = yaml.safe_load_all(text)
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check([*container["command"][1:], *container["args"]])
    name = job["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == name
    assert f"--rdzv-endpoint={name}-0.{pod['subdomain']}:29400" in container["args"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
