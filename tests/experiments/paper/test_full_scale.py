"""The scripts for GPUs: they are bash, what they start is accepted by the real parser, and it trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deformable_detr.cli.main import parser_of
from deformable_detr.cli.settings import changes
from deformable_detr.config import override, recipe
from tests.support.paths import data_set

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
ONE_NODE, SLURM = SCRIPTS / "full_scale.sh", SCRIPTS / "full_scale.sbatch"
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="these scripts need bash")


def start(
    script: Path, folder: Path, arguments: list[str], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder`, in which `bin/` has the programs that it is to find first."""
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [str(BASH), str(script), *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def launchers(tmp_path: Path) -> Path:
    """A folder whose `torchrun` and `srun` only say how they were called, one argument a line."""
    (tmp_path / "bin").mkdir()
    for name, body in (
        ("torchrun", 'printf "%s\\n" "$@"'),
        ("srun", '"$@"'),
        ("scontrol", 'printf "node1\\nnode2\\n"'),
    ):
        program = tmp_path / "bin" / name
        program.write_text(f"#!{BASH}\n{body}\n")
        program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("script", [ONE_NODE, SLURM], ids=lambda script: script.name)
def test_the_scripts_are_bash(script: Path) -> None:
    assert subprocess.run([str(BASH), "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("script", "environment", "processes", "accumulate"),
    [
        (ONE_NODE, {}, 8, 2),
        (ONE_NODE, {"GPUS": "4", "BATCH": "1"}, 4, 8),
        (SLURM, {"SLURM_NNODES": "2"}, 16, 1),
        (SLURM, {"SLURM_NNODES": "1"}, 8, 2),
    ],
)
@pytest.mark.parametrize("name", ["deformable_detr_r50", "deformable_detr_r50_two_stage"])
def test_what_they_start_is_the_published_setting(
    launchers: Path, script: Path, environment: dict[str, str], processes: int, accumulate: int, name: str
) -> None:
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}
    finished = start(script, launchers, ["coco", name, "--train.precision", "bf16"], **slurm, **environment)
    assert finished.returncode == 0, finished.stderr
    launch, _, rest = finished.stdout.partition("deformable_detr\ntrain\n")
    arguments = rest.splitlines()
    parsed = parser_of("train", arguments).read(arguments)
    train = override(recipe(parsed.recipe), changes(vars(parsed))).train
    nodes = int(environment.get("SLURM_NNODES", 1)) if script == SLURM else 1
    per_node = launch.splitlines()[launch.splitlines().index("--nproc-per-node") + 1]
    assert int(per_node) * nodes == processes
    assert train.batch_size * train.accumulate * processes == 32
    assert train.accumulate == accumulate
    published = recipe(name).train
    assert (train.epochs, train.lr_drop_epochs) == (50, published.lr_drop_epochs)
    assert (train.lr, train.precision) == (published.lr, "bf16")
    assert parsed.output == f"runs/paper/runs/full/{name}-50ep-seed42"
    assert not parsed.resume


@pytest.mark.parametrize(
    ("script", "nodes"), [(ONE_NODE, "1"), (SLURM, "2")], ids=["one node", "two nodes under Slurm"]
)
@pytest.mark.parametrize(("epochs", "drop"), [({}, 11), ({"EPOCHS": "24"}, 20), ({"EPOCHS": "36"}, 30)])
def test_later_recipes_have_a_schedule_of_their_own(
    launchers: Path, script: Path, nodes: str, epochs: dict[str, str], drop: int
) -> None:
    slurm = {"SLURM_NNODES": nodes, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}
    name = "deformable_detr_r50_plus"
    _, _, rest = start(script, launchers, ["coco", name], **slurm, **epochs).stdout.partition(
        "deformable_detr\ntrain\n"
    )
    parsed = parser_of("train", rest.splitlines()).read(rest.splitlines())
    train = override(recipe(parsed.recipe), changes(vars(parsed))).train
    assert train.batch_size * train.accumulate * 8 * int(nodes) == 16
    assert (train.epochs, train.lr_drop_epochs) == (int(epochs.get("EPOCHS", 12)), (drop,))
    if not epochs:
        assert train.lr_drop_epochs == recipe(name).train.lr_drop_epochs


def test_a_run_that_was_stopped_is_resumed(launchers: Path) -> None:
    run = launchers / "runs/paper/runs/full/deformable_detr_r50-50ep-seed42"
    run.mkdir(parents=True)
    (run / "training_state.pt").touch()
    assert "--resume\n" in start(ONE_NODE, launchers, ["coco", "deformable_detr_r50"]).stdout


def test_other_batches_and_schedules(launchers: Path) -> None:
    detr = start(ONE_NODE, launchers, ["coco", "detr_r50"], EPOCHS="500", TOTAL="64").stdout
    assert "--train.accumulate\n4\n" in detr
    assert "--train.lr_drop_epochs\n[400]\n" in detr
    assert (
        "--train.lr_drop_epochs\n[1]\n" in start(ONE_NODE, launchers, ["coco", "detr_r50"], EPOCHS="1").stdout
    )


@pytest.mark.parametrize("script", [ONE_NODE, SLURM], ids=lambda script: script.name)
def test_missing_requirements_are_reported(launchers: Path, script: Path) -> None:
    slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "7"}
    for arguments, environment, words in (
        ([], {}, "usage: "),
        (["coco"], {}, "usage: "),
        (["coco", "detr_r50"], {"BATCH": "two"}, "must be whole numbers of at least 1, not 'two'"),
        (["coco", "detr_r50"], {"EPOCHS": "0"}, "must be whole numbers of at least 1, not '0'"),
    ):
        finished = start(script, launchers, arguments, **slurm, **environment)
        assert finished.returncode == 2
        assert words in finished.stderr
        assert len(finished.stderr.splitlines()) == 1


def test_gpus_that_do_not_divide_the_batch_are_refused(launchers: Path) -> None:
    finished = start(ONE_NODE, launchers, ["coco", "deformable_detr_r50"], GPUS="5")
    assert finished.returncode == 2
    assert "must divide TOTAL=32" in finished.stderr


@pytest.mark.slow
def test_a_dry_run_of_two_processes_on_coco(tmp_path: Path) -> None:
    small = {"backbone.name": "test_efficientnet", "hidden_dim": 32, "num_queries": 20, "ffn_dim": 64}
    small |= {"encoder_layers": 1, "decoder_layers": 2, "backbone.trainable_layers": 5}
    options = [f"--model.{name}={value}" for name, value in small.items()]
    options += ["--data.image_size=64", "--data.max_size=96", "--data.train_sizes=[64]", "--device=cpu"]
    options += ["--data.augmentation=light", "--data.num_workers=0", "--train.backbone_weights=null"]
    arguments = [str(data_set("tiny_coco")), "deformable_detr_r50", "--train.max_steps", "2", *options]
    finished = start(ONE_NODE, tmp_path, arguments, GPUS="2", OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr[-3000:]
    run = tmp_path / "runs/paper/runs/full/deformable_detr_r50-50ep-seed42"
    assert (run / "checkpoints" / "last" / "model.safetensors").is_file()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train"]["accumulate"] == 8  # 2 processes x 2 pictures x 8 = 32
    assert "2 x 8 x 2 images" in finished.stdout
