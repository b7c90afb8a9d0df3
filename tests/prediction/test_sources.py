"""What a person may name, and what becomes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from deformable_detr.errors import UserError
from deformable_detr.prediction.outputs import (
    MADE_BY,
    PREDICTION_REPORT_FILE,
    PREDICTIONS_FILE,
    output_names,
)
from deformable_detr.prediction.sources import Camera, find_sources
from tests.support.scenes import write


def images(sources: list[Path | str], output: Path = Path("out")) -> list[Path]:
    return list(find_sources(sources, output).images)


def test_sources_may_be_files_folders_and_patterns(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jpg"), write(tmp_path / "deep" / "b.webp")
    assert images([tmp_path]) == [a, b]
    assert images([tmp_path / "*.jpg"]) == [a]
    assert images([str(tmp_path / "**" / "*.webp")]) == [b]
    assert images([b, tmp_path]) == [b, a]
    odd = write(tmp_path / "[1].jpg")
    assert images([odd]) == [odd]


def test_videos_and_cameras_are_distinguished_from_pictures(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    for name in ("b.MP4", "c.webm", "notes.txt"):
        (tmp_path / name).write_text("")
    found = find_sources([tmp_path, "webcam:0", "webcam:12"], tmp_path / "out")
    assert found.images == (tmp_path / "a.jpg",)
    assert found.videos == (tmp_path / "b.MP4", tmp_path / "c.webm", Camera(0), Camera(12))
    assert len(found) == 5
    assert str(Camera(12)) == "webcam:12"


@pytest.mark.parametrize("source", ["nowhere.jpg", "*.nothing", "empty", "webcam:x"])
def test_a_source_without_pictures_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image or video there; name image or video files"):
        images([tmp_path / source])


def test_what_the_output_folder_holds_is_left_out_before_there_is_a_report(tmp_path: Path) -> None:
    """As a run that was killed leaves it; by any name of the folder."""
    a = write(tmp_path / "photos" / "a.png")
    write(tmp_path / "photos" / "out" / "a.png")
    os.symlink(tmp_path / "photos", tmp_path / "link")
    found = find_sources([tmp_path / "photos"], tmp_path / "link" / "out")
    assert found.images == (a,)
    assert found.left_out == (tmp_path / "photos" / "out",)
    assert images([tmp_path / "photos" / "out" / "a.png"], tmp_path / "photos" / "out")


def test_the_folder_itself_may_be_named_though_results_lie_in_it(tmp_path: Path) -> None:
    """The output folder as the source: what is in it is refused by name later, not passed over."""
    a = write(tmp_path / "a.png")
    assert images([tmp_path], tmp_path) == [a]


@pytest.mark.parametrize("pattern", ["*.png", "**/*.png"])
def test_pictures_in_the_output_folder_are_no_results_where_a_pattern_starts_there(
    tmp_path: Path, pattern: str
) -> None:
    """As with the folder itself; what `predict` has left in it still is none of the inputs."""
    a = write(tmp_path / "a.png")
    found = find_sources(tmp_path / pattern, tmp_path)
    assert found.images == (a,)
    assert not found.left_out
    (tmp_path / PREDICTIONS_FILE).write_text("[]")
    (tmp_path / PREDICTION_REPORT_FILE).write_text(json.dumps({"made_by": MADE_BY}))
    with pytest.raises(UserError, match="but results of an earlier predict in"):
        find_sources(tmp_path / pattern, tmp_path)


def test_skipped_files_are_reported(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jpg")
    jfif = write(tmp_path / "b.png").rename(tmp_path / "b.jfif")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "tape.ts").write_bytes(b"G\x40\x11")
    (tmp_path / "code.ts").write_text("const a = 1")
    (tmp_path / ".DS_Store").write_bytes(b"")
    found = find_sources(tmp_path, tmp_path / "out")
    assert found.images == (a, jfif)
    assert found.videos == (tmp_path / "tape.ts",)
    assert found.passed_over == (tmp_path / "code.ts", tmp_path / "phone.heic")
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"no image or video there but x\.heic"):
        find_sources(tmp_path / "only")


def test_linked_folders_are_searched_without_end(tmp_path: Path) -> None:
    a = write(tmp_path / "store" / "a.png")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    os.symlink(tmp_path / "store", tmp_path / "in" / "linked")
    os.symlink(tmp_path / "in", tmp_path / "in" / "deep" / "back")
    found = images([tmp_path / "in"])
    assert [file.resolve() for file in found] == [a.resolve()]


def test_folders_that_link_to_each_other_are_searched_without_end(tmp_path: Path) -> None:
    here = write(tmp_path / "one" / "a.png")
    there = write(tmp_path / "two" / "b.png")
    os.symlink(tmp_path / "two", tmp_path / "one" / "other")
    os.symlink(tmp_path / "one", tmp_path / "two" / "other")
    assert images([tmp_path / "one"]) == [here, tmp_path / "one" / "other" / "b.png"]
    assert [file.resolve() for file in images([tmp_path])] == [here, there, there, here]


def test_names_of_results_fit_into_a_file_system() -> None:
    longest = "ü" * 125 + "x"  # 251 bytes
    names = output_names([(longest, ".png"), (longest, ".png"), (longest, ".webp")])
    assert names[0] == f"{longest}.png"
    assert len(set(names)) == 3
    assert all(len(os.fsencode(name)) <= 255 for name in names)


def test_links_that_lead_nowhere_are_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "c.png")
    assert [file.name for file in find_sources(tmp_path).images] == ["a.png", "b.png"]


def test_no_camera_has_such_a_number() -> None:
    with pytest.raises(UserError, match="no image or video"):
        find_sources("webcam:99999999999999999999")
