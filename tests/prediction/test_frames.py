"""Frames in and out: sizes, times, colours, rotation, broken files. PyAV reads back what is written."""

from __future__ import annotations

import struct
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from deformable_detr.errors import UserError
from deformable_detr.prediction.frames import CLOCK, VideoFile, open_source, video_file
from deformable_detr.prediction.sources import Camera
from tests.support.scenes import moving_squares, squares, write_video

LIMIT = 10**7
BT709, BT601 = 1, 6  # colour spaces by the numbers of ITU-T H.273


@dataclass(frozen=True)
class Film:
    """The only stream of a file: its frames, all of which can be decoded, and how they are stored."""

    frames: list[av.VideoFrame]
    codec: tuple[str, str | None]
    size: tuple[int, int]
    rate: Fraction | None
    start: int | None
    seconds: float
    colorspace: int


def played(path: Path) -> Film:
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert isinstance(stream, av.video.stream.VideoStream)
        assert stream.duration is not None
        context = stream.codec_context
        return Film(
            frames=list(container.decode(stream)),
            codec=(context.name, context.pix_fmt),
            size=(context.height, context.width),
            rate=stream.average_rate,
            start=stream.start_time,
            seconds=float(stream.duration * stream.time_base),
            colorspace=context.colorspace,
        )


def written(path: Path, frames: list[np.ndarray], times: list[float], fps: float = 25) -> Path:
    with video_file(path, frames[0].shape[:2], fps) as video:
        for frame, time in zip(frames, times, strict=True):
            video.write(frame, time)
    return path


def test_a_file_gives_its_frames_with_number_and_time(tmp_path: Path) -> None:
    pictures = [moving_squares(index) for index in range(10)]
    source = VideoFile(write_video(tmp_path / "a.mp4", pictures, fps=20), LIMIT)
    frames = list(source)
    assert source.fps == 20
    assert source.total == 10
    assert [frame.index for frame in frames] == list(range(10))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(10) / 20, atol=1e-6)
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame.picture.astype(int) - picture).mean() < 4
    source.close()


def test_frames_at_uneven_times_keep_them(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.2, 0.24, 0.9]
    path = write_video(tmp_path / "a.mkv", [moving_squares(i) for i in range(5)], times=times)
    np.testing.assert_allclose([frame.time for frame in VideoFile(path, LIMIT)], times, atol=2e-3)


def turn(path: Path, turns: int) -> None:
    """Ask players to turn the video by quarters: the matrix in the header of an MP4's track."""
    content = bytearray(path.read_bytes())
    cosine, sine = (1, 0, -1, 0)[turns], (0, 1, 0, -1)[turns]
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, *matrix)
    path.write_bytes(content)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_a_rotated_video_is_upright(tmp_path: Path, turns: int) -> None:
    """As a phone stores it: landscape frames and a note to turn them clockwise, which the matrix does to
    points whose y grows downwards."""
    stored = squares((64, 96), [(4, 4, 40, 20)])
    turned = write_video(tmp_path / "turned.mp4", [stored] * 3)
    turn(turned, turns)
    picture = next(iter(VideoFile(turned, LIMIT))).picture
    assert picture.shape[:2] == ((64, 96) if turns % 2 == 0 else (96, 64))
    assert np.abs(picture.astype(int) - np.rot90(stored, -turns)).mean() < 3


@pytest.mark.parametrize(
    ("size", "stored"),
    [((96, 128), (96, 128)), ((95, 127), (96, 128)), ((1, 1), (2, 2)), ((720, 64), (720, 64))],
)
def test_what_is_written_plays(tmp_path: Path, size: tuple[int, int], stored: tuple[int, int]) -> None:
    path = written(tmp_path / "a.mp4", [squares(size, [])] * 12, [index / 30 for index in range(12)], fps=30)
    film = played(path)
    assert film.codec == ("h264", "yuv420p")
    assert film.size == stored
    assert len(film.frames) == 12
    assert film.rate == 30
    assert film.start == 0
    assert film.seconds == pytest.approx(12 / 30, abs=1 / 30)
    assert film.colorspace == (BT709 if size[0] >= 720 else BT601)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_29_97_frames_a_second_stay_that(tmp_path: Path) -> None:
    fps = 30000 / 1001
    path = written(tmp_path / "a.mp4", [squares((64, 64), [])] * 60, [i / fps for i in range(60)], fps=fps)
    rate = played(path).rate
    assert rate is not None
    assert float(rate) == pytest.approx(fps, abs=0.01)


@pytest.mark.parametrize("height", [128, 720])
def test_colours_survive(tmp_path: Path, height: int) -> None:
    """From the luma and chroma in the file, by the formula of the standard that goes with the height."""
    picture = np.zeros((height, 128, 3), np.uint8)
    colours = [(200, 30, 30), (30, 180, 60), (40, 60, 200), (230, 220, 40)]
    for index, colour in enumerate(colours):
        picture[:, index * 32 : (index + 1) * 32] = colour
    path = written(tmp_path / "a.mp4", [picture] * 3, [0.0, 0.04, 0.08])
    frame = played(path).frames[0].to_ndarray(format="yuv420p").astype(float)
    luma, chroma = frame[:height], frame[height:].reshape(2, height // 2, 64)
    red, blue = (0.2126, 0.0722) if height >= 720 else (0.299, 0.114)
    for index, colour in enumerate(colours):
        rows, half = slice(height // 2 - 8, height // 2 + 8), slice(height // 4 - 4, height // 4 + 4)
        y = (luma[rows, index * 32 + 10 : index * 32 + 22].mean() - 16) / 219
        cb, cr = (chroma[:, half, index * 16 + 5 : index * 16 + 11].mean((1, 2)) - 128) / 224
        r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
        g = (y - red * r - blue * b) / (1 - red - blue)
        np.testing.assert_allclose(255 * np.array([r, g, b]), colour, atol=5)


def test_uneven_times_are_written(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 1.0]
    path = written(tmp_path / "a.mp4", [moving_squares(i) for i in range(4)], times, fps=10)
    with av.open(str(path)) as container:
        found = [frame.time for frame in container.decode(video=0)]
    np.testing.assert_allclose(found, times, atol=2 * float(CLOCK))


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with video_file(tmp_path / "a.mp4", (64, 64), 25) as video:
            video.write(squares((64, 64), []), 0.0)
            raise ZeroDivisionError

    (tmp_path / "a.mp4").write_text("of before")
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "of before"


# ---------------------------------------------------------------- what cannot be read


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("nonsense")
    with pytest.raises(UserError, match=r"text\.mp4 is not a video that can be read \(Invalid data"):
        open_source(tmp_path / "text.mp4", LIMIT)
    with pytest.raises(UserError, match="No such file"):
        open_source(tmp_path / "none.mp4", LIMIT)
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(UserError, match="contains no pictures, only sound"):
        open_source(tmp_path / "sound.mkv", LIMIT)
    cut = write_video(tmp_path / "cut.mp4", [moving_squares(i) for i in range(5)])
    cut.write_bytes(cut.read_bytes()[:300])
    with pytest.raises(UserError, match=r"cut\.mp4 is not a video"):
        open_source(cut, LIMIT)


def test_too_large_frames_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [moving_squares(0)])
    with pytest.raises(
        UserError, match=r"frames of 128 x 96 pixels \(12,288\), more than the limit of 12,287"
    ):
        open_source(path, 12_287)


def test_a_playlist_in_disguise_fetches_nothing(tmp_path: Path) -> None:
    """An .mp4 that is a playlist of the network."""
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(UserError, match="is not a video that can be read"):
        open_source(tmp_path / "a.mp4", LIMIT)


def test_broken_parts_are_passed_over_and_counted(tmp_path: Path) -> None:
    """Zeros in the middle of the stream."""
    frames = [moving_squares(i, (240, 320)) for i in range(60)]
    path = write_video(tmp_path / "a.avi", frames, codec="mjpeg", pixels="yuvj420p")
    content = bytearray(path.read_bytes())
    start = content.find(b"00dc", len(content) // 2) + 8
    content[start : start + 3000] = bytes(3000)
    path.write_bytes(content)
    source = VideoFile(path, LIMIT)
    found = list(source)
    assert source.broken_packets >= 1
    assert 30 < len(found) < 60
    assert [frame.index for frame in found] == list(range(len(found)))


# ---------------------------------------------------------------- cameras


class FakeCapture:
    """OpenCV's camera: three blue frames (BGR), then unplugged."""

    def __init__(self, index: int) -> None:
        self.index, self.left, self.released = index, 3, False

    def isOpened(self) -> bool:  # noqa: N802
        return self.index == 0

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 0] = 200
        return (True, frame) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released = True


def test_a_camera_gives_rgb_frames_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    source = open_source(Camera(0), LIMIT)
    frames = list(source)
    assert source.total is None
    assert source.fps == 30
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert frames[0].time == 0
    assert frames[0].picture[0, 0].tolist() == [0, 0, 200]
    with pytest.raises(UserError, match="webcam:7 cannot be opened: check its number"):
        open_source(Camera(7), LIMIT)


def test_too_large_frames_of_a_camera_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    source = open_source(Camera(0), 48 * 64 - 1)
    with pytest.raises(UserError, match=r"webcam:0 has frames of 64 x 48 pixels \(3,072\).* 3,071"):
        next(iter(source))
    assert len(list(open_source(Camera(0), 48 * 64))) == 3


def test_opencv_prints_nothing_about_a_missing_camera(capfd: pytest.CaptureFixture[str]) -> None:
    import cv2

    level = cv2.utils.logging.getLogLevel()
    with pytest.raises(UserError, match="webcam:97 cannot be opened"):
        open_source(Camera(97), LIMIT)
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == level, "its other messages may be wanted"


def test_a_camera_without_opencv_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"webcam:0 needs cv2.*\[video\]"):
        open_source(Camera(0), LIMIT)


def test_a_video_without_pyav_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a\.mp4 needs av.*\[video\]"):
        open_source(Path("a.mp4"), LIMIT)


def test_an_av_without_h264_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise av.codec.codec.UnknownCodecError("libx264")

    container = SimpleNamespace(add_stream=unknown)
    monkeypatch.setattr(av, "open", lambda *_, **__: nullcontext(container))
    with (
        pytest.raises(UserError, match=r"cannot write H\.264"),
        video_file(tmp_path / "a.mp4", (64, 64), 25),
    ):
        pass
