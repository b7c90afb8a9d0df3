"""Commands: what they write, say and return. Exit codes: 0 done, 2 wrong input in one sentence, 1 a bug."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import deformable_detr as dd
from deformable_detr.cli import doctor
from deformable_detr.cli.main import COMMANDS, main, parser_of
from deformable_detr.config import RunConfig, from_dict, settings_of, to_dict
from deformable_detr.detections import ClassTable
from deformable_detr.errors import (
    ExportRefusedError,
    NonFiniteError,
    TrainingInterruptedError,
    UserError,
)
from deformable_detr.evaluation.average_precision import COCO_METRICS
from deformable_detr.exporter.certificate import FLOAT32, INT8
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from deformable_detr.inspection import Forecast
from deformable_detr.training import forecast as forecast_module
from tests.support.forecasts import MEASURED
from tests.support.tiny import tiny_config

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence of a command that must end with exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("deformable-detr: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert "usage:" not in captured.err
    return captured.err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that knows the tiny data's classes, in a checkpoint folder."""
    torch.manual_seed(0)
    config = tiny_config()
    classes = ClassTable.from_names(SHAPES)
    checkpoint = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    return Detector.of(checkpoint, "cpu").save(tmp_path_factory.mktemp("model") / "model")


# ---------------------------------------------------------------- help, and arguments that are wrong


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", overview, re.MULTILINE) for name in COMMANDS)
    assert max(map(len, overview.splitlines())) <= 80
    assert main([]) == 2
    assert capsys.readouterr() == ("", overview)
    assert main(["--version"]) == 0
    assert dd.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns_and_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: deformable-detr {command}")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text_of_its_own(command: str) -> None:
    texts = parser_of(command).texts
    assert [name for name, text in texts.items() if not text.endswith((".", "…"))] == []
    shared = Counter(text.partition(" Default: ")[0] for text in texts.values())
    assert [text for text, count in shared.items() if count > 1] == []


def test_train_shows_what_most_people_need_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    titles = ["common options:", "model:", "data:", "train:", "loss:"]
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line in titles] == titles
    common = text.partition("common options:")[2].partition("\n\n")[0]
    assert len(re.findall(r"^  --", common, re.MULTILINE)) == 10
    flags = set(re.findall(r"^  --([\w.]+)", text, re.MULTILINE))
    assert {setting.path for setting in settings_of(RunConfig)} - {"recipe"} <= flags


@pytest.mark.parametrize(
    ("command", "function"),
    [
        ("evaluate", "evaluation.evaluate"),
        ("predict", "prediction.predict"),
        ("report", "report.write_report"),
        ("export", "exporter.export"),
        ("serve", "serve.serve"),
        ("serve", "serve.ServeSettings"),
        ("train", "training.train"),
        ("demo", "cli.demo.demo"),
    ],
)
def test_options_have_the_defaults_of_the_function_behind_them(command: str, function: str) -> None:
    module, _, name = function.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(f"deformable_detr.{module}"), name))
    arguments = parser_of(command)
    shared = {
        parameter.name: parameter.default
        for parameter in signature.parameters.values()
        if parameter.default is not parameter.empty
        and f"--{parameter.name.replace('_', '-')}" in arguments.texts
    }
    assert len(shared) >= 2
    shared.pop("dtype", None)  # None is fp32
    assert {name: arguments.get_default(name) for name in shared} == shared


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fly away", "there is no command fly: choose one of train, evaluate"),
        ("predict", "required: MODEL, SOURCE"),
        ("predict model", "required: SOURCE"),
        ("train", "required: DATA"),
        ("convert a b", "required: --to"),
        ("evaluate m d --nonsense", "unrecognized arguments: --nonsense"),
        ("evaluate m d --batch-size x", "--batch-size must be a whole number, not 'x'"),
        ("evaluate m d --batch-size 2.0", "--batch-size must be a whole number, not '2.0'"),
        ("evaluate m d --iou-threshold x", "--iou-threshold must be a number, not 'x'"),
        ("evaluate m d --plus-one maybe", "--plus-one must be true or false, not 'maybe'"),
        ("evaluate m d --tta-scales 1", "--tta-scales must be a list of numbers, not '1'"),
        ("evaluate m d --split", "--split: expected one argument"),
        ("evaluate m d --met voc", "unrecognized arguments: --met"),
        ("convert a b --to onyx", "--to must be one of native, authors, transformers, not 'onyx'"),
        ("inspect a b c", "unrecognized arguments: b c"),
        ("train d --train.epochs ten", "train.epochs must be a whole number, not 'ten'"),
        ("train d --train.max_steps ten", "train.max_steps must be a whole number or null, not 'ten'"),
        (
            "train d --model.attention vague",
            "model.attention must be one of dense, deformable, deformable_own_level, not 'vague'",
        ),
        ("train d --model.nonsense 3", "unrecognized arguments: --model.nonsense 3"),
        ("train d --train.epochs -1", "train.epochs must be at least 0, not -1"),
        ("train d --recipe yolo", "there is no recipe yolo: choose one of detr_r50"),
        ("train d --rec deformable_detr_lite", "unrecognized arguments: --rec"),
        ("train d --recipe", "--recipe: expected one argument"),
        ("train d --config nowhere.yaml", "there is no file nowhere.yaml"),
        ("train d --epochs 3", "unrecognized arguments: --epochs 3; did you mean --train.epochs?"),
        ("train d --train.epoch=3", "did you mean --train.epochs?"),
        ("train d --train.lr", "--train.lr: expected one argument"),
        ("train d --data.train_sizes 480", "data.train_sizes must be a list of whole numbers, not 480"),
        ("train d --format xml", "--format must be one of auto, coco, voc, yolo, not 'xml'"),
        ("train d --resume=yes", "--resume must have no value or auto, not 'yes'"),
        ("predict m s --treshold 0.3", "did you mean --threshold?"),
        ("train nowhere", "there is no data set at nowhere"),
        ("train d --init-from nowhere", "there is no model nowhere"),
        ("evaluate nowhere d", "nowhere"),
        ("inspect nowhere", "there is no data set at nowhere"),
        ("predict nowhere README.md --threshold 2", "threshold must be between 0 and 1, not 2"),
        ("predict nowhere none.jpg", "none.jpg: no image or video there"),
        ("convert nowhere out --to native", "there is no model nowhere"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert words in refused(capsys, *line.split())


@pytest.mark.parametrize(
    ("line", "resume"),
    [
        ("d", False),
        ("d --resume", True),
        ("--resume d", True),
        ("d --resume auto", "auto"),
        ("--resume auto d", "auto"),
        ("d --resume=auto", "auto"),
        ("d --resume --train.epochs 3", True),
    ],
)
def test_resume_with_and_without_a_word(line: str, resume: bool | str) -> None:
    arguments = parser_of("train").read(line.split())
    assert (arguments.data, arguments.resume) == ("d", resume)


def test_the_help_of_export_states_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    bounds = zip(("box", "score", "ap"), astuple(FLOAT32), astuple(INT8), strict=True)
    for option, exact, with_int8 in bounds:
        text = said.partition(f"--max-{option}-drift X")[2].partition(" --")[0]
        assert f"Default: {exact}, or {with_int8} with int8." in text


def test_help_shows_the_defaults_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for recipe, queries in (("deformable_detr_lite", 100), ("detr_r50", 100), ("deformable_detr_r50", 300)):
        with pytest.raises(SystemExit):
            main(["train", "d", "--recipe", recipe, "--help"])
        option = capsys.readouterr().out.split("--model.num_queries N")[1].split("--")[0]
        assert f"Default: {queries}." in " ".join(option.split())


def test_a_wrong_command_line_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-c", "import sys; from deformable_detr.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "predict", "m", "s", "--foo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "unrecognized arguments: --foo" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("the cat\nis away: call it."), 2, "the cat is away: call it."),
        (RuntimeError("no such luck"), 1, "RuntimeError: no such luck (--debug shows where)"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: Permission denied; name another path."),
        (FileNotFoundError(2, "No such file", "/proc/x"), 2, "/proc/x: No such file; name another path."),
        (KeyboardInterrupt(), 130, "stopped."),
        (NonFiniteError("update 3: the loss is nan"), 1, "update 3: the loss is nan"),
        (ExportRefusedError("boxes drifted"), 1, "boxes drifted"),
        (TrainingInterruptedError("stopped; --resume"), 130, "stopped; --resume"),
    ],
    ids=["user", "bug", "path", "no path", "ctrl-c", "nan", "export", "training"],
)
def test_exit_codes_and_tracebacks(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: Any) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == f"deformable-detr: {words}\n"
    assert main(["doctor", "--debug"]) == code
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, Exception)


# ---------------------------------------------------------------- commands


def test_evaluate_writes_metrics(
    model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "metrics.json"
    assert main(["evaluate", str(model), str(tiny_data), "--output", str(out)]) == 0
    metrics = json.loads(out.read_text())
    assert set(COCO_METRICS) | {"per_class"} <= metrics.keys()
    assert all(row.keys() == {"AP", "AP50"} for row in metrics["per_class"].values())
    assert metrics["batching"] == "exact"
    printed = capsys.readouterr().out
    assert "AP50" in printed
    assert max(map(len, printed.splitlines())) <= 80
    same = dd.evaluate(model, tiny_data)
    assert same.keys() == metrics.keys()
    assert {name: same[name] for name in COCO_METRICS} == {name: metrics[name] for name in COCO_METRICS}


def test_evaluate_refuses(
    model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is a folder" in refused(capsys, "evaluate", str(model), str(tiny_data), "--output", str(tmp_path))
    assert "nonsense" in refused(capsys, "evaluate", str(model), str(tiny_data), "--split", "nonsense")
    assert "this machine has no device abacus" in refused(
        capsys, "evaluate", str(model), str(tiny_data), "--device", "abacus"
    )


def test_predict_writes_pictures_and_rows(
    model: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    originals = sorted((tiny_data / "val").iterdir())[:2]
    for path in originals:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "broken.jpg").write_text("nonsense")
    arguments = ["predict", str(model), str(source), "--output", str(out), "--threshold", "0"]
    assert main([*arguments, "--max-detections", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("10 detections in 2 pictures")
    skipped, warning = captured.err.splitlines()
    assert "broken.jpg" in skipped
    assert warning == f"warning: 1 of 3 inputs skipped, see {out / 'report.json'}"
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["category_name"] for row in rows} <= set(SHAPES)
    assert {row["file_name"] for row in rows} == {str(source / path.name) for path in originals}
    for path in originals:
        with Image.open(out / path.name) as drawn, Image.open(path) as original:
            assert drawn.size == original.size
    (tmp_path / "file").write_text("")
    refused(capsys, "predict", str(model), str(source), "--output", str(tmp_path / "file"))
    refused(capsys, "predict", str(model), str(source), "--output", str(source))


def test_convert_writes_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = tiny_config(name="resnet50", num_levels=1)
    classes = ClassTable.from_names(["a", "b"])
    made = new_checkpoint(config.model, classes, config.data, config.recipe, None)
    source = Detector.of(made, "cpu").save(tmp_path / "source")
    image = [torch.rand(3, 40, 50)]
    with torch.no_grad():
        wanted = dd.load(source, device="cpu").model(image).predictions[-1]
    for target, name in (("native", "native"), ("authors", "authors.pth"), ("transformers", "theirs")):
        out = tmp_path / name
        assert main(["convert", str(source), str(out), "--to", target]) == 0
        assert str(out) in capsys.readouterr().out
        back = dd.load(out, device="cpu")
        with torch.no_grad():
            assert torch.equal(back.model(image).predictions[-1].logits, wanted.logits), target
        assert "already exists" in refused(capsys, "convert", str(source), str(out), "--to", target)


def test_inspect_reports_and_is_strict_if_asked(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main(["inspect", str(tiny_data), "--output", str(out)]) == 0
    assert "circle" in capsys.readouterr().out
    assert json.loads(out.read_text())
    assert main(["inspect", str(tiny_data), "--strict"]) == 0


def test_inspect_takes_a_recipe_its_changes_and_writes_a_page(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    options = ["--recipe", "deformable_detr_r50", "--model.num_queries", "3", "--images", "headers"]
    assert main(["inspect", str(tiny_data), "--output", str(out), *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Objects as deformable_detr_r50 sees them" in said
    assert "more objects than the 3 queries of deformable_detr_r50" in said
    assert "only the headers of images were read" in said
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    assert main(["inspect", str(tiny_data), "--config", str(config_file(tmp_path, num_queries=4))]) == 0
    assert "more objects than the 4 queries" in " ".join(capsys.readouterr().out.split())
    assert ".json or .html" in refused(capsys, "inspect", str(tiny_data), "--output", "x.pdf")


def test_inspect_forecasts_training(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the configuration that `train` would use; what is measured has its tests in test_forecast.py."""
    asked: list[Any] = []

    def measured(data: str, config: RunConfig, **options: Any) -> Forecast:
        asked.append((data, config.model.num_queries, config.train.epochs, options))
        return MEASURED

    monkeypatch.setattr(forecast_module, "forecast", measured)
    out = tmp_path / "report.json"
    command = ["inspect", str(tiny_data), "--images", "no", "--output", str(out), "--model.num_queries", "7"]
    assert main([*command, "--forecast", "--device", "cpu", "--train.epochs", "9"]) == 0
    assert asked == [(str(tiny_data), 7, 9, {"format": "auto", "device": "cpu"})]
    assert "An epoch takes 2 min on the CPU" in capsys.readouterr().out
    assert json.loads(out.read_text())["forecast"]["epoch_seconds"] == 100


def test_strict_refuses_broken_data_in_every_command(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["annotations"][0]["bbox"][2] = 0
        path.write_text(json.dumps(content))
    model = dd.create("deformable_detr_lite", classes=["circle"], device="cpu").save(tmp_path / "model")
    run = tmp_path / "run"
    for command in (
        ["inspect", str(data)],
        ["train", str(data), "--recipe", "deformable_detr_lite", "--output", str(run)],
        ["evaluate", str(model), str(data)],
    ):
        assert "problem" in refused(capsys, *command, "--strict")
    assert not run.exists()


# ---------------------------------------------------------------- train


def config_file(folder: Path, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(to_dict(tiny_config(**changes))))
    return path


def written_config(run: Path) -> RunConfig:
    return from_dict(RunConfig, yaml.safe_load((run / "config.yaml").read_text()))


def test_train_by_recipe_config_file_and_flags(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Precedence: recipe < --config < flags; and what a run leaves behind."""
    config = config_file(tmp_path, num_queries=11, seed=5)
    run = tmp_path / "run"
    arguments = ["train", str(tiny_data), "--recipe", "deformable_detr_lite", "--config", str(config)]
    arguments += ["--output", str(run), "--device", "cpu"]
    assert main([*arguments, "--train.max_steps", "2", "--train.seed=6", "--data.train_sizes", "[48]"]) == 0

    made = written_config(run)
    assert made.recipe == "deformable_detr_lite"
    assert made.train.clip_norm == 0.1  # the recipe's
    assert (made.model.num_queries, made.model.num_classes) == (11, 6)  # the file's, the data's
    assert (made.train.seed, made.train.max_steps, made.data.train_sizes) == (6, 2, (48,))  # flags
    assert str(run) in capsys.readouterr().out
    trained = dd.load(run, device="cpu")
    assert trained.classes.names == SHAPES
    assert trained.recipe == "deformable_detr_lite"
    assert (run / "metrics.jsonl").is_file()

    assert "already contains a run" in refused(capsys, *arguments)
    assert main([*arguments[:2], "--output", str(run), "--resume", "--train.max_steps", "3"]) == 0
    assert "resuming after update 2" in capsys.readouterr().out


def test_train_in_python_takes_fields_by_name_or_path(tiny_data: Path, tmp_path: Path) -> None:
    trained = dd.train(
        tiny_data, tiny_config(), tmp_path / "run", device="cpu", max_steps=1, **{"train.seed": 9}
    )
    assert isinstance(trained, dd.Detector)
    made = written_config(tmp_path / "run")
    assert (made.train.max_steps, made.train.seed) == (1, 9)
    with pytest.raises(UserError, match="unknown field nonsense"):
        dd.train(tiny_data, tiny_config(), tmp_path / "other", nonsense=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epochs: ten}", "train.epochs must be a whole number, not 'ten'"),
        ("model: {attention: vague}", "model.attention must be one of dense, deformable"),
        ("nonsense: 3", "unknown field nonsense"),
        ("train: {epochs: 2024-99-99}", "cannot be read as a YAML configuration"),
        ("just words", "holds no configuration"),
        ("a: [", "cannot be read as a YAML configuration"),
    ],
)
def test_a_wrong_config_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    sentence = refused(capsys, "train", "data", "--config", str(path))
    assert words in sentence
    assert str(path) in sentence


def test_train_into_what_cannot_be_a_folder(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_file(tmp_path)
    (tmp_path / "file").write_text("")
    arguments = ("train", str(tiny_data), "--config", str(config), "--output", str(tmp_path / "file"))
    assert str(tmp_path / "file") in refused(capsys, *arguments)
    assert "nothing" in refused(
        capsys, "train", str(tiny_data), "--resume", "--output", str(tmp_path / "nothing")
    )
