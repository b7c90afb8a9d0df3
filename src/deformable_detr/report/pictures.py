"""Pictures of the worst false positives and misses, with the box, the annotations and the sampling points.

Each false positive or miss is shown in two small JPEGs: the whole picture with the box, and the area around
the box with the sampling points of the query, drawn as `deformable-detr explain` draws them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image

from ..data.images import open_image
from ..data.records import ImageRecord, Split
from ..evaluation import match_classes
from ..evaluation.matching import overlaps
from ..explain.missed import Stage, Tally, Verdict, missed_objects
from ..inference.detector import Detector
from ..inference.selection import Selection
from ..inference.trace import QueryTraces, trace_picture
from ..inference.trace_drawing import (
    BOX_COLOUR,
    OBJECT_COLOUR,
    PANEL_INCHES,
    draw_box,
    draw_query,
    show_picture,
    zoom,
)
from ..pages import data_url
from .accuracy import Accuracy, Mistake, mistakes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Item = TypeVar("Item")
PICTURE_DPI = 150
MAX_SIDE = 1200  # the longest side of a whole picture before drawing, in pixels; more would not be visible


@dataclass(frozen=True)
class Shown:
    """The two pictures of one miss or false positive, with their caption.

    Attributes:
        kind: the name of the stage that lost the object, or of the mistake.
        name: the name of the class.
        facts: sentences with the numbers of the miss or mistake.
        alt: a description for readers who do not see the pictures.
        whole, near: the pictures as data URLs.
    """

    kind: str
    name: str
    facts: str
    file_name: str
    alt: str
    whole: str
    near: str


@dataclass(frozen=True)
class Misses:
    """The number of objects that each stage of the model lost, and pictures of some of them.

    Attributes:
        images: the number of images that were judged, out of the `split_images` images of the split.
        stages: the number of objects that ended at each stage, also at `Stage.FOUND`.
        shown: pictures of some of the missed objects.
    """

    images: int
    split_images: int
    stages: Mapping[Stage, int]
    shown: tuple[Shown, ...]

    @property
    def objects(self) -> int:
        return sum(self.stages.values())

    @property
    def missed(self) -> int:
        return self.objects - self.stages[Stage.FOUND]

    @property
    def main_stage(self) -> Stage | None:
        lost = {stage: count for stage, count in self.stages.items() if stage is not Stage.FOUND and count}
        return max(lost, key=lambda stage: lost[stage]) if lost else None


@dataclass(frozen=True)
class _Missed:
    """A missed object, with the index `number` among the objects of `record`.

    The only row of `queries` is the query that passed the most stages.
    """

    record: ImageRecord
    number: int
    verdict: Verdict
    queries: QueryTraces


def find_misses(
    detector: Detector, split: Split, selection: Selection, *, max_images: int, max_shown: int
) -> Misses:
    """Find the stages at which the objects of at most `max_images` images, spread evenly, were lost.

    At most `max_shown` of the missed objects are drawn, which requires matplotlib. An object counts as found
    only if a detection reaches the minimum score of `selection` for its class.

    Raises:
        UserError: if an image cannot be read or does not have its annotated size, the model and the data have
            no class in common, the detector comes from an exported file, or the model's output is not finite.
    """
    images = spread(split.images, max_images)
    tally = Tally(detector, selection)
    missed = []
    for judged in missed_objects(detector, split, selection, images):
        tally.add(judged)
        for number, verdict in zip(judged.numbers, judged.verdicts, strict=True):
            if verdict.stage is not Stage.FOUND:
                query = judged.queries.take(np.array([verdict.query]))
                missed.append(_Missed(judged.record, int(number), verdict, query))
    # Large objects come first, because it is no surprise that an object of three pixels is missed.
    missed.sort(key=lambda miss: -miss.record.area[miss.number])
    chosen = varied(
        missed,
        lambda miss: miss.verdict.stage,
        lambda miss: miss.record.image_id,
        max_shown,
        rarest_last=True,
    )
    return Misses(
        len(images),
        len(split),
        {stage: tally.stages[stage] for stage in Stage},
        tuple(_show_missed(detector, split, miss) for miss in chosen),
    )


def show_false_positives(detector: Detector, accuracy: Accuracy, max_shown: int) -> tuple[Shown, ...]:
    """Draw at most `max_shown` wrong detections with their queries' sampling points, using matplotlib.

    Each kind of mistake is taken in turn. Among detections of a kind, those in images that have been drawn
    least often come first, then those with the highest scores.

    Raises:
        UserError: if an image cannot be read, or the detector comes from an exported file.
    """
    kinds = mistakes(accuracy)
    images = accuracy.detections.images
    chosen = varied(list(kinds), lambda row: kinds[row], lambda row: int(images[row]), max_shown)
    return tuple(_show_false_positive(detector, accuracy, row, kinds[row]) for row in chosen)


def spread(items: Sequence[Item], maximum: int) -> list[Item]:
    """Choose at most `maximum` items, evenly spaced and in their order."""
    if len(items) <= maximum:
        return list(items)
    return [items[int((index + 0.5) * len(items) / maximum)] for index in range(maximum)]


def varied(
    items: Sequence[Item],
    kind: Callable[[Item], Hashable],
    image: Callable[[Item], Hashable],
    maximum: int,
    *,
    rarest_last: bool = False,
) -> list[Item]:
    """Choose at most `maximum` items, taking each kind in turn and preferring images not yet chosen.

    Args:
        items: the items; of equally suitable ones, the first is chosen.
        kind, image: functions that return the kind and the image of an item.
        maximum: the maximum number of items.
        rarest_last: True to take the kinds in order of decreasing frequency, False to take them in the order
            of their first items.
    """
    queues: dict[Hashable, list[Item]] = defaultdict(list)
    for item in items:
        queues[kind(item)].append(item)
    order = sorted(queues, key=lambda key: -len(queues[key])) if rarest_last else list(queues)
    chosen: list[Item] = []
    seen = Counter[Hashable]()
    while len(chosen) < maximum and any(queues.values()):
        for key in order:
            if len(chosen) < maximum and queues[key]:
                fewest = min(seen[image(item)] for item in queues[key])
                item = next(item for item in queues[key] if seen[image(item)] == fewest)
                queues[key].remove(item)
                seen[image(item)] += 1
                chosen.append(item)
    return chosen


# ---------------------------------------------------------------- one picture each


def _show_missed(detector: Detector, split: Split, miss: _Missed) -> Shown:
    record, verdict = miss.record, miss.verdict
    box = record.boxes_xyxy[miss.number]
    picture = _read(record, detector)
    name = split.classes.name(int(record.labels[miss.number]))
    on_top = detector.classes.name(verdict.label)
    width, height = box[2] - box[0], box[3] - box[1]

    def near(panel: Axes) -> None:
        draw_query(panel, miss.queries, 0)
        draw_box(panel, box, OBJECT_COLOUR, 1.6, linestyle=(0, (4, 2)))

    predicted_box = miss.queries.boxes_xyxy[0, -1]
    facts = (
        f"{width:.0f} x {height:.0f} pixels. Up to {verdict.attention:.0%} of a query's attention is inside; "
        f"best IoU {verdict.iou:.2f}; score as {name} {verdict.score:.2f}"
    )
    if on_top != name:
        facts += f", but {on_top} scores higher"
    return Shown(
        kind=verdict.stage.value,
        name=name,
        facts=f"{facts}.",
        file_name=record.file_name,
        alt=f"{name} in {record.file_name} that was missed ({verdict.stage.value})",
        whole=_panel(picture, record.size, lambda panel: draw_box(panel, box, OBJECT_COLOUR, 2.0)),
        near=_panel(picture, record.size, near, view=_around(box, predicted_box)),
    )


def _show_false_positive(detector: Detector, accuracy: Accuracy, row: int, kind: Mistake) -> Shown:
    split, detections, objects = accuracy.split, accuracy.detections, accuracy.objects
    record = split.images[detections.images[row]]
    box, score = detections.boxes_xyxy[row], float(detections.scores[row])
    name = split.classes.name(int(detections.labels[row]))
    picture = _read(record, detector)
    trace = _query_of(detector, split, picture, int(detections.labels[row]), box, score)
    in_image = objects.images == detections.images[row]

    def truths(panel: Axes) -> None:
        for truth in objects.boxes_xyxy[in_image]:
            draw_box(panel, truth, OBJECT_COLOUR, 1.5, linestyle=(0, (4, 2)))

    def near(panel: Axes) -> None:
        truths(panel)
        draw_query(panel, trace, 0)

    def whole(panel: Axes) -> None:
        truths(panel)
        draw_box(panel, box, BOX_COLOUR, 2.0)

    return Shown(
        kind=kind.value,
        name=name,
        facts=f"Score {score:.2f}. {_nearest(accuracy, row)}",
        file_name=record.file_name,
        alt=f"detection of {name} in {record.file_name} that is wrong ({kind.value})",
        whole=_panel(picture, record.size, whole),
        near=_panel(picture, record.size, near, view=_around(box, box)),
    )


def _nearest(accuracy: Accuracy, row: int) -> str:
    detections, objects = accuracy.detections, accuracy.objects
    columns = np.flatnonzero((objects.images == detections.images[row]) & ~objects.crowd)
    if not len(columns):
        return "The picture has no annotated object."
    overlap = overlaps(detections.boxes_xyxy[row : row + 1], objects.boxes_xyxy[columns])[0]
    best = int(overlap.argmax())
    if overlap[best] <= 0:
        return "No annotated object overlaps it."
    name = accuracy.split.classes.name(int(objects.labels[columns[best]]))
    return f"It overlaps most with an annotated {name}, IoU {overlap[best]:.2f}."


def _query_of(
    detector: Detector, split: Split, picture: Image.Image, label: int, box: np.ndarray, score: float
) -> QueryTraces:
    """Return the trace of the query whose box and score are nearest to those of a detection, as its only row.

    The values may differ slightly, because the detection may have been computed in lower precision.

    Args:
        split: the split of the picture.
        picture: the upright picture.
        label: the index of the detection's class in the data.
        box: the detection's box, (x0, y0, x1, y1) in pixels of the picture.
        score: the detection's score.
    """
    of_data = match_classes(detector.classes, split.classes, split.source)
    category_id = split.classes.category_ids[label]
    own = next(index for index, matched_id in of_data.items() if matched_id == category_id)
    traced = trace_picture(detector, picture).queries
    distance = np.abs(traced.boxes_xyxy[:, -1] - box).sum(-1) / max(float((box[2:] - box[:2]).sum()), 1.0)
    distance += np.abs(traced.scores[:, own] - score)
    return traced.take(np.array([int(distance.argmin())]))


def _read(record: ImageRecord, detector: Detector) -> Image.Image:
    return open_image(record.file, annotated_size=record.size, max_pixels=detector.data.max_pixels).picture


def _around(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(first, second)[:2], np.maximum(first, second)[2:]])


def _panel(
    picture: Image.Image,
    size: tuple[int, int],
    draw: Callable[[Any], None],
    view: np.ndarray | None = None,
) -> str:
    """Draw on a copy of the picture and return the result as a JPEG in a data URL.

    Args:
        size: (height, width) of the picture in the coordinates of its annotations.
        draw: a function that draws on the axes.
        view: the box to zoom to, (x0, y0, x1, y1) in these coordinates; None shows the whole picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = size
    scale = PANEL_INCHES / max(size)
    figure = Figure(figsize=(max(width * scale, 0.5), max(height * scale, 0.5)), dpi=PICTURE_DPI)
    canvas = FigureCanvasAgg(figure)
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_axis_off()
    if max(picture.size) > MAX_SIDE and view is None:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    image = np.asarray(picture)
    show_picture(panel, image)
    panel.images[0].set_extent((0, width, height, 0))
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    draw(panel)
    if view is not None:
        zoom(panel, view, size)
    canvas.draw()
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return data_url(drawn)
