"""Read frames from video files and cameras one at a time, and write frames to H.264 files.

Files are read and written with PyAV rather than OpenCV, because PyAV reports when each frame is shown (a
phone's frames have no fixed rate) and writes files that browsers play. Cameras are read with OpenCV. Both
libraries come with the extra `video`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..extras import import_extra
from ..files import replacing
from .sources import Camera

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

CLOCK = Fraction(1, 90_000)  # the time unit of written frames, as in broadcasting
FALLBACK_FPS = 30.0  # for a camera or file that does not report its rate
HD_HEIGHT = 720  # players expect colours by ITU-R BT.709 if a video is at least this high, else by BT.601


@dataclass(frozen=True)
class Frame:
    """One frame of a video or camera.

    Attributes:
        picture: (height, width, 3) uint8 RGB, upright.
        index: the frame's number in the source, counted from 0.
        time: the seconds since the first frame.
    """

    picture: np.ndarray
    index: int
    time: float


class FrameSource(ABC):
    """An open video file or camera, whose frames an iteration yields in order.

    Attributes:
        fps: the average number of frames per second; 30 if the source does not state it.
        total: the number of frames that the file states or, failing that, an estimate from its duration;
            None if both are unknown, as for cameras.
        broken_packets: the number of parts that have been skipped so far because they could not be decoded.
    """

    fps: float
    total: int | None
    broken_packets: int

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def close(self) -> None: ...


def open_source(source: str | Path | Camera, max_pixels: int) -> FrameSource:
    """Open a video file or camera for reading.

    Raises:
        UserError: if the source does not exist, cannot be opened, is a file without pictures or with frames
            of more than `max_pixels` pixels, or requires a package that is not installed. For a camera, the
            error for too many pixels is raised when a frame is read.
    """
    if isinstance(source, Camera):
        return CameraSource(source, max_pixels)
    return VideoFile(Path(source), max_pixels)


def _check_size(source: Path | Camera, height: int, width: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UserError(
            f"{source} has frames of {width} x {height} pixels ({width * height:,}), more than the limit of "
            f"{max_pixels:,}: make them smaller or raise the limit (--data.max_pixels)."
        )


class VideoFile(FrameSource):
    """The frames of a file, rotated according to its metadata. Broken parts are skipped and counted.

    Raises:
        UserError: if the file is not a video that can be read, contains no pictures, or has frames of more
            than `max_pixels` pixels, or if PyAV is not installed.
    """

    def __init__(self, path: Path, max_pixels: int):
        import_extra("av", "video", f"reading the video {path}")
        import av

        self.path = path
        self.broken_packets = 0
        try:
            # Other protocols are forbidden: a playlist under the name .mp4 must not fetch anything.
            self._container: InputContainer = av.open(str(path), options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a video that can be read ({_reason(error)}): replace the file."
            ) from error
        try:
            if not self._container.streams.video:
                raise UserError(f"{path} contains no pictures, only sound: name a video.")
            self._stream: VideoStream = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            context = self._stream.codec_context
            _check_size(path, context.height, context.width, max_pixels)
        except BaseException:
            self._container.close()
            raise
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else FALLBACK_FPS
        self.total = self._stream.frames or None
        if not self.total and self._container.duration:
            self.total = round(self._container.duration / 1e6 * self.fps)

    def __iter__(self) -> Iterator[Frame]:
        started: float | None = None
        last = -1.0
        for index, frame in enumerate(self._decoded()):
            if index == 0:
                size = (frame.width, frame.height)
            # In the rare file whose frame size changes, all frames get the first size.
            picture: np.ndarray = frame.to_ndarray(width=size[0], height=size[1], format="rgb24")
            turns, rest = divmod(int(frame.rotation), 90)
            if turns and not rest:
                picture = np.ascontiguousarray(np.rot90(picture, turns % 4))
            if frame.time is not None and started is None:
                started = frame.time - index / self.fps
            shown = index / self.fps if frame.time is None or started is None else frame.time - started
            # Broken time stamps repeat or decrease; the times of frames must not.
            last = shown if shown > last else last + 1 / self.fps
            yield Frame(picture, index, last)

    def _decoded(self) -> Iterator[av.VideoFrame]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                frames = packet.decode()
            except StopIteration:
                return
            except av.error.EOFError:
                return
            except av.error.InvalidDataError:
                self.broken_packets += 1
                continue
            yield from frames

    def close(self) -> None:
        self._container.close()


class CameraSource(FrameSource):
    """The frames of a camera; the driver drops frames that arrive while nothing reads them.

    Raises:
        UserError: if the camera cannot be opened, or OpenCV is not installed. The iteration raises a
            `UserError` if a frame has more than `max_pixels` pixels.
    """

    total = None
    broken_packets = 0

    def __init__(self, camera: Camera, max_pixels: int):
        cv2: Any = import_extra("cv2", "video", f"reading {camera}")
        self.camera, self.max_pixels = camera, max_pixels
        self._cv2 = cv2
        # OpenCV prints ten lines for each method that it has tried; the message below is clearer.
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._capture = cv2.VideoCapture(camera.index)
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            self._capture.release()
            raise UserError(
                f"{camera} cannot be opened: check its number, that the camera is connected, and that no "
                "other program uses it."
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if fps and fps > 0 else FALLBACK_FPS

    def __iter__(self) -> Iterator[Frame]:
        started: float | None = None
        index = 0
        while True:
            read, picture = self._capture.read()
            if not read:
                return
            height, width = picture.shape[:2]  # not every driver states them before
            _check_size(self.camera, height, width, self.max_pixels)
            now = time.monotonic()
            started = now if started is None else started
            yield Frame(self._cv2.cvtColor(picture, self._cv2.COLOR_BGR2RGB), index, now - started)
            index += 1

    def close(self) -> None:
        self._capture.release()


class VideoWriter:
    """A writer of H.264 video, which browsers and phones can play; each frame has its own time.

    If the width or height is odd, the last column or row is repeated, because H.264 stores colours for pairs
    of pixels.

    Args:
        container: the open file.
        size: (height, width) of the frames.
        fps: the average number of frames per second.

    Raises:
        UserError: if the installed PyAV cannot write H.264.
    """

    def __init__(self, container: OutputContainer, size: tuple[int, int], fps: float):
        import av

        self.size = size
        self._container = container
        try:
            rate = Fraction(fps).limit_denominator(1001)
            self._stream: VideoStream = container.add_stream("libx264", rate=rate)
        except av.codec.codec.UnknownCodecError as error:
            raise UserError(
                "the PyAV installed here cannot write H.264 (libx264): install its wheel, pip install av."
            ) from error
        height, width = (side + side % 2 for side in size)
        self._colours = "ITU709" if height >= HD_HEIGHT else "ITU601"
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = CLOCK
        context.colorspace = {"ITU709": 1, "ITU601": 6}[self._colours]
        context.color_range = 1  # the limited range, which is the usual one
        context.options = {"preset": "veryfast", "crf": "20"}
        context.thread_count = 1  # the model needs the other cores
        self._last = -1

    def write(self, picture: np.ndarray, time: float) -> None:
        """Add a picture, (height, width, 3) uint8 RGB, to be shown at `time` (in seconds).

        The picture must have the size of the video, and times must increase from call to call.
        """
        import av
        from av.video.reformatter import Colorspace

        rows, columns = (side % 2 for side in self.size)
        if rows or columns:
            picture = np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=getattr(Colorspace, self._colours))
        self._last = max(self._last + 1, round(time / CLOCK))
        frame.pts, frame.time_base = self._last, CLOCK
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write the frames that the encoder still holds."""
        self._container.mux(self._stream.encode(None))


@contextmanager
def video_file(path: Path, size: tuple[int, int], fps: float) -> Iterator[VideoWriter]:
    """Yield a writer of an MP4 file with frames of `size` (height, width).

    The average rate is `fps` frames per second. The file appears only if the block ends without an exception.

    Raises:
        UserError: if the file cannot be written, or the installed PyAV cannot write H.264.
    """
    import av

    with (
        replacing(path) as draft,
        av.open(str(draft), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        video = VideoWriter(container, size, fps)
        yield video
        video.finish()


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).rstrip(".")
