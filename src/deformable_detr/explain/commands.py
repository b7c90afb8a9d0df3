"""The command `deformable-detr explain`, which writes explanations to files.

The output is the explanation of one picture (.png, or .html for an interactive page), the gradients of its
detections, or a folder with verdicts on the missed objects of a data set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data.formats import read_split
from ..data.images import open_image
from ..data.records import ImageRecord, Split
from ..errors import UserError
from ..extras import import_extra
from ..files import check_output_file, make_output_folder, replacing, write_json, write_text
from ..inference.detector import Detector
from ..inference.loading import load
from ..inference.pictures import Picture
from ..inference.selection import Selection
from ..inference.trace_drawing import (
    OBJECT_COLOUR,
    draw,
    draw_box,
    draw_query,
    grid,
    show_picture,
    title,
    zoom,
)
from ..progress import track
from ..words import printable
from .gradient import draw_gradients, gradients
from .missed import (
    MEANINGS,
    Judged,
    MissedReport,
    Stage,
    Tally,
    Verdict,
    missed_objects,
)
from .page import page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]
PICTURES, PAGES = (".png", ".pdf", ".svg"), (".html", ".htm")
MISSED_FILE = "missed.json"
PAGE_DETECTIONS = 50
MISSED_INCHES = 2.6  # the minimum width of a panel, whose title contains five values


@dataclass(frozen=True)
class Explained:
    """The number of explained detections, and the selection with the minimum score of each class."""

    detections: int
    selection: Selection


def write_explanation(
    model: str | Path | Detector,
    image: Picture,
    output: str | Path,
    *,
    threshold: float | None = None,
    layer: int | None = None,
    most: int = 5,
    at: Sequence[Point] = (),
    device: str = "auto",
    max_pixels: int | None = None,
) -> Explained:
    """Write the explanation of one picture to a .png, .pdf or .svg file, or to an interactive .html page.

    Args:
        model: a `Detector`, or anything that `load` accepts except an exported file.
        image: the picture, in any form that `Detector.predict` accepts.
        output: the file to write; its suffix (.png, .pdf, .svg, .html or .htm) determines the format.
        threshold: detections below this score are left out; None means the model's own thresholds, or 0.5 if
            it has none.
        layer: the decoder layer to draw (and, for points, the encoder layer), counted from 1; None means the
            last one. A page shows all layers, so `layer` must be None.
        most: the maximum number of detections that get a panel. A page shows at most 50 detections instead.
        at: points (x, y) in pixels of the picture for which the encoder's attention is also drawn. They are
            ignored for an .html page, whose points form a grid.
        device, max_pixels: as for `load`; ignored if `model` is a `Detector`.

    Returns:
        The number of explained detections and their selection.

    Raises:
        UserError: if matplotlib is not installed, the model cannot be loaded or is an exported file, the
            picture cannot be read, an option is out of range or does not apply to the format, the model's
            output is not finite, or the output cannot be written.
    """
    target = _checked_file(output, PICTURES + PAGES)
    detector = model if isinstance(model, Detector) else load(model, device, max_pixels=max_pixels)
    if target.suffix.lower() in PAGES:
        if layer is not None:
            raise UserError("--layer applies to pictures only; leave it out: the page has a slider for it.")
        name = Path(image).name if isinstance(image, str | Path) else "picture"
        text, num_detections = page(detector, image, threshold, title=name, max_detections=PAGE_DETECTIONS)
        write_text(target, text)
        return Explained(num_detections, detector.selection(threshold))
    if most < 1:
        raise UserError(f"--most must be at least 1, not {most}.")
    config = detector.config
    layers = {"decoder": config.decoder_layers} | ({"encoder": config.encoder_layers} if at else {})
    for part, number in layers.items():
        if layer is not None and not 1 <= layer <= number:
            raise UserError(f"--layer must be from 1 to {number}, the model's {part} layers, not {layer}.")
    explanation = detector.explain(image, threshold, at=at)
    _save(draw(explanation, layer=-1 if layer is None else layer - 1, most=most), target)
    return Explained(len(explanation), detector.selection(threshold))


def write_gradient(
    model: str | Path | Detector,
    image: Picture,
    output: str | Path,
    *,
    threshold: float | None = None,
    most: int = 4,
    device: str = "auto",
    max_pixels: int | None = None,
) -> Explained:
    """Write a figure of the gradients of the best `most` detections to a .png, .pdf or .svg file.

    The gradients are those of x, y, width, height and score (paper, figure 5). The other arguments are those
    of `write_explanation`.

    Returns:
        The number of explained detections and their selection.

    Raises:
        UserError: if matplotlib is not installed, the model cannot be loaded or is an exported file, the
            picture cannot be read, an option is out of range, the model's output is not finite, the output
            cannot be written, or nothing is detected.
    """
    target = _checked_file(output, PICTURES)
    detector = model if isinstance(model, Detector) else load(model, device, max_pixels=max_pixels)
    selection = detector.selection(threshold)
    result = gradients(detector, image, threshold, max_detections=most)
    if not len(result.detections):
        scores = selection.scores_in_words()
        raise UserError(f"nothing is detected above {scores}, so there is no gradient: lower --threshold.")
    _save(draw_gradients(result), target)
    return Explained(len(result.detections), selection)


def write_missed(
    model: str | Path | Detector,
    data: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    image: str | Path | None = None,
    format: str = "auto",
    threshold: float | None = None,
    most: int = 3,
    device: str = "auto",
    max_pixels: int | None = None,
    console: Console | None = None,
) -> MissedReport:
    """Find the stage of the model that lost each missed object of a split, and return a report.

    Args:
        model: a `Detector`, or anything that `load` accepts except an exported file.
        data: the data set's folder, or a COCO JSON or YOLO YAML file.
        output: the folder into which `missed.json` and, for each stage, pictures of the first `most` objects
            that it lost are written.
        split: the split's name; None means `val`, or `test` if there is no `val`.
        image: the file name or path of the only image of the split that is judged; None means all images.
        format: the layout of the data set: coco, voc, yolo or auto.
        threshold, device, max_pixels: as for `write_explanation`.
        most: the maximum number of pictures for each stage; 0 means none.
        console: the console that shows the progress; None means standard error.

    Raises:
        UserError: if matplotlib is not installed, if `threshold` is out of range, if the data or the model
            cannot be read or have no class in common, if the model is an exported file, if the split has no
            images or does not list `image`, if an image cannot be read or does not have its annotated size,
            or if the output cannot be written.
    """
    import_extra("matplotlib", "figures", "explain")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold must be between 0 and 1, not {threshold}.")
    part = read_split(data, split, format=format)
    images = part.images if image is None else (_image_of(part, image),)
    if not images:
        raise UserError(f"{part.source}: the split {part.name} has no images.")
    folder = Path(output)
    make_output_folder(folder)
    detector = model if isinstance(model, Detector) else load(model, device, max_pixels=max_pixels)

    console = console or Console(stderr=True)
    selection = detector.selection(threshold)
    tally, drawn = Tally(detector, selection), Counter[Stage]()
    judged_images = missed_objects(detector, part, selection, images)
    for judged in track(judged_images, len(images), "judging", console):
        tally.add(judged)
        for number, verdict in zip(judged.numbers, judged.verdicts, strict=True):
            if verdict.stage is not Stage.FOUND and drawn[verdict.stage] < most:
                drawn[verdict.stage] += 1
                name = f"{verdict.stage.value.replace(' ', '_')}_{drawn[verdict.stage]}.png"
                _save(_draw_missed(detector, part, judged, int(number), verdict), folder / name)
    report = tally.report()
    write_json(folder / MISSED_FILE, report.to_dict())
    return report


def print_missed(report: MissedReport, console: Console) -> None:
    """Print a report as two tables.

    The first counts the missed objects by stage, and the second counts all objects by class and stage. A note
    states the number of objects of classes that the model does not have, if there are any.
    """
    objects, missed = sum(report.stages.values()), len(report.rows)
    words = printable(report.selection.in_words())
    table = Table(
        title=Text(f"{missed} of {objects} objects missed at threshold {words}", "italic"),
        title_justify="left",
    )
    for column, justify in (("lost because", "left"), ("objects", "right"), ("meaning", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for reason, meaning in MEANINGS.items():
        table.add_row(reason.value, str(report.stages[reason]), meaning)
    console.print(table)
    classes = Table(title="by class", title_justify="left")
    classes.add_column("class", no_wrap=True, overflow="ellipsis", max_width=18)
    for stage in Stage:
        classes.add_column(stage.value, justify="right", max_width=10)
    for name, counts in report.per_class.items():
        classes.add_row(Text(printable(name)), *(str(counts[stage]) for stage in Stage))
    console.print(classes)
    if report.unknown:
        console.print(f"{report.unknown} objects of classes that the model does not have are not counted.")


def _draw_missed(detector: Detector, split: Split, judged: Judged, number: int, verdict: Verdict) -> Figure:
    """Draw the box of a missed object, as a dashed line, in the whole picture and in a zoomed panel.

    The zoomed panel also shows the query that passed the most stages. `number` is the index of the object in
    the image's record, and `verdict` is the verdict on it.
    """
    record = judged.record
    box = record.boxes_xyxy[number]
    opened = open_image(record.path, annotated_size=record.size, max_pixels=detector.data.max_pixels)
    picture = np.asarray(opened.picture)
    figure, (whole, near) = grid(2, record.size, columns=2, min_width=MISSED_INCHES)
    for panel in (whole, near):
        show_picture(panel, picture)
        if panel is near:
            draw_query(panel, judged.queries, verdict.query)
            predicted = judged.queries.boxes_xyxy[verdict.query, -1]
            both = np.concatenate([np.minimum(box, predicted)[:2], np.maximum(box, predicted)[2:]])
            zoom(panel, both, record.size)
        draw_box(panel, box, OBJECT_COLOUR, 1.0, linestyle=(0, (4, 2)))
    name = split.classes.name(int(record.labels[number]))
    title(whole, f"{name}: {verdict.stage.value}", "")
    title(
        near,
        f"query {verdict.query}",
        f"attention {verdict.attention:.0%}, IoU {verdict.iou:.3f}, score {verdict.score:.3f}, "
        f"best class {detector.classes.name(verdict.label)}",
    )
    return figure


def _image_of(split: Split, image: str | Path) -> ImageRecord:
    path = Path(image)
    ways: tuple[Callable[[ImageRecord], bool], ...] = (
        lambda record: record.path.resolve() == path.resolve(),
        lambda record: record.file_name == str(image),
        lambda record: record.path.name == path.name,
    )
    for same in ways:
        records = [record for record in split.images if same(record)]
        if records:
            return records[0]
    raise UserError(f"{split.source}: the split {split.name} has no image {image}: name one that it lists.")


def _checked_file(output: str | Path, suffixes: Sequence[str]) -> Path:
    import_extra("matplotlib", "figures", "explain")
    target = check_output_file(output)
    if target.suffix.lower() not in suffixes:
        raise UserError(f"--output {output} must end in one of {', '.join(suffixes)}.")
    return target


def _save(figure: Figure, target: Path) -> None:
    with replacing(target) as draft:
        figure.savefig(draft, format=target.suffix.lower().removeprefix("."))
