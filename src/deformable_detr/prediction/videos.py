"""The annotation of videos and cameras, frame by frame, with objects numbered across frames.

There are three threads: one decodes and resizes, one runs the model and the tracker, and one draws and
encodes. A few batches of frames are in memory at a time, whatever the length of the video.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import numpy as np
from PIL import Image

from ..detections import Detections
from ..errors import UserError
from ..inference.detector import Detector, check_options
from ..system.threads import Behind, read_ahead
from .finding import Finder, Prepared
from .frames import Frame, FrameSource, VideoWriter, open_source, video_file
from .outputs import RowFile, VideoResult, coco_rows
from .sources import Camera, as_source
from .tiling import Tiling, finder_for
from .tracking import ObjectTracker

Progress = Callable[[str, int, int | None], None]  # name, number done, total number or None


@dataclass(frozen=True)
class FrameDetections:
    """The detections in one frame.

    Attributes:
        index: the frame's number in the source, counted from 0.
        time: the seconds since the first frame.
        detections: the detections, with the frame's picture and, if objects are tracked, `track_ids`.
    """

    index: int
    time: float
    detections: Detections


def predict_frames(
    detector: Detector,
    source: str | Path,
    threshold: float | None = None,
    *,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    track: bool = True,
    every: int = 1,
    max_detections: int | None = None,
    batch_size: int = 4,
) -> Iterator[FrameDetections]:
    """Yield the detections in a video file or camera (`webcam:0`), frame by frame.

    The caller may stop early with `break`. Errors are raised when the iteration starts or continues, not by
    the call.

    Args:
        threshold, classes, class_thresholds, max_detections: as for `Detector.predict`.
        tiling: the settings with which each frame is processed in tiles; None means whole frames.
        track: True to give objects numbers that stay the same from frame to frame.
        every: n, to process only every n-th frame.
        batch_size: the maximum number of frames of a file, or of tiles, that are computed together. A
            camera's frames are processed one by one.

    Raises:
        UserError: if the source cannot be read or has frames that are too large, an option is out of range,
            the model lacks a named class, the model's output is not finite, or a package that videos,
            cameras or tracking need is not installed.
    """
    check_options(threshold, max_detections, batch_size)
    check_every(every)
    selection = detector.selection(threshold, classes, class_thresholds)
    video = as_source(source)
    frames = open_source(video, detector.data.max_pixels)
    with closing(frames):
        tracker = ObjectTracker(selection, frames.fps / every) if track else None
        finder = finder_for(
            detector,
            tracker.faint if tracker else selection,
            detector.most_detections(max_detections),
            1 if isinstance(video, Camera) else batch_size,
            tiling,
        )
        yield from find_in_frames(finder, frames, tracker, every)


def check_every(every: int) -> None:
    if every < 1:
        raise UserError(f"every must be at least 1, not {every}.")


def find_in_frames(
    finder: Finder, frames: FrameSource, tracker: ObjectTracker | None, every: int
) -> Generator[FrameDetections]:
    with ThreadPoolExecutor(1) as reader:
        for batch in read_ahead(_batches(finder, frames, every), reader):
            results = finder.find([prepared for _, prepared in batch])
            for (frame, _), detections in zip(batch, results, strict=True):
                if tracker is not None:
                    detections = tracker.update(detections, frame.time)
                yield FrameDetections(frame.index, frame.time, detections)


def _batches(finder: Finder, frames: FrameSource, every: int) -> Iterator[list[tuple[Frame, Prepared]]]:
    batch: list[tuple[Frame, Prepared]] = []
    for frame in frames:
        if frame.index % every:
            continue
        batch.append((frame, finder.prepare(Image.fromarray(frame.picture))))
        if len(batch) == finder.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def annotate_video(
    finder: Finder,
    frames: FrameSource,
    tracker: ObjectTracker | None,
    every: int,
    *,
    source: str,
    target: Path,
    rows: RowFile,
    progress: Progress | None,
) -> VideoResult:
    """Write every `every`-th frame with its detections to the video `target`, and their rows to `rows`.

    `source` is the name of the video in the rows, for `progress` and in the result. Ctrl-C ends the video at
    the current frame and sets `stopped` in the result.

    Raises:
        UserError: if no frame can be decoded, a camera's frame is too large, the model's output is not
            finite, or the video cannot be written.
    """
    with _first_ctrl_c() as stop, closing(find_in_frames(finder, frames, tracker, every)) as results:
        first = next(results, None)
        if first is None:
            raise UserError(f"{source} has no frame that can be decoded: replace the file.")
        first_id, count, detections, stopped = rows.next_id, 0, 0, False
        size = first.detections.image_size
        with video_file(target, size, frames.fps / every) as video, Behind() as behind:
            frame: FrameDetections | None = first
            try:
                while frame is not None:
                    behind(_write, video, frame)
                    rows.put(first_id + count, frame_rows(frame, first_id + count, source))
                    count, detections = count + 1, detections + len(frame.detections)
                    if progress is not None:
                        progress(source, count, None if frames.total is None else -(-frames.total // every))
                    stopped = stop.is_set()
                    frame = None if stopped else next(results, None)
            except KeyboardInterrupt:
                stopped = True
            behind.finish()
    return VideoResult(
        source=source,
        output=target,
        frames=count,
        fps=frames.fps / every,
        size=size,
        image_ids=(first_id, first_id + count - 1),
        detections=detections,
        broken_packets=frames.broken_packets,
        stopped=stopped,
    )


@contextmanager
def _first_ctrl_c() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C sets; a second one interrupts as usual.

    An exception, in contrast, could be raised inside a library that discards it; the caller's loop would then
    continue, and a camera never ends by itself. Outside the main thread, the event is never set.
    """
    stop = Event()

    def request(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if current_thread() is not main_thread():  # Python allows signal handlers only in the main thread
        yield stop
        return
    previous = signal.signal(signal.SIGINT, request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


def _write(video: VideoWriter, frame: FrameDetections) -> None:
    video.write(np.asarray(frame.detections.draw()), frame.time)


def frame_rows(frame: FrameDetections, image_id: int, source: str) -> list[dict[str, Any]]:
    """Return the rows of `coco_rows` for a frame with three more entries: `frame`, `time` and `track_id`.

    `frame` is the frame's number, from 0; `time` is in seconds since the first frame; `track_id` is the
    object's number, or None if none has been assigned (yet).
    """
    rows = coco_rows(frame.detections, image_id, source)
    ids = frame.detections.track_ids
    tracks = [-1] * len(rows) if ids is None else ids.tolist()
    return [
        {
            **row,
            "frame": frame.index,
            "time": round(frame.time, 6),
            "track_id": track if track >= 0 else None,
        }
        for row, track in zip(rows, tracks, strict=True)
    ]
