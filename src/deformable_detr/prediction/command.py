"""`predict`: write annotated media, predictions.json and report.json for the sources that a user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PredictionInterrupted, UserError
from ..files import output_folder
from ..inference.detector import Detector, check_options
from ..inference.loading import load
from ..inference.selection import Selection
from .finding import Finder, with_views
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
    write_prediction_report,
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
    threshold: float | None = None,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    tiling: Tiling | None = None,
    track: bool = True,
    every: int = 1,
    max_detections: int | None = None,
    batch_size: int = 4,
    device: str = "auto",
    dtype: str | None = None,
    max_pixels: int | None = None,
    tta: bool | Sequence[float] = False,
    progress: Progress | None = None,
) -> PredictionReport:
    """Find objects in image files, videos and cameras, draw them, and list them in JSON files.

    Args:
        model: a `Detector`, or anything that `load` takes.
        sources: image and video files, folders (with subfolders), globs, cameras (`webcam:0`), or `demo` for
            the pictures that come with the bundled model.
        output: the folder for `predictions.json`, `report.json` and the annotated media, which have the names
            of their sources (repeated names get a number). Videos become .mp4; pictures become .png unless
            they are JPEG, PNG or WebP.
        threshold: detections below this score are left out; None means the model's own thresholds, or 0.5 if
            it has none.
        classes: names of the classes to find; None means all.
        class_thresholds: thresholds of single classes, by class name; they take precedence over `threshold`.
        tiling: the settings with which pictures and frames are processed in tiles, to find small objects in
            large pictures; `Tiling()` has the default settings. None means whole pictures.
        track: True to number the objects of videos.
        every: n, to process only every n-th frame of videos.
        max_detections: the maximum number per picture, frame or tile, as for `Detector.predict`.
        batch_size: the maximum number of pictures, frames or tiles that are computed together.
        device, dtype: as for `load`; a `Detector` stays as it is.
        max_pixels: the maximum number of pixels (width times height) of a picture or frame, as for `load`; a
            `Detector` has its own limit.
        tta: True for test-time augmentation with flips and the usual scales, a sequence of other scales to
            use with flips, or False for none.
        progress: a function that is called with "pictures" or the path of a video (for a camera, its name),
            the number of finished pictures or frames, and their total number (None if it is unknown).

    Returns:
        The results for all inputs, which `report.json` contains too.

    Raises:
        UserError: if the model cannot be loaded, a source contains no picture or video, no input can be read
            (single unreadable ones are skipped and reported), an option is out of range, a class is unknown,
            the model's output is not finite, the output cannot be written or would overwrite a source, or the
            package that tracking needs is not installed.
        PredictionInterrupted: on Ctrl-C, after the results so far have been written.
    """
    check_options(threshold, max_detections, batch_size)
    check_every(every)
    folder = Path(output)
    inputs = find_sources(sources, folder)
    targets = _targets(inputs, folder)
    with output_folder(folder):
        if not isinstance(model, Detector):
            model = load(model, device, dtype, max_pixels=max_pixels)
        detector = with_views(model, tta)
        selection = detector.selection(threshold, classes, class_thresholds)
        most = detector.most_detections(max_detections)
        settings = _Settings(detector, selection, most, batch_size, tiling, track, every)
        report = _annotate_all(settings, inputs, targets, folder, progress)
    write_prediction_report(report)
    if report.stopped:
        raise PredictionInterrupted(report)
    return report


@dataclass(frozen=True)
class _Settings:
    """The detector, and the options of `predict` that apply to every picture and frame."""

    detector: Detector
    selection: Selection
    max_detections: int
    batch_size: int
    tiling: Tiling | None
    track: bool
    every: int

    def finder(self, selection: Selection, batch_size: int) -> Finder:
        return finder_for(self.detector, selection, self.max_detections, batch_size, self.tiling)


@dataclass
class _Results:
    """The results of the inputs that have been processed so far."""

    images: list[PictureResult] = field(default_factory=list)
    videos: list[VideoResult] = field(default_factory=list)
    skipped: list[tuple[Path | Camera, str]] = field(default_factory=list)
    stopped: bool = False


def _annotate_all(
    settings: _Settings,
    inputs: Sources,
    targets: Sequence[Path],
    folder: Path,
    progress: Progress | None,
) -> PredictionReport:
    if inputs.videos and settings.track:
        ObjectTracker(settings.selection, 1.0)  # fails early if a package is not installed
    results = _Results()
    with row_file(folder / PREDICTIONS_FILE) as rows:
        try:
            _annotate_pictures(settings, inputs.images, targets, rows, results, progress)
            for video, target in zip(inputs.videos, targets[len(inputs.images) :], strict=True):
                if not results.stopped:
                    _annotate_video(settings, video, target, rows, results, progress)
        except KeyboardInterrupt:
            results.stopped = True
        if results.skipped and not (results.images or results.videos or results.stopped):
            path, reason = results.skipped[0]
            raise UserError(f"none of {len(inputs)} inputs could be read; {path}: {reason}")
    return PredictionReport(
        images=tuple(sorted(results.images, key=lambda image: image.image_id)),
        videos=tuple(results.videos),
        skipped=tuple(results.skipped),
        left_out=inputs.left_out,
        passed_over=inputs.passed_over,
        detections=rows.count,
        selection=settings.selection,
        predictions=folder / PREDICTIONS_FILE,
        report=folder / PREDICTION_REPORT_FILE,
        stopped=results.stopped,
    )


def _annotate_pictures(
    settings: _Settings,
    paths: Sequence[Path],
    targets: Sequence[Path],
    rows: RowFile,
    results: _Results,
    progress: Progress | None,
) -> None:
    finder = settings.finder(settings.selection, settings.batch_size)
    with closing(annotate_pictures(finder, paths, targets)) as pictures:
        for picture in pictures:
            path, image_id = paths[picture.index], picture.index + 1
            if isinstance(picture, Unreadable):
                rows.put(image_id, [])
                results.skipped.append((path, picture.reason))
            else:
                detections = picture.detections
                rows.put(image_id, coco_rows(detections, image_id, str(path)))
                results.images.append(
                    PictureResult(
                        path, targets[picture.index], image_id, detections.image_size, len(detections)
                    )
                )
            if progress is not None:
                progress("pictures", len(results.images) + len(results.skipped), len(paths))


def _annotate_video(
    settings: _Settings,
    video: Path | Camera,
    target: Path,
    rows: RowFile,
    results: _Results,
    progress: Progress | None,
) -> None:
    try:
        with closing(open_source(video, settings.detector.data.max_pixels)) as frames:
            tracker = (
                ObjectTracker(settings.selection, frames.fps / settings.every) if settings.track else None
            )
            # A camera's frames are processed one by one, so that no frame has to wait for the next one.
            batch_size = 1 if isinstance(video, Camera) else settings.batch_size
            result = annotate_video(
                settings.finder(tracker.faint if tracker else settings.selection, batch_size),
                frames,
                tracker,
                settings.every,
                source=str(video),
                target=target,
                rows=rows,
                progress=progress,
            )
    except UserError as error:
        results.skipped.append((video, str(error)))
        return
    results.videos.append(result)
    results.stopped = result.stopped


def _targets(inputs: Sources, folder: Path) -> list[Path]:
    """Return the paths of the annotated files, first those of the pictures, then those of the videos.

    Raises:
        UserError: if one of these files is a source.
    """
    images = []
    for path in inputs.images:
        suffix = path.suffix.lower()
        images.append((path.stem, suffix if suffix in DRAWN_SUFFIXES else ".png"))
    videos = [
        (f"webcam_{video.index}" if isinstance(video, Camera) else video.stem, ".mp4")
        for video in inputs.videos
    ]
    targets = [folder / name for name in output_names(images + videos)]
    files = [*inputs.images, *(video for video in inputs.videos if isinstance(video, Path))]
    refuse_to_overwrite(files, targets)
    return targets
