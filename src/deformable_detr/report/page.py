"""The report as one HTML file: sections from the numbers, put into page.html.

It loads nothing: style inside, pictures as data, charts as SVG (svg.py). The only script sorts the class
table. Every name (classes, files, folders, settings) is escaped where it enters.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

from .accuracy import Accuracy
from .accuracy_sections import accuracy_sections
from .content import Content, Section
from .findings import Limit, duration, headline, limits, percent, training_limit
from .html_parts import command_line, count, when
from .run_sections import (
    data_section,
    next_section,
    settings_section,
    training_section,
)


def html_of(content: Content) -> str:
    """The whole page."""
    sections = _sections(content)
    parts = {
        "title": escape(_title(content)),
        "kicker": escape(_kicker(content)),
        "overview": _overview(content),
        "links": "".join(f'<li><a href="#{each.anchor}">{each.link}</a></li>' for each in sections),
        "sections": "\n".join(f'<section id="{each.anchor}">\n{each.body}\n</section>' for each in sections),
        "footer": escape(_footer(content)),
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    text, *pieces = template.split("{{")
    for piece in pieces:  # in one pass: what a part holds is never taken for a placeholder
        name, after = piece.split("}}", 1)
        text += parts[name] + after
    return text


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


def _title(content: Content) -> str:
    return f"{content.detector.recipe} on {Path(content.data).resolve().name}"


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
            f"{count(accuracy.num_objects, 'object')}, {count(len(accuracy.wanted), 'class', 'classes')}"
        )
    return " · ".join(words)


def _overview(content: Content) -> str:
    accuracy = content.accuracy
    body = f'<p class="headline">{escape(headline(accuracy))}</p>'
    if accuracy is None:
        line = command_line("report", content.model, content.data, "--split", "train")
        return body + (
            "<p>Give the data a split <code>val</code>, or measure on what there is: "
            f"<code>{escape(line)}</code> (a model is better on pictures that it learned from than on "
            "others).</p>"
        )
    if not accuracy.num_objects:
        return body
    body += f'<dl class="tiles">{_tiles(accuracy)}</dl>'
    found = [*limits(accuracy, content.misses, content.mistakes), *_more_limits(content, accuracy)]
    if found:
        listed = "".join(f"<li><b>{escape(each.short)}</b>{escape(each.text)}</li>" for each in found)
        body += f'<h2>What limits it</h2><ul class="limits">{listed}</ul>'
    return body


def _tiles(accuracy: Accuracy) -> str:
    curve = accuracy.thresholds
    tiles = [
        ("AP", percent(accuracy.summary["AP"]), "mean over IoU 0.5 to 0.95", True),
        ("AP50", percent(accuracy.summary["AP50"]), "an IoU of 0.5 will do", False),
        ("AP75", percent(accuracy.summary["AP75"]), "tight boxes only", False),
    ]
    if curve.best is not None:
        tiles += [
            ("threshold to use", f"{accuracy.threshold:.2f}", "best F1 on this split", True),
            ("precision", percent(curve.precision[curve.best]), "% of detections are right", False),
            ("recall", percent(curve.recall[curve.best]), "% of objects are found", False),
        ]
    return "".join(
        f'<div class="{"chief" if chief else ""}"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
        for name, value, note, chief in tiles
    )


def _more_limits(content: Content, accuracy: Accuracy) -> list[Limit]:
    """Those that the numbers of the split do not show."""
    found = []
    most = max(int((~image.crowd).sum()) for image in accuracy.split.images)
    queries = content.detector.config.num_queries
    if most > queries:
        found.append(
            Limit(
                "More objects than queries",
                f"A picture has {most} objects, the model {queries} queries: the rest cannot be found. Set "
                "--model.num_queries.",
            )
        )
    unknown = [row.name for row in accuracy.classes if not row.known and row.objects]
    if unknown:
        text = f"{', '.join(unknown[:8])}{' …' if len(unknown) > 8 else ''}: counted as never found."
        found.append(Limit(f"{count(len(unknown), 'class', 'classes')} not in the model", text))
    limit = None if content.history is None else training_limit(content.history)
    return found if limit is None else [*found, limit]


def _footer(content: Content) -> str:
    version = content.made["versions"].get("deformable-detr", "")
    return (
        f"Made by deformable_detr {version} for {content.model} at {when(content.made['time'])}. This file "
        "is whole: it loads nothing and can be sent as it is. How to read each part: docs/report.md."
    )
