"""`predict`: whatever a person names to annotated media, predictions.json and report.json in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PredictionInterrupted, UserError
from ..files import output_folder
from ..inference.detector import Detector, check_options, load
from ..inference.selection import Selection
from ..inference.tta import augmented_as_requested
from .finding import Finder
from .frames import open_source
from .outputs import (
    PREDICTION_REPORT_FILE,
    PREDICTIONS_FILE,
    PictureResult,
    PredictionReport,
    RowFile,
    VideoResult,
    coco_rows,
    output_names,
    refuse_to_overwrite,
    row_file,
    write_report,
)
from .pictures import DRAWN_SUFFIXES, Unreadable, annotate_pictures
from .sources import Camera, Sources, find_sources
from .tiling import Tiling, finder_for
from .tracking import ObjectTracker
from .videos import Progress, annotate_video, check_every


def predict(
    model: str | Path | Detector,
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    threshold: float = 0.5,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    track: bool = True,
    every: int = 1,
    max_detections: int = 100,
    batch_size: int = 4,
    device: str = "auto",
    dtype: str | None = None,
    max_pixels: int | None = None,
    tta: bool | Sequence[float] = False,
    progress: Progress | None = None,
) -> PredictionReport:
    """Find objects in image files, videos and cameras, draw them, and list them.

    Args:
        model: a `Detector`, or anything that `load` takes.
        sources: image and video files, folders (searched whole), globs, cameras (`webcam:0`).
        output: a folder; annotated media keep their names (videos become .mp4), `predictions.json` and
            `report.json` stand beside them.
        threshold: detections below this score are left out.
        classes: names of the classes that are wanted, None for all.
        class_thresholds: by class name, where it differs from `threshold`.
        tiling: look at pictures and frames in tiles (`Tiling()`), for small objects in large ones.
        track: number the objects of videos.
        every: look at each n-th frame of videos only.
        max_pixels: the largest H·W of a picture or frame, as for `load`; not with a `Detector`, which has its
            own limit.
        tta: test-time augmentation, as for `evaluate`.
        progress: called with what is being read, how many are done, and of how many.

    Raises:
        UserError: nothing found, or nothing readable (some unreadable ones are skipped and reported); an
            option out of range; an unknown class; an output that cannot be written, or where a source would
            be overwritten; something is not installed that tracking or a camera needs.
        PredictionInterrupted: at Ctrl-C, a `KeyboardInterrupt`; what was done is written.
    """
    check_options(threshold, max_detections, batch_size)
    check_every(every)
    folder = Path(output)
    found = find_sources(sources, folder)
    targets = [folder / name for name in _target_names(found)]
    files = [*found.images, *(video for video in found.videos if isinstance(video, Path))]
    refuse_to_overwrite(files, targets)
    detector = augmented_as_requested(
        model if isinstance(model, Detector) else load(model, device, dtype, max_pixels=max_pixels), tta
    )
    selection = Selection.of(detector.classes, threshold, classes, class_thresholds)
    if found.videos and track:
        ObjectTracker(selection, 1.0)  # says now what is not installed

    done = _Done()
    with output_folder(folder), row_file(folder / PREDICTIONS_FILE) as rows:
        try:
            finder = finder_for(detector, selection, max_detections, batch_size, tiling)
            _pictures(finder, found.images, targets, rows, done, progress)
            for video, target in zip(found.videos, targets[len(found.images) :], strict=True):
                if not done.stopped:
                    _video(
                        detector,
                        video,
                        target,
                        rows,
                        done,
                        selection=selection,
                        max_detections=max_detections,
                        batch_size=batch_size,
                        tiling=tiling,
                        track=track,
                        every=every,
                        progress=progress,
                    )
        except KeyboardInterrupt:
            done.stopped = True
        if done.skipped and not (done.images or done.videos or done.stopped):
            path, reason = done.skipped[0]
            raise UserError(f"none of {len(found)} inputs could be read; {path}: {reason}")
    report = PredictionReport(
        images=tuple(sorted(done.images, key=lambda image: image.image_id)),
        videos=tuple(done.videos),
        skipped=tuple(done.skipped),
        left_out=found.left_out,
        passed_over=found.passed_over,
        detections=rows.count,
        predictions=folder / PREDICTIONS_FILE,
        report=folder / PREDICTION_REPORT_FILE,
        stopped=done.stopped,
    )
    write_report(report)
    if done.stopped:
        raise PredictionInterrupted(report)
    return report


@dataclass
class _Done:
    """What has become of the inputs so far."""

    images: list[PictureResult] = field(default_factory=list)
    videos: list[VideoResult] = field(default_factory=list)
    skipped: list[tuple[Path | Camera, str]] = field(default_factory=list)
    stopped: bool = False


def _pictures(
    finder: Finder,
    paths: Sequence[Path],
    targets: Sequence[Path],
    rows: RowFile,
    done: _Done,
    progress: Progress | None,
) -> None:
    with closing(annotate_pictures(finder, paths, targets)) as results:
        for result in results:
            path, image_id = paths[result.index], result.index + 1
            if isinstance(result, Unreadable):
                rows.put(image_id, [])
                done.skipped.append((path, result.reason))
            else:
                found = result.detections
                rows.put(image_id, coco_rows(found, image_id, str(path)))
                done.images.append(
                    PictureResult(path, targets[result.index], image_id, found.image_size, len(found))
                )
            if progress is not None:
                progress("pictures", len(done.images) + len(done.skipped), len(paths))


def _video(
    detector: Detector,
    video: Path | Camera,
    target: Path,
    rows: RowFile,
    done: _Done,
    *,
    selection: Selection,
    max_detections: int,
    batch_size: int,
    tiling: Tiling | None,
    track: bool,
    every: int,
    progress: Progress | None,
) -> None:
    try:
        with closing(open_source(video, detector.data.max_pixels)) as frames:
            tracker = ObjectTracker(selection, frames.fps / every) if track else None
            wanted = tracker.faint if tracker else selection
            together = 1 if isinstance(video, Camera) else batch_size  # a camera's frames are wanted now
            result = annotate_video(
                finder_for(detector, wanted, max_detections, together, tiling),
                frames,
                tracker,
                every,
                source=str(video),
                target=target,
                rows=rows,
                progress=progress,
            )
    except UserError as error:
        done.skipped.append((video, str(error)))
        return
    done.videos.append(result)
    done.stopped = result.stopped


def _target_names(found: Sources) -> list[str]:
    images = []
    for path in found.images:
        suffix = path.suffix.lower()
        images.append((path.stem, suffix if suffix in DRAWN_SUFFIXES else ".png"))
    videos = [
        (f"webcam_{video.index}" if isinstance(video, Camera) else video.stem, ".mp4")
        for video in found.videos
    ]
    return output_names(images + videos)
