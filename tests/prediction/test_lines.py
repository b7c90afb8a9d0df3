"""JSON lines: every line gets one answer, whatever it holds."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deformable_detr.errors import UserError
from deformable_detr.prediction import Tiling, answer_lines, answer_stdin
from deformable_detr.prediction import lines as lines_module
from tests.support.scenes import SquareFinder, squares

BOX = (20, 30, 60, 70)


def encoded(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def answers(*requests: Any, **options: Any) -> list[dict[str, Any]]:
    """To requests given as objects, or as raw lines."""
    lines = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in requests]
    said: list[str] = []
    report = answer_lines(SquareFinder(), io.BytesIO(b"\n".join(lines)), said.append, **options)
    found = [json.loads(line) for line in said]
    assert all("\n" not in line for line in said)
    assert report.failed == sum("error" in one for one in found)
    assert report.answered + report.failed == len(found)
    return found


def test_paths_and_pictures_are_answered_alike(tmp_path: Path) -> None:
    picture = squares((100, 120), [BOX])
    Image.fromarray(picture).save(tmp_path / "a.png")
    by_path, by_content = answers(
        {"path": str(tmp_path / "a.png"), "id": "first"}, {"image": encoded(picture)}
    )
    assert by_path.pop("id") == "first"
    assert by_content.pop("id") == 2
    assert by_path == by_content
    assert (by_path["width"], by_path["height"]) == (120, 100)
    (row,) = by_path["detections"]
    assert list(row) == ["category_id", "bbox", "score", "category_name"]
    assert (row["category_id"], row["category_name"]) == (4, "square")
    np.testing.assert_allclose(row["bbox"], [20, 30, 40, 40], atol=1)


def test_a_wrong_line_is_answered_and_the_next_one_read() -> None:
    good = {"image": encoded(squares((60, 60), [(10, 10, 40, 40)]))}
    wrong: list[tuple[Any, str]] = [
        (b"not json", "the line is not JSON"),
        (b"\xff\xfe", "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        (b'{"path": "a", "id": NaN}', "NaN is not a JSON number"),
        ([1, 2], "not a JSON object but list"),
        ({}, "either path or image, not neither"),
        ({"path": "a", "image": "b"}, "either path or image, not path and image"),
        ({"path": 3}, "path must be a string, not int"),
        ({"path": "nowhere.png"}, "there is no image file nowhere.png"),
        ({"path": "."}, "is a folder"),
        ({"path": "a\0b"}, "cannot be opened"),
        ({"image": "%%%"}, "image is not base64"),
        ({"image": base64.b64encode(b"text").decode()}, "is not an image that can be read"),
        ({**good, "threshold": 0.1}, "there is no field threshold"),
    ]
    mixed = [one for request, _ in wrong for one in (request, good)]
    found = answers(*mixed)
    assert len(found) == len(mixed)
    for (_, words), answer in zip(wrong, found[::2], strict=True):
        assert words in answer["error"]
    assert all(len(answer["detections"]) == 1 for answer in found[1::2])
    assert [answer["id"] for answer in found] == list(range(1, 2 * len(wrong) + 1))


def test_ids_come_back_in_errors_too() -> None:
    names = [[1, {"a": None}], None, "x"]
    assert [one["id"] for one in answers(*({"id": name} for name in names))] == names


def test_a_line_that_is_too_long_is_not_kept() -> None:
    """The next line is read as its own."""

    class Counting(io.BytesIO):
        most = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            Counting.most = max(Counting.most, len(line))
            return line

    good = json.dumps({"image": encoded(squares((60, 60), []))}).encode()
    said: list[str] = []
    requests = Counting(b'{"image": "' + b"A" * 5_000_000 + b'"}\n' + good)
    answer_lines(SquareFinder(), requests, said.append, max_bytes=10_000)
    first, second = map(json.loads, said)
    assert "more than 10,000 bytes" in first["error"]
    assert second["detections"] == []
    assert Counting.most <= 2**20


def test_too_many_pixels_are_refused() -> None:
    finder = SquareFinder()
    said: list[str] = []
    from dataclasses import replace

    finder.data = replace(finder.data, max_pixels=3599)
    request = json.dumps({"image": encoded(squares((60, 60), []))}).encode()
    answer_lines(finder, io.BytesIO(request), said.append)
    assert "more than the limit of 3,599" in json.loads(said[0])["error"]


def test_empty_lines_have_no_answer() -> None:
    assert answers(b"", b"  ", b"\r") == []


def test_options_hold_for_every_line() -> None:
    request = {"image": encoded(squares((400, 400), [(100, 100, 112, 112)]))}
    assert answers(request)[0]["detections"] == []
    assert len(answers(request, tiling=Tiling())[0]["detections"]) == 1
    assert answers(request, tiling=Tiling(), classes=["other"])[0]["detections"] == []
    with pytest.raises(UserError, match="has no class"):
        answers(request, classes=["nothing"])


def test_each_line_is_answered_before_the_next_is_read() -> None:
    """A program that waits for the answer before it asks again."""
    said: list[str] = []
    request = json.dumps({"image": encoded(squares((60, 60), []))}).encode() + b"\n"

    class Waiting(io.BytesIO):
        asked = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            assert len(said) == self.asked
            self.asked += 1
            return request if self.asked <= 3 else b""

    assert answer_lines(SquareFinder(), Waiting(), said.append).answered == 3


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_no_line_ends_the_conversation(lines: list[bytes]) -> None:
    asked = b"\n".join(lines)
    wanted = sum(bool(line.strip()) for line in asked.split(b"\n"))
    said: list[str] = []
    answer_lines(SquareFinder(), io.BytesIO(asked), said.append)
    assert len(said) == wanted
    assert all("id" in json.loads(line) for line in said)


@pytest.mark.parametrize("read", [0, 1, 2])
def test_answers_that_nobody_reads_do_not_count(read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    good = {"image": encoded(squares((60, 60), []))}
    requests = [json.dumps(one).encode() + b"\n" for one in ({"image": "?"}, good, good)]

    class ReaderLeaves(io.BytesIO):
        lines = 0

        def readline(self, size: int | None = -1, /) -> bytes:
            if self.lines == read:
                os.close(reading)
            self.lines += 1
            return super().readline(-1 if size is None else size)

    with os.fdopen(writing, "w") as answers_to:
        monkeypatch.setattr(lines_module, "load", lambda *_, **__: SquareFinder())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(ReaderLeaves(b"".join(requests))))
        monkeypatch.setattr(sys, "stdout", answers_to)
        report = answer_stdin("model")
    assert (report.failed, report.answered) == (min(read, 1), max(read - 1, 0))
