"""The report as one HTML file, drawn by the template report.html. Its only script sorts the class table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..evaluation.matching import LOOSE
from ..inference.trace_drawing import BOX_COLOUR, OBJECT_COLOUR
from ..pages import render
from ..words import command_line, count, duration, percent, when
from .accuracy import Accuracy
from .accuracy_sections import accuracy_sections
from .content import Content, Section
from .findings import Limit, headline, limits, training_limit
from .run_sections import data_section, next_section, settings_section, training_section


@dataclass(frozen=True)
class Tile:
    """One of the large numbers at the top of the page; `chief` marks the most important ones."""

    name: str
    value: str
    note: str
    chief: bool = False


def report_page(content: Content) -> str:
    """Return the whole page as HTML."""
    accuracy = content.accuracy
    measured = accuracy is not None and accuracy.num_objects > 0
    return render(
        "report.html",
        title=f"{content.detector.recipe} on {Path(content.data).resolve().name}",
        kicker=_kicker(content),
        headline=headline(accuracy),
        command=""
        if accuracy is not None
        else command_line("report", content.model, content.data, "--split", "train"),
        tiles=_tiles(accuracy) if accuracy is not None and measured else (),
        limits=_all_limits(content, accuracy) if accuracy is not None and measured else (),
        sections=_sections(content),
        iou=LOOSE,
        threshold="" if accuracy is None else accuracy.cut.in_words(),
        colours={"box": BOX_COLOUR, "object": OBJECT_COLOUR},
        origin={
            "version": content.environment["versions"].get("deformable-detr", ""),
            "model": content.model,
            "time": when(content.environment["time"]),
        },
    )


def _sections(content: Content) -> list[Section]:
    sections = []
    if content.accuracy is not None:
        sections += accuracy_sections(content, content.accuracy)
    if content.history is not None:
        sections.append(training_section(content.history))
    sections.append(settings_section(content))
    if content.splits:
        sections.append(data_section(content.splits))
    return [*sections, next_section(content)]


# ---------------------------------------------------------------- the first screen


def _kicker(content: Content) -> str:
    words = ["Training report" if content.history is not None else "Model report"]
    history, accuracy = content.history, content.accuracy
    if history is not None and history.updates:
        last = history.updates[-1]
        done, planned = last["epoch"] + 1, history.config.train.epochs
        epochs = f"{done} of {count(planned, 'epoch')}" if history.unfinished else count(done, "epoch")
        words.append(f"{epochs}, {count(last['step'], 'update')}")
        if history.seconds is not None:
            words[-1] += f", {duration(history.seconds)}"
    if content.train_split is not None:
        words.append(count(len(content.train_split), "training image"))
    if accuracy is not None:
        split = accuracy.split
        words.append(
            f"measured on {split.name}: {count(len(split), 'image')}, "
            f"{count(accuracy.num_objects, 'object')}, {count(len(accuracy.classes_to_find), 'class')}"
        )
    return " · ".join(words)


def _tiles(accuracy: Accuracy) -> list[Tile]:
    summary = accuracy.summary
    tiles = [
        Tile("AP", percent(summary["AP"]), "mean over IoU 0.5 to 0.95", chief=True),
        Tile("AP50", percent(summary["AP50"]), "an IoU of 0.5 suffices"),
        Tile("AP75", percent(summary["AP75"]), "tight boxes only"),
    ]
    if accuracy.thresholds.best is not None:
        tiles += [
            Tile(
                "threshold to use" if accuracy.cut.decision is None else "threshold of the model",
                accuracy.cut.in_words(),
                accuracy.cut.reason,
                chief=True,
            ),
            Tile("precision", percent(accuracy.precision), "% of detections are right"),
            Tile("recall", percent(accuracy.recall), "% of objects are found"),
        ]
    return tiles


def _all_limits(content: Content, accuracy: Accuracy) -> list[Limit]:
    """List the limits that the split's numbers show, followed by those of the model and of its training."""
    result = limits(accuracy, content.misses, content.mistakes)
    max_objects = accuracy.split.max_objects
    queries = content.detector.config.num_queries
    if max_objects > queries:
        result.append(
            Limit(
                "More objects than queries",
                f"A picture has {max_objects} objects, but the model has {queries} queries: the rest cannot "
                "be found. Set --model.num_queries.",
            )
        )
    unknown = [row.name for row in accuracy.classes if not row.known and row.objects]
    if unknown:
        text = f"{', '.join(unknown[:8])}{' …' if len(unknown) > 8 else ''}: counted as never found."
        result.append(Limit(f"{count(len(unknown), 'class')} not in the model", text))
    limit = None if content.history is None else training_limit(content.history)
    return result if limit is None else [*result, limit]
