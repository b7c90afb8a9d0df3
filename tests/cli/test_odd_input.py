"""Names and documents that nobody would choose reach the command line as one sentence."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.cli import main
from deformable_detr.cli.main import parser_of
from tests.support.dataset_files import coco_content, write_coco, write_image

CAT = ("cat", (4.0, 6.0, 24.0, 18.0))


def test_control_characters_in_names_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content({"a.jpg": [("\x1b]0;owned\x07\x1b[2J", CAT[1])]})
    content["annotations"].append({**content["annotations"][0], "id": 9, "bbox": [1, 1, 0, 0]})
    write_coco(tmp_path / "\x1b[2Jdata", content)
    assert main(["inspect", str(tmp_path / "\x1b[2Jdata")]) == 0
    assert main(["inspect", str(tmp_path / "\x1b[2Jnowhere")]) == 2
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\x07" not in captured.out
    assert "\\x1b[2Jnowhere" in captured.err


def test_an_output_that_is_not_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, coco_content({os.fsdecode(b"K\xe4fer.jpg"): [("Größe", CAT[1])]}))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["inspect", str(tmp_path)]) == 0
    sys.stdout.flush()
    assert b"Gr\\xf6" in written.getvalue()


def test_too_little_memory_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_coco(tmp_path, coco_content({"a.jpg": [CAT]}))

    def loads(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(json, "loads", loads)
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "not enough memory" in said
    assert "MemoryError" not in said


@pytest.mark.parametrize(
    "command",
    [
        "predict demo a.png",
        "explain demo a.png",
        "evaluate demo d",
        "report demo d",
        "export demo --to onnx --output m.onnx",
    ],
)
def test_the_advice_on_large_pictures_can_be_followed(command: str) -> None:
    name, *words = command.split()
    arguments = parser_of(name, words).read([*words, "--data.max_pixels", "300000000"])
    assert arguments.max_pixels == 300_000_000


def test_a_larger_limit_reads_a_larger_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = write_image(tmp_path / "a.png", (48, 64))
    words = ["predict", "demo", str(picture), "--output", str(tmp_path / "out"), "--data.max_pixels"]
    assert main([*words, "100"]) == 2
    assert "--data.max_pixels" in capsys.readouterr().err
    assert main([*words, "3072"]) == 0


@pytest.mark.parametrize(
    "command", ["inspect LONG", "predict demo LONG.png", "explain demo a.png --output LONG.png"]
)
def test_names_that_are_too_long_are_a_users_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png")
    assert main(command.replace("LONG", "y" * 300).split()) == 2
    said = capsys.readouterr().err
    assert "y" * 300 in said
    assert "too long" in said or "no " in said


def test_thresholds_of_classes_whose_names_have_commas() -> None:
    words = ["demo", "a.png", "--class-thresholds", "bus, coach=0.3,car=0.5"]
    assert parser_of("predict", words).read(words).class_thresholds == {"bus, coach": 0.3, "car": 0.5}


@pytest.mark.parametrize("words", [["inspect", ""], ["predict", "demo", ""], ["evaluate", "", "data"]])
def test_an_empty_argument_is_not_the_current_folder(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "must not be empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--output", "FILE"], ["--device", "gpu"]])
def test_wrong_arguments_are_refused_before_a_model_is_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = write_image(tmp_path / "a.png")
    missing = str(tmp_path / "no_model")
    rest = [word.replace("FILE", str(picture)) for word in words]
    assert main(["predict", missing, str(picture), "--output", str(tmp_path / "out"), *rest]) == 2
    assert "no_model" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
