"""Videos and cameras to annotated videos and rows; objects keep their numbers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from deformable_detr.detections import Detections
from deformable_detr.errors import PredictionInterrupted, UserError
from deformable_detr.inference.selection import Selection
from deformable_detr.prediction import (
    Tiling,
    predict,
    predict_frames,
    videos,
)
from deformable_detr.prediction.finding import WholePictures
from deformable_detr.prediction.frames import Frame, FrameSource
from deformable_detr.prediction.outputs import row_file
from tests.support.scenes import SquareFinder, moving_squares, squares, write, write_video

FRAMES = 14


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two squares, 14 frames, 10 a second."""
    pictures = [moving_squares(index) for index in range(FRAMES)]
    return write_video(tmp_path_factory.mktemp("video") / "walk.mp4", pictures, fps=10)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_video_becomes_an_annotated_one_and_rows(video: Path, tmp_path: Path) -> None:
    report = predict(SquareFinder(), video, tmp_path / "out")
    rows = json.loads(report.predictions.read_text())
    assert report.detections == len(rows) == 2 * FRAMES
    assert list(rows[0]) == [
        *("image_id", "category_id", "bbox", "score", "file_name", "category_name"),
        *("frame", "time", "track_id"),
    ]
    for index in range(FRAMES):
        mine = [row for row in rows if row["frame"] == index]
        assert {row["image_id"] for row in mine} == {index + 1}
        assert [row["time"] for row in mine] == pytest.approx([index / 10] * 2)
        lefts = sorted(row["bbox"][0] for row in mine)
        np.testing.assert_allclose(lefts, sorted((4 + 3 * index, 10 + 2 * index)), atol=2)
    (made,) = report.videos
    assert made.output == tmp_path / "out" / "walk.mp4"
    assert (made.frames, made.fps, made.size, made.image_ids) == (FRAMES, 10, (96, 128), (1, FRAMES))
    frames = decoded(made.output)
    assert [frame.shape for frame in frames] == [(96, 128, 3)] * FRAMES
    unlike = np.abs(frames[3].astype(int) - moving_squares(3)).max(-1) > 60
    assert unlike.any(), "nothing is drawn"
    written = json.loads(report.report.read_text())["videos"][0]
    assert written == {
        "file_name": str(video),
        "output": "walk.mp4",
        "frames": FRAMES,
        "fps": 10,
        "width": 128,
        "height": 96,
        "first_image_id": 1,
        "last_image_id": FRAMES,
        "detections": 2 * FRAMES,
        "broken_packets": 0,
        "stopped": False,
    }


def test_objects_keep_their_numbers(video: Path) -> None:
    by_row: dict[int, set[int]] = {0: set(), 1: set()}
    for frame in predict_frames(SquareFinder(), video):
        found = frame.detections
        assert found.track_ids is not None
        for box, track in zip(found.boxes_xyxy, found.track_ids, strict=True):
            if frame.index == 0:
                assert track == -1, "one frame is no track yet"
            else:
                by_row[int(box[1] > 45)].add(int(track))
    assert sorted(by_row.values(), key=min) == [{1}, {2}]


def test_without_tracking_there_are_no_numbers(video: Path, tmp_path: Path) -> None:
    report = predict(SquareFinder(), video, tmp_path / "out", track=False)
    assert {row["track_id"] for row in json.loads(report.predictions.read_text())} == {None}
    assert all(
        frame.detections.track_ids is None for frame in predict_frames(SquareFinder(), video, track=False)
    )


def test_every_third_frame(video: Path, tmp_path: Path) -> None:
    """Played at the speed of life: as long as before."""
    report = predict(SquareFinder(), video, tmp_path / "out", every=3)
    rows = json.loads(report.predictions.read_text())
    assert sorted({row["frame"] for row in rows}) == [0, 3, 6, 9, 12]
    assert sorted({row["image_id"] for row in rows}) == [1, 2, 3, 4, 5]
    with av.open(str(report.videos[0].output)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(times, [0, 0.3, 0.6, 0.9, 1.2], atol=1e-3)
    with pytest.raises(UserError, match="every must be at least 1, not 0"):
        predict(SquareFinder(), video, tmp_path / "out", every=0)


def test_pictures_and_videos_of_one_folder_share_a_file(video: Path, tmp_path: Path) -> None:
    """Images first, then the frames of each video; ids go on. Broken ones of both kinds are told."""
    folder = tmp_path / "in"
    write(folder / "walk.png")
    write(folder / "z.png").write_bytes(b"nonsense")
    (folder / "broken.mp4").write_bytes(b"nonsense")
    for name in ("walk.mp4", "walk.avi"):
        (folder / name).write_bytes(video.read_bytes())
    report = predict(SquareFinder(), folder, tmp_path / "out", threshold=0.0)
    assert [path.name for path in report.pictures] == ["walk.png"]
    assert [one.output.name for one in report.videos] == ["walk.mp4", "walk_2.mp4"]
    assert [one.image_ids for one in report.videos] == [(3, 2 + FRAMES), (3 + FRAMES, 2 + 2 * FRAMES)]
    assert {source.name for source, _ in report.skipped} == {"z.png", "broken.mp4"}
    rows = json.loads(report.predictions.read_text())
    assert [row["image_id"] for row in rows] == sorted(row["image_id"] for row in rows)


def test_nothing_readable_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"none of 1 inputs could be read; .*broken\.mp4"):
        predict(SquareFinder(), tmp_path / "broken.mp4", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_video_is_never_overwritten(video: Path) -> None:
    with pytest.raises(UserError, match=r"contains the source walk\.mp4, which"):
        predict(SquareFinder(), video, video.parent)


def test_tiles_find_in_frames_what_is_small(tmp_path: Path) -> None:
    frames = [squares((480, 640), [(300 + 4 * i, 100, 314 + 4 * i, 114)]) for i in range(3)]
    path = write_video(tmp_path / "a.mp4", frames)
    assert sum(len(frame.detections) for frame in predict_frames(SquareFinder(), path)) == 0
    assert sum(len(frame.detections) for frame in predict_frames(SquareFinder(), path, tiling=Tiling())) == 3


def test_an_object_that_fades_keeps_its_number_but_is_not_shown(video: Path) -> None:
    """Scores of 0.62; in three frames half as much: too little to be shown, enough to be followed."""
    finder = SquareFinder()
    plain, calls = finder.detect, [0]

    def fading(*arguments: Any, **options: Any) -> list[Detections]:
        found = plain(*arguments, **options)
        calls[0] += 1
        if calls[0] in (6, 7, 8):
            for one in found:
                one.scores[:] /= 2
        return found

    finder.detect = fading  # type: ignore[method-assign]
    shown = list(predict_frames(finder, video, 0.5, batch_size=1))
    assert [len(frame.detections) for frame in shown] == [2] * 5 + [0] * 3 + [2] * (FRAMES - 8)
    assert all(sorted(frame.detections.track_ids) == [1, 2] for frame in shown[1:5] + shown[8:])  # type: ignore[arg-type]


class EndlessFrames(FrameSource):
    """Frames of noise-free grey, and how many of them are in memory at most."""

    fps, total, broken_packets = 25.0, None, 0

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            picture = moving_squares(index % 20)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(picture, self._gone)
            yield Frame(picture, index, index / 25)

    def _gone(self) -> None:
        self.alive -= 1

    def close(self) -> None: ...


@pytest.mark.parametrize("track", [False, True])
def test_memory_does_not_grow_with_the_length(tmp_path: Path, track: bool) -> None:
    most = []
    for count in (60, 240):
        frames, finder = EndlessFrames(count), SquareFinder()
        selection = Selection.of(finder.classes, 0.5)
        tracker = videos.ObjectTracker(selection, 25) if track else None
        with row_file(tmp_path / "rows.json") as rows:
            made = videos.annotate_video(
                WholePictures(finder, selection, 100, 4),
                frames,
                tracker,
                1,
                source="made",
                target=tmp_path / "a.mp4",
                rows=rows,
                progress=None,
            )
            assert not rows._waiting
        assert made.frames == count
        most.append(frames.most)
    assert max(most) <= 40
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 2 * 240


def test_progress_is_reported(video: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    write(tmp_path / "a.png")
    predict(
        SquareFinder(),
        [video, tmp_path / "a.png"],
        tmp_path / "out",
        every=2,
        progress=lambda *what: seen.append(what),
    )
    assert seen == [("pictures", 1, 1), *((str(video), done, 7) for done in range(1, 8))]


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_leaves_a_video_that_plays(video: Path, tmp_path: Path) -> None:
    finder = SquareFinder()
    detect, calls = finder.detect, [0]

    def interrupted(*arguments: Any, **options: Any) -> list[Detections]:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return detect(*arguments, **options)

    finder.detect = interrupted  # type: ignore[method-assign]
    with pytest.raises(PredictionInterrupted) as interruption:
        predict(finder, [video, video.parent / "walk.mp4"], tmp_path / "out", batch_size=1)
    report = interruption.value.report
    assert (report.stopped, report.videos[0].stopped, report.videos[0].frames) == (True, True, 5)
    assert len(decoded(tmp_path / "out" / "walk.mp4")) == 5
    rows = json.loads(report.predictions.read_text())
    assert sorted({row["frame"] for row in rows}) == [0, 1, 2, 3, 4]
    assert json.loads(report.report.read_text())["stopped"] is True


SLOW_CAMERA = """
import sys, time
import numpy as np
sys.path[:0] = {paths!r}
import cv2
from tests.support.scenes import SquareFinder, moving_squares
from deformable_detr import cli, prediction
from deformable_detr.prediction import command

class Camera:
    def __init__(self, index): self.count = 0
    def isOpened(self): return True
    def get(self, _): return 20.0
    def read(self):
        time.sleep(0.02)
        self.count += 1
        if self.count == 12: print("running", file=sys.stderr, flush=True)
        return True, np.ascontiguousarray(moving_squares(self.count % 20)[..., ::-1])
    def release(self): print("released", file=sys.stderr, flush=True)

cv2.VideoCapture = Camera
command.load = lambda *_, **__: SquareFinder()
sys.exit(cli.main(["predict", "none", "webcam:0", "--output", {output!r}]))
"""


def test_a_camera_ends_with_ctrl_c_and_is_written(tmp_path: Path) -> None:
    """In a process of its own, with a real signal."""
    out = tmp_path / "out"
    paths = [str(Path(__file__).parents[2])]
    code = SLOW_CAMERA.format(paths=paths, output=str(out))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("running"):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=240)  # the machine may be busy
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "released" in errors
    assert "frames of webcam:0" in printed
    frames = decoded(out / "webcam_0.mp4")
    rows = json.loads((out / "predictions.json").read_text())
    assert len(frames) == len({row["frame"] for row in rows}) >= 5
    assert {path.name for path in out.iterdir()} == {"webcam_0.mp4", "predictions.json", "report.json"}


def test_tracking_without_the_library_names_what_to_install(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UserError, match=r"--no-track.*deformable-detr\[video\]"):
        predict(SquareFinder(), video, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert predict(SquareFinder(), video, tmp_path / "out", track=False).videos


def test_a_bug_in_the_middle_leaves_nothing_half_written(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(detections: Detections) -> None:
        calls.append(1)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Detections, "draw", failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        predict(SquareFinder(), video, tmp_path / "out")
    assert not (tmp_path / "out").exists()
