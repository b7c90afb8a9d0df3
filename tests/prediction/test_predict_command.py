"""`deformable-detr predict`: what it prints, and its exit codes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deformable_detr.cli import main
from deformable_detr.inference.detector import Detector
from deformable_detr.prediction import command
from tests.support.scenes import SquareFinder, moving_squares, squares, write, write_video


@pytest.fixture
def finder(monkeypatch: pytest.MonkeyPatch) -> SquareFinder:
    """What every MODEL is."""
    finder = SquareFinder()
    monkeypatch.setattr(command, "load", lambda *_, **__: finder)
    return finder


def run(*arguments: object) -> int:
    return main(["predict", "model", *map(str, arguments)])


def test_broken_inputs_are_a_warning_unless_all_are(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_text("nonsense")
    out = tmp_path / "out"
    assert run(tmp_path / "broken.mp4", "--output", out) == 2
    assert capsys.readouterr().err.count("\n") == 1
    write(tmp_path / "a.png")
    assert run(tmp_path / "broken.mp4", tmp_path / "a.png", "--output", out) == 0
    captured = capsys.readouterr()
    assert "detections in 1 picture: " in captured.out
    assert captured.err.splitlines()[-1] == f"warning: 1 of 2 inputs skipped, see {out / 'report.json'}"


def test_a_video_is_summed_up(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "a.mp4", [moving_squares(index) for index in range(6)])
    assert run(path, "--output", tmp_path / "out", "--every", 2, "--no-track") == 0
    assert capsys.readouterr().out.startswith(f"6 detections in 3 frames of {path}: ")
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["frame"] for row in rows} == {0, 2, 4}
    assert {row["track_id"] for row in rows} == {None}


def test_tiles_and_classes_by_options(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One small square for the tiles, one large one for all."""
    Image.fromarray(squares((600, 600), [(100, 100, 112, 112), (200, 200, 500, 500)])).save(
        tmp_path / "a.png"
    )

    def found(*options: object) -> int:
        assert run(tmp_path / "a.png", "--output", tmp_path / "out", *options) == 0
        return len(json.loads((tmp_path / "out" / "predictions.json").read_text()))

    assert found() == 1
    assert found("--tile") == 2
    assert found("--tile-size", 200, "--tile-overlap", 0.4) == 2
    assert found("--tile-overlap", 0.3) == 2
    assert found("--tile", "--class-thresholds", "square=0.8,other=0.1") == 1
    assert found("--tile", "--threshold", 1, "--class-thresholds", "square=0.5") == 2
    assert found("--tile", "--classes", "other, square") == 2
    assert found("--tile", "--classes", "other") == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "--class-thresholds square",
            "--class-thresholds must be NAME=SCORE,…, as in car=0.3,bus=0.6, not square",
        ),
        ("--class-thresholds =0.5", "not =0.5"),
        ("--class-thresholds square=x", "not square=x"),
        ("--class-thresholds square=2", "the threshold of square must be between 0 and 1, not 2.0"),
        ("--classes squares", "the model has no class squares: did you mean square?"),
        ("--tile-size 3", "a tile must have a side of at least 16 pixels, not 3"),
        ("--tile --tile-overlap 1", "the overlap of tiles must be a share between 0 and 0.75"),
        ("--every 0", "every must be at least 1, not 0"),
    ],
)
def test_wrong_options_are_reported(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    write(tmp_path / "a.png")
    assert run(tmp_path / "a.png", "--output", tmp_path / "out", *options.split()) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_stdin_is_the_only_source(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (("-", tmp_path), ("-", "--output", tmp_path)):
        assert run(*arguments) == 2
        assert "the source - must be the only one, without --output" in capsys.readouterr().err


def test_ctrl_c_reports_what_was_done(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", [moving_squares(index) for index in range(6)])
    detect, calls = finder.detect, []

    def interrupted(*arguments: Any, **options: Any) -> Any:  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    monkeypatch.setattr(finder, "detect", interrupted)
    assert run(path, "--output", tmp_path / "out") == 130
    captured = capsys.readouterr()
    assert captured.out.startswith(f"8 detections in 4 frames of {path}: ")
    assert captured.err == "deformable-detr: stopped; what was done until then is written.\n"


def test_earlier_results_are_named(
    finder: SquareFinder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.png")
    for _ in range(2):
        assert run(tmp_path, "--output", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert captured.err == f"left out {tmp_path / 'out'}: it holds results of predict\n"


def test_json_lines_through_pipes(detector: Detector, tmp_path: Path) -> None:
    """In a process of its own: nothing but answers on stdout, one for each line, though a library prints."""
    model = detector.save(tmp_path / "model")
    picture = write(tmp_path / "a.png")
    lines = [
        {"path": str(picture), "id": 1},
        {"path": "nowhere.png", "id": 2},
        {"image": base64.b64encode(picture.read_bytes()).decode(), "id": 3},
    ]
    code = (
        "import sys; from deformable_detr import cli; from deformable_detr.inference import loading as d\n"
        "load = d.load\n"
        "d.load = lambda *a, **k: (print('a library prints'), load(*a, **k))[1]\n"
        f"sys.exit(cli.main(['predict', {str(model)!r}, '-', '--threshold', '0', '--max-detections', '3']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = []
    for line in lines:  # a conversation: the answer comes while stdin is open
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()
        answers.append(json.loads(process.stdout.readline()))
    rest, errors = process.communicate(timeout=600)
    assert rest == ""
    assert "a library prints" in errors
    assert process.returncode == 0
    assert [answer["id"] for answer in answers] == [1, 2, 3]
    assert "there is no image file" in answers[1]["error"]
    assert len(answers[0]["detections"]) == 3
    assert answers[0]["detections"] == answers[2]["detections"]


def test_a_reader_that_goes_away_is_no_failure(detector: Detector, tmp_path: Path) -> None:
    model = detector.save(tmp_path / "model")
    (tmp_path / "requests").write_text('{"path": "nowhere.png"}\n' * 3000)
    command = f"{sys.executable} -m deformable_detr predict {model} - < {tmp_path}/requests | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "there is no image file" in json.loads(done.stdout)["error"]
    assert done.stderr == ""
