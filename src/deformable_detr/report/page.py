"""The report as one HTML file: sections from the numbers, put into page.html.

It loads nothing: style inside, pictures as data, charts as SVG (svg.py). The only script sorts the class table.
Every name (classes, files, folders, settings) is escaped where it enters.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..average_precision import CLASS_METRICS
from ..config import to_dict
from ..data.formats import NOTES
from ..data.records import Split
from ..detector import Detector
from ..explain.missed import MEANINGS as STAGE_MEANINGS
from .accuracy import MEANINGS as MISTAKE_MEANINGS
from .accuracy import Accuracy, ClassRow, Mistake
from .findings import (
    Limit,
    calibration_title,
    confusion_title,
    curve_title,
    duration,
    headline,
    limits,
    loss_title,
    percent,
    rate_title,
    threshold_title,
    training_title,
)
from .matching import LOOSE
from .measures import LEAST_SCORE, NUM_BINS, RECALLS, THRESHOLDS
from .pictures import Misses, Shown
from .run_folder import History, changes_from_recipe
from .svg import Line, Mark, axis_for, bar_chart, line_chart, sparkline, unit_axis, whole_axis

MOST_COLOURED = 6  # classes with a line of their own
MOST_IN_MATRIX = 20
LISTED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Content:
    """All that a report says. `history`: None for a model that is no run folder. `accuracy`: None without a
    split to measure on; then `misses` is None and `mistakes`, `false_positives` are empty. `model`, `data`:
    as a user names them in a command. `made`: machine and versions of the one who makes the report."""

    detector: Detector
    model: str
    data: str
    made: Mapping[str, Any]
    history: History | None
    accuracy: Accuracy | None
    misses: Misses | None
    mistakes: Mapping[Mistake, int]
    false_positives: Sequence[Shown]
    train_split: Split | None


@dataclass(frozen=True)
class _Section:
    anchor: str
    link: str
    body: str


def html_of(content: Content) -> str:
    """The whole page."""
    sections = [
        section
        for section in (
            *(() if content.accuracy is None else _accuracy_sections(content, content.accuracy)),
            _training(content.history),
            _settings(content),
            _data(content),
            _next(content),
        )
        if section is not None
    ]
    parts = {
        "title": escape(_title(content)),
        "kicker": _kicker(content),
        "overview": _overview(content),
        "links": "".join(f'<li><a href="#{each.anchor}">{each.link}</a></li>' for each in sections),
        "sections": "\n".join(f'<section id="{each.anchor}">\n{each.body}\n</section>' for each in sections),
        "footer": _footer(content),
    }
    template = (files(__package__) / "page.html").read_text(encoding="utf-8")
    text, *pieces = template.split("{{")
    for piece in pieces:  # in one pass: what a part holds is never taken for a placeholder
        name, after = piece.split("}}", 1)
        text += parts[name] + after
    return text


# ---------------------------------------------------------------- the first screen


def _title(content: Content) -> str:
    return f"{content.detector.recipe} on {Path(content.data).resolve().name}"


def _kicker(content: Content) -> str:
    words = ["Training report" if content.history is not None else "Model report"]
    history, accuracy = content.history, content.accuracy
    if history is not None and history.updates:
        last = history.updates[-1]
        trained = f"{_count(last['epoch'] + 1, 'epoch')}, {last['step']:,} updates"
        if history.seconds is not None:
            trained += f", {duration(history.seconds)}"
        words.append(trained)
    if content.train_split is not None:
        words.append(f"{_count(len(content.train_split), 'training image')}")
    if accuracy is not None:
        split = accuracy.split
        words.append(
            f"measured on {escape(split.name)}: {_count(len(split), 'image')}, "
            f"{_count(accuracy.num_objects, 'object')}, {_count(len(accuracy.wanted), 'class', 'classes')}"
        )
    return " · ".join(words)


def _overview(content: Content) -> str:
    accuracy = content.accuracy
    body = f'<p class="headline">{escape(headline(accuracy))}</p>'
    if accuracy is None:
        return body + (
            "<p>Add a split <code>val</code> to the data, or measure on what there is: "
            f"<code>{_command('report', content.model, content.data, '--split', 'train')}</code> "
            "(a model is better on the pictures that it learned from than on others).</p>"
        )
    curve = accuracy.thresholds
    tiles = [
        ("AP", percent(accuracy.summary["AP"]), "mean over IoU 0.5 to 0.95", True),
        ("AP50", percent(accuracy.summary["AP50"]), "box overlap of 0.5 will do", False),
        ("AP75", percent(accuracy.summary["AP75"]), "tight boxes only", False),
    ]
    if curve.best is not None:
        tiles += [
            ("threshold to use", f"{accuracy.threshold:.2f}", "best F1 on this split", True),
            ("precision", percent(curve.precision[curve.best]), "of detections are right", False),
            ("recall", percent(curve.recall[curve.best]), "of objects are found", False),
        ]
    body += '<dl class="tiles">' + "".join(
        f'<div class="{"chief" if chief else ""}"><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>'
        for name, value, note, chief in tiles
    )
    body += "</dl>"
    found = [*limits(accuracy, content.misses, content.mistakes), *_more_limits(content, accuracy)]
    if found:
        body += (
            "<h2>What limits it</h2>"
            + '<ul class="limits">'
            + "".join(f"<li><b>{escape(each.short)}</b>{escape(each.text)}</li>" for each in found)
            + "</ul>"
        )
    return body


def _more_limits(content: Content, accuracy: Accuracy) -> list[Limit]:
    """Those that the numbers of the split do not show."""
    found = []
    most = max((int((~image.crowd).sum()) for image in accuracy.split.images), default=0)
    queries = content.detector.config.num_queries
    if most > queries:
        found.append(
            Limit(
                "More objects than queries",
                f"A picture has {most} objects, the model {queries} queries: the rest cannot be found. "
                "Set --model.num_queries.",
            )
        )
    unknown = [row.name for row in accuracy.classes if not row.known and row.objects]
    if unknown:
        found.append(Limit("Classes that the model does not know", f"{', '.join(unknown[:8])}: never found."))
    history = content.history
    if history is not None and len(history.evaluations) > 1:
        title = training_title(history)
        if title.startswith("Still improving"):
            short, text = title.split(": ", 1)
            found.append(Limit(short, f"{text[0].upper()}{text[1:]}."))
    return found


# ---------------------------------------------------------------- accuracy


def _accuracy_sections(content: Content, accuracy: Accuracy) -> list[_Section]:
    if not accuracy.num_objects:
        return []
    return [
        _classes(accuracy),
        _curves(accuracy),
        _thresholds(accuracy),
        _confusion(accuracy),
        _calibration(accuracy),
        _misses(content, accuracy),
        _false_positives(content, accuracy),
    ]


def _classes(accuracy: Accuracy) -> _Section:
    summary = accuracy.summary
    heads = ["class", "objects", "images", *CLASS_METRICS, "precision–recall", "best threshold", "F1 there"]
    rows = [_class_cells(row) for row in accuracy.classes]
    images = sum(bool((~image.crowd).any()) for image in accuracy.split.images)
    foot = ["all", accuracy.num_objects, images, *(percent(summary[name]) for name in CLASS_METRICS)]
    foot += ["", f"{accuracy.threshold:.2f}"] if accuracy.thresholds.best is not None else ["", "-"]
    foot.append(percent(float(accuracy.thresholds.f1.max())))
    table = (
        '<div class="wide" tabindex="0" role="region" aria-label="AP of each class">'
        '<table class="numbers sortable"><caption>In percent; - where the split has no such object. Sizes are by '
        "area in pixels of the original picture: s under 32², m under 96², l the rest. AR100: share of objects "
        "found with 100 detections per picture, mean over IoU 0.5 to 0.95. Click a column to sort.</caption>"
        f"<thead><tr>{''.join(f'<th scope=col>{name}</th>' for name in heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody>"
        f"<tfoot><tr>{''.join(f'<td>{cell}</td>' for cell in foot)}</tr></tfoot></table></div>"
    )
    weakest = [row for row in accuracy.wanted if row.ap is not None]
    best = max(weakest, key=lambda row: row.ap["AP"] if row.ap else 0.0)
    assert best.ap is not None
    title = f"AP {percent(summary['AP'])}; best class {best.name} with {percent(best.ap['AP'])}"
    return _Section("classes", "Classes", f"<h2>{escape(title)}</h2>{table}")


def _class_cells(row: ClassRow) -> str:
    note = "" if row.known else ' <span class="tag">not in the model</span>'
    cells = [f'<th scope=row title="{escape(row.name)}">{escape(row.name)}{note}</th>']
    cells += [f"<td>{row.objects}</td>", f"<td>{row.images}</td>"]
    if row.ap is None:
        return f"<tr>{''.join(cells)}{'<td>-</td>' * (len(CLASS_METRICS) + 3)}</tr>"
    share = max(row.ap["AP"], 0.0)
    cells.append(f'<td style="--share:{share:.3f}">{percent(row.ap["AP"])}</td>')
    cells += [f"<td>{percent(row.ap[name])}</td>" for name in CLASS_METRICS[1:]]
    area = row.ap["AP50"]
    spark = sparkline(
        row.curve, row.tight_curve, f"Precision against recall of {row.name}, area {percent(area)}"
    )
    best = row.thresholds.best
    cells.append(f'<td data-value="{area:.4f}">{spark}</td>')
    cells.append(f"<td>{'-' if best is None else f'{THRESHOLDS[best]:.2f}'}</td>")
    cells.append(f"<td>{percent(float(row.thresholds.f1.max()))}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _curves(accuracy: Accuracy) -> _Section:
    loose, tight = accuracy.mean_curves
    x, y = unit_axis("recall: share of the objects that are found"), unit_axis("precision")
    overall = line_chart(
        [
            Line(f"IoU 0.5, area {percent(float(loose.mean()))} (AP50)", RECALLS, loose, 0),
            Line(f"IoU 0.75, area {percent(float(tight.mean()))} (AP75)", RECALLS, tight, 1, dashed=True),
        ],
        x,
        y,
        title=f"Precision against recall, mean over classes: area {percent(float(loose.mean()))} at IoU 0.5, "
        f"{percent(float(tight.mean()))} at 0.75",
    )
    rows = sorted(accuracy.wanted, key=lambda row: -(row.ap["AP50"] if row.ap else 0.0))
    coloured = rows if len(rows) <= MOST_COLOURED else [*rows[:3], *rows[-3:]]
    lines = [Line(row.name, RECALLS, row.curve, None) for row in rows if row not in coloured]
    for colour, row in enumerate(coloured):
        assert row.ap is not None
        lines.append(Line(f"{row.name} ({percent(row.ap['AP50'])})", RECALLS, row.curve, colour))
    for colour, row in enumerate(coloured):
        if len(rows) <= MOST_COLOURED:
            lines.append(Line(f"{row.name}, IoU 0.75", RECALLS, row.tight_curve, colour, dashed=True))
    names = (
        "of each class" if len(rows) <= MOST_COLOURED else "of the three best and worst classes, others faint"
    )
    dashed = ", dashed at 0.75" if len(rows) <= MOST_COLOURED else ""
    named = [line for line in lines if not line.dashed and line.colour is not None]
    chart = line_chart(lines, x, y, title=f"Precision against recall {names}", named=named)
    body = (
        f"<h2>{escape(curve_title(accuracy))}</h2>"
        '<div class="grid">'
        + _figure("Over all classes", overall, "Precision: share of the detections that are right.")
        + _figure(
            f"Curves {names}",
            chart,
            f"At IoU 0.5{dashed}. A curve that ends early: the rest is not found at any score.",
        )
        + "</div>"
    )
    return _Section("curves", "Precision and recall", body)


def _thresholds(accuracy: Accuracy) -> _Section:
    curve = accuracy.thresholds
    marks = [] if curve.best is None else [Mark(accuracy.threshold, f"{accuracy.threshold:.2f}")]
    chart = line_chart(
        [
            Line("precision", THRESHOLDS, curve.precision, 1),
            Line("recall", THRESHOLDS, curve.recall, 2),
            Line("F1", THRESHOLDS, curve.f1, 0),
        ],
        unit_axis("score threshold"),
        unit_axis("share"),
        title=threshold_title(accuracy),
        marks=marks,
    )
    listed = sorted({*LISTED_THRESHOLDS, *([] if curve.best is None else [round(accuracy.threshold, 2)])})
    rows = ""
    for threshold in listed:
        index = round(threshold * 100) - 1
        mark = ' <span class="tag">best F1</span>' if index == curve.best else ""
        kept = int((accuracy.found.scores >= threshold).sum())
        cells = (percent(each[index]) for each in (curve.precision, curve.recall, curve.f1))
        rows += (
            f"<tr><th scope=row>{threshold:.2f}{mark}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}"
            f"<td>{kept}</td></tr>"
        )
    table = (
        '<div class="wide"><table><thead><tr><th scope=col>threshold</th><th scope=col>precision</th>'
        "<th scope=col>recall</th><th scope=col>F1</th><th scope=col>detections</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    body = (
        f"<h2>{escape(threshold_title(accuracy))}</h2>"
        "<p>A higher threshold gives fewer false alarms, a lower one fewer misses; F1 weighs both alike. Chosen on "
        "the split it is measured on, so a little optimistic. A detection is right if it overlaps a free object of "
        f"its class with an IoU of {LOOSE} at least; all classes together, and each class's own best threshold is "
        "in the table of classes.</p>"
        f'<div class="grid">{_figure("Precision, recall and F1", chart)}{table}</div>'
    )
    return _Section("threshold", "Threshold", body)


def _confusion(accuracy: Accuracy) -> _Section:
    table, names, folded = _folded(accuracy.confusion, accuracy.split.classes.names)
    C = len(names)
    rows = ""
    for index in range(C + 1):
        is_background = index == C
        name = "background" if is_background else names[index]
        total = max(int(table[index].sum()), 1)
        cells = ""
        for column in range(C + 1):
            count = int(table[index, column])
            if is_background and column == C:
                cells += '<td class="apart" aria-label="does not exist"></td>'
                continue
            kinds = [kind for kind, on in (("error", index != column), ("apart", column == C)) if on]
            said = "missed" if column == C else f"called {names[column]}"
            share = count / total * 0.85
            cells += (
                f'<td class="{" ".join(kinds)}" style="--share:{share:.3f}" '
                f'title="{escape(name)} {escape(said)}: {count} of {total}">{count or "·"}</td>'
            )
        rows += (
            f'<tr class="{"apart" if is_background else ""}"><th scope=row>{escape(name)}</th>{cells}</tr>'
        )
    heads = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    note = (
        f" The {MOST_IN_MATRIX} classes with the most errors; {folded} others are put together."
        if folded
        else ""
    )
    body = (
        f"<h2>{escape(confusion_title(accuracy))}</h2>"
        f"<p>Rows: what is there. Columns: what the detections with a score of at least {accuracy.threshold:.2f} say. "
        "Each object and each detection counts once: first, detections take objects of their own class as COCO's "
        f"metric does (IoU {LOOSE}); those left over take what is left of other classes. Last column: objects that "
        f"nothing found; last row: detections of nothing.{note}</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">'
        "<caption>Objects by true class (rows) and detected class (columns); shades are shares of a row</caption>"
        f'<thead><tr><th></th>{heads}<th scope=col class="apart">missed</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    return _Section("confusion", "Confusion", body)


def _folded(table: np.ndarray, names: Sequence[str | None]) -> tuple[np.ndarray, list[str], int]:
    """The classes with the most errors, in their order, the others put together; and how many these are."""
    used = [label for label, name in enumerate(names) if name is not None]
    C = len(names)
    if len(used) > MOST_IN_MATRIX:
        errors = table.sum(0)[:C] + table.sum(1)[:C] - 2 * table.diagonal()[:C]
        shown = sorted(sorted(used, key=lambda label: -errors[label])[:MOST_IN_MATRIX])
    else:
        shown = used
    rest = [label for label in used if label not in shown]
    groups = [[label] for label in shown] + ([rest] if rest else []) + [[C]]
    folded = np.array([[table[np.ix_(rows, columns)].sum() for columns in groups] for rows in groups])
    return folded, [str(names[label]) for label in shown] + (["other classes"] if rest else []), len(rest)


def _calibration(accuracy: Accuracy) -> _Section:
    found = accuracy.calibration
    title = f"<h2>{escape(calibration_title(accuracy))}</h2>"
    if found is None:
        return _Section(
            "calibration", "Calibration", f"{title}<p>No detection has a score of {LEAST_SCORE} or more.</p>"
        )
    edges = np.linspace(0, 1, NUM_BINS + 1)
    filled = [index for index in range(NUM_BINS) if found.counts[index]]
    bars = [
        (
            edges[index],
            edges[index + 1],
            float(found.accuracy[index]),
            f"scores {edges[index]:.1f} to {edges[index + 1]:.1f}: {found.counts[index]} detections, mean score "
            f"{found.confidence[index]:.2f}, right {percent(found.accuracy[index])} %",
        )
        for index in filled
    ]
    ideal = Line("as often right as the score says", (0, 1), (0, 1), 2, dashed=True)
    held = Line("right, by mean score", found.confidence[filled], found.accuracy[filled], 1, dots=True)
    reliability = bar_chart(
        unit_axis("score"),
        unit_axis("share that is right"),
        bars,
        [ideal, held],
        title=calibration_title(accuracy),
    )
    counts = bar_chart(
        unit_axis("score"),
        axis_for("detections", found.counts),
        [
            (edges[i], edges[i + 1], float(found.counts[i]), f"{found.counts[i]} detections")
            for i in range(NUM_BINS)
        ],
        title=f"How many detections have which score, {int(found.counts.sum())} in all",
    )
    body = (
        f"{title}<p>Bars under the dashed line: the scores promise too much; above it: too little. Right means a box "
        f"with an IoU of {LOOSE} at least with a free object of its class; detections with a score of "
        f"{LEAST_SCORE} or more. The expected calibration error {percent(found.error)} is the mean distance from "
        "the line, in percent, weighted by the number of detections.</p>"
        '<div class="grid">'
        + _figure("How often a score is right", reliability)
        + _figure(f"{int(found.counts.sum()):,} detections by score", counts)
        + "</div>"
    )
    return _Section("calibration", "Calibration", body)


# ---------------------------------------------------------------- pictures


def _misses(content: Content, accuracy: Accuracy) -> _Section:
    misses = content.misses
    assert misses is not None
    if not misses.missed:
        body = f"<h2>No object was missed at the threshold {misses.threshold:.2f}</h2>"
        return _Section("misses", "Misses", body)
    stage = misses.main_stage
    assert stage is not None
    share = misses.stages[stage] / misses.missed
    title = f"{misses.missed} of {misses.objects} objects missed, {100 * share:.0f} % of them {stage.value}"
    rows = "".join(
        f'<tr><th scope=row>{each.value}</th><td>{misses.stages[each]}</td><td class="left">{escape(meaning)}</td></tr>'
        for each, meaning in STAGE_MEANINGS.items()
    )
    where = (
        f"In all {misses.images} images"
        if misses.images == misses.of
        else f"In {misses.images} of {misses.of} images, evenly chosen"
    )
    body = (
        f"<h2>{escape(title)}</h2><p>{where}, at the threshold {misses.threshold:.2f}: the first stage of the model "
        "that lost an object. <code>deformable-detr explain --missed</code> judges and draws all of them.</p>"
        '<div class="wide"><table><thead><tr><th scope=col>lost because</th><th scope=col>objects</th>'
        f'<th scope=col class="left">meaning</th></tr></thead><tbody>{rows}</tbody></table></div>'
        "<p class=dim>Left the whole picture, right the query that came furthest. "
        f"{_key('#ff3b30', True)}the object&ensp;{_key('#35e055')}the query's box after each layer; dots: where it "
        "looked, from blue (little weight) to red.</p>"
        f"{_cards(misses.shown)}"
    )
    return _Section("misses", "Misses", body)


def _false_positives(content: Content, accuracy: Accuracy) -> _Section:
    total = sum(content.mistakes.values())
    kept = int((accuracy.found.scores >= accuracy.threshold).sum())
    if not total:
        body = f"<h2>No false positives among the {kept} detections above {accuracy.threshold:.2f}</h2>"
        return _Section("false-positives", "False positives", body)
    kind = max(content.mistakes, key=lambda each: content.mistakes[each])
    title = (
        f"{total} of {kept} detections above {accuracy.threshold:.2f} are wrong, most often: {kind.value} "
        f"({content.mistakes[kind]})"
    )
    rows = "".join(
        f'<tr><th scope=row>{each.value}</th><td>{content.mistakes.get(each, 0)}</td><td class="left">{escape(text)}</td></tr>'
        for each, text in MISTAKE_MEANINGS.items()
    )
    body = (
        f"<h2>{escape(title)}</h2>"
        '<div class="wide"><table><thead><tr><th scope=col>mistake</th><th scope=col>detections</th>'
        f'<th scope=col class="left">meaning</th></tr></thead><tbody>{rows}</tbody></table></div>'
        "<p class=dim>The ones with the highest scores, some of each kind. "
        f"{_key('#35e055')}the detection&ensp;{_key('#ff3b30', True)}annotated objects; dots: where the model "
        "looked for it.</p>"
        f"{_cards(content.false_positives)}"
    )
    return _Section("false-positives", "False positives", body)


def _cards(shown: Iterable[Shown]) -> str:
    cards = "".join(
        f'<figure class="card"><div class="pair"><img src="{each.whole}" alt="{escape(each.alt)}">'
        f'<img src="{each.near}" alt="Where the model looked"></div><figcaption><b>{escape(each.name)}</b> '
        f'<span class="tag">{escape(each.kind)}</span><br>{escape(each.facts)} <span class="dim">'
        f"{escape(each.file_name)}</span></figcaption></figure>"
        for each in shown
    )
    return f'<div class="cards">{cards}</div>'


def _key(colour: str, dashed: bool = False) -> str:
    style = "dashed" if dashed else "solid"
    return f'<span class="key" style="border-color:{colour};border-style:{style}"></span>'


# ---------------------------------------------------------------- training


def _training(history: History | None) -> _Section | None:
    if history is None or not history.updates:
        return None
    figures = []
    evaluations = history.evaluations
    if evaluations:
        figures.append(_figure(training_title(history), _ap_chart(history)))
        if any("per_class" in row for row in evaluations) and 1 < len(evaluations[-1]["per_class"]) <= 8:
            figures.append(_figure("AP of each class", _class_chart(history)))
    steps = [row["step"] for row in history.updates]
    x = whole_axis("update", 0, steps[-1])
    marks = [Mark(start["step"], "resumed") for start in history.starts if start.get("step")]
    losses = [row["loss"] for row in history.updates]
    figures.append(
        _figure(
            loss_title(history),
            line_chart(
                [Line("loss", steps, losses, 0)],
                x,
                axis_for("loss, all terms and layers", _most_of(losses)),
                title=loss_title(history),
                marks=marks,
            ),
        )
    )
    terms = [name for name in ("class", "box", "giou") if any(name in row for row in history.updates)]
    values = {name: [row.get(name, np.nan) for row in history.updates] for name in terms}
    if terms:
        figures.append(
            _figure(
                "The terms of the last layer",
                line_chart(
                    [Line(name, steps, values[name], colour) for colour, name in enumerate(terms)],
                    x,
                    axis_for(
                        "loss, before weights", _most_of([value for name in terms for value in values[name]])
                    ),
                    title="Loss terms of the last decoder layer",
                ),
                "class: is it called by its name; box: distance of the corners; giou: overlap.",
            )
        )
    rates = [row.get("learning_rate", {}) for row in history.updates]
    groups = list(dict.fromkeys(name for row in rates for name in row))
    if groups:
        curves = {name: np.array([row.get(name, np.nan) for row in rates]) * 1e4 for name in groups}
        figures.append(
            _figure(
                rate_title(history),
                line_chart(
                    [
                        Line(name, steps, curves[name], colour, dashed=colour > 0)
                        for colour, name in enumerate(groups)
                    ],
                    x,
                    axis_for("learning rate, in 1e-4", np.concatenate(list(curves.values()))),
                    title=rate_title(history),
                ),
            )
        )
    body = f'<h2>Training: {escape(_lower(training_title(history)))}</h2><div class="grid">{"".join(figures)}</div>'
    return _Section("training", "Training", body)


def _ap_chart(history: History) -> str:
    rows = history.evaluations
    epochs = [row["epoch"] + 1 for row in rows]
    names = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}
    lines = [
        Line(name, epochs, [100 * row[name] if row[name] >= 0 else np.nan for row in rows], colour,
             dashed=name in ("APs", "APm", "APl"), dots=len(rows) <= 60 and name == "AP")
        for name, colour in names.items()
        if all(name in row for row in rows) and any(row[name] >= 0 for row in rows)
    ]  # fmt: skip
    best = history.best
    marks = [] if best is None or len(rows) < 2 else [Mark(best["epoch"] + 1, "best")]
    highest = max(float(np.nanmax(line.y)) for line in lines)
    return line_chart(
        lines,
        whole_axis("epoch", 1, epochs[-1]),
        axis_for("percent", [0.0, max(highest, 1.0)]),
        title=training_title(history),
        marks=marks,
    )


def _class_chart(history: History) -> str:
    rows = [row for row in history.evaluations if "per_class" in row]
    epochs = [row["epoch"] + 1 for row in rows]
    lines = [
        Line(name, epochs, [100 * row["per_class"].get(name, {}).get("AP", np.nan) for row in rows], colour)
        for colour, name in enumerate(rows[-1]["per_class"])
    ]
    highest = max((float(np.nanmax(line.y)) for line in lines), default=1.0)
    return line_chart(
        lines,
        whole_axis("epoch", 1, epochs[-1]),
        axis_for("AP in percent", [0.0, max(highest, 1.0)]),
        title="AP of each class, epoch by epoch",
    )


def _most_of(values: Sequence[float]) -> np.ndarray:
    """Without the first spikes, which would flatten all the rest."""
    finite = np.array([value for value in values if np.isfinite(value)])
    if len(finite) < 20:
        return finite
    return finite[finite <= 1.5 * np.quantile(finite, 0.98)]


# ---------------------------------------------------------------- settings, data, what next


def _settings(content: Content) -> _Section:
    detector, history = content.detector, content.history
    parameters = sum(p.numel() for p in detector.model.parameters())
    config = detector.config
    facts = {
        "recipe": detector.recipe,
        "model": f"{parameters / 1e6:.1f} million parameters, {config.backbone.name}, {config.num_queries} queries, "
        f"{_count(config.num_levels, 'feature level')}, {config.encoder_layers} + {config.decoder_layers} layers",
        "pictures": f"short side {detector.data.image_size}, long side at most {detector.data.max_size} pixels",
    }
    title = "Settings"
    table = ""
    if history is not None:
        train = history.config.train
        facts["schedule"] = (
            f"{_count(train.epochs, 'epoch')}"
            + (f", at most {train.max_steps} updates" if train.max_steps is not None else "")
            + f", batch {train.batch_size} x {train.accumulate}, {train.precision}, seed {train.seed}"
        )
        if train.ema_decay:
            facts["weights"] = f"moving average over updates (decay {train.ema_decay})"
        if history.updates:
            speeds = [row["images_per_second"] for row in history.updates if "images_per_second" in row]
            facts["time"] = (duration(history.seconds) if history.seconds is not None else "not recorded") + (
                f" of training, evaluation left out; {float(np.median(speeds)):.1f} images per second"
                if speeds
                else ""
            )
        for number, start in enumerate(history.starts):
            name = "started" if number == 0 else f"resumed after update {start.get('step', '?')}"
            facts[name] = (
                f"{start.get('time', '?')} on {start.get('device', '?')}, "
                f"{_count(int(start.get('processes', 1)), 'process', 'processes')}; {_versions(start)}"
            )
        changes = changes_from_recipe(history.config)
        title = (
            f"{_count(len(changes), 'setting')} {'differs' if len(changes) == 1 else 'differ'} from the recipe "
            f"{detector.recipe}"
            if changes
            else f"The recipe {detector.recipe}, without a change"
        )
        if changes:
            rows = "".join(
                f"<tr><th scope=row>{escape(each.path)}</th><td class=left>{_value(each.recipe)}</td>"
                f"<td class=left>{_value(each.run)}</td></tr>"
                for each in changes
            )
            table = (
                '<div class="wide"><table class="settings"><thead><tr><th scope=col>setting</th>'
                f"<th scope=col class=left>recipe</th><th scope=col class=left>this run</th></tr></thead>"
                f"<tbody>{rows}</tbody></table></div>"
            )
        text = yaml.safe_dump(to_dict(history.config), sort_keys=False)
        table += f"<details><summary>All settings (config.yaml)</summary><pre>{escape(text)}</pre></details>"
    facts["this report"] = (
        f"made {content.made['time']} on {content.made['device']}; {_versions(content.made)}"
    )
    return _Section("settings", "Settings", f"<h2>{escape(title)}</h2>{_facts(facts)}{table}")


def _versions(row: Mapping[str, Any]) -> str:
    versions = {"python": row.get("python", "?"), **row.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _data(content: Content) -> _Section | None:
    evaluated = None if content.accuracy is None else content.accuracy.split
    splits = [split for split in (content.train_split, evaluated) if split is not None]
    if len(splits) == 2 and splits[0].source == splits[1].source and splits[0].name == splits[1].name:
        splits = splits[:1]
    if not splits:
        return None
    columns = [_split_facts(split) for split in splits]
    rows = "".join(
        f"<tr><th scope=row>{name}</th>{''.join(f'<td>{escape(column[name])}</td>' for column in columns)}</tr>"
        for name in columns[0]
    )
    heads = "".join(f"<th scope=col>{escape(split.name)}</th>" for split in splits)
    names = list(dict.fromkeys(name for split in splits for name in split.classes.names if name is not None))
    counts = [_class_counts(split) for split in splits]
    listed = "".join(
        f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{each.get(name, 0):,}</td>' for each in counts)}</tr>"
        for name in names
    )
    title = " and ".join(f"{len(split):,} {split.name} images" for split in splits)
    rarest = min(names, key=lambda name: counts[0].get(name, 0))
    if len(names) > 1:
        title += f"; rarest class: {rarest} ({counts[0].get(rarest, 0):,} objects)"
    body = (
        f"<h2>{escape(title)}</h2>"
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"<details{' open' if len(names) <= 12 else ''}><summary>Objects of each class</summary>"
        f'<div class="wide"><table><thead><tr><th scope=col>class</th>{heads}</tr></thead>'
        f"<tbody>{listed}</tbody></table></div></details>"
        f"<p class=dim>Read from {escape(', '.join(dict.fromkeys(str(split.source) for split in splits)))}. "
        "<code>deformable-detr inspect</code> lists what is broken in it.</p>"
    )
    return _Section("data", "Data", body)


def _split_facts(split: Split) -> dict[str, str]:
    areas = np.concatenate([image.area[~image.crowd] for image in split.images])
    counts = np.array([int((~image.crowd).sum()) for image in split.images])
    total = max(len(areas), 1)
    small, large = (areas < 32**2).sum() / total, (areas >= 96**2).sum() / total
    sides = sorted(
        {(image.size[1], image.size[0]) for image in split.images}, key=lambda size: size[0] * size[1]
    )
    first, last = (f"{width} x {height}" for width, height in (sides[0], sides[-1]))
    problems = sum(problem.kind not in NOTES for problem in split.problems)
    return {
        "images": f"{len(split):,}",
        "without objects": f"{int((counts == 0).sum()):,}",
        "size of the images": first if first == last else f"{first} to {last}",
        "objects": f"{len(areas):,}",
        "per image, mean and most": f"{counts.mean():.1f}, {counts.max()}",
        "small, medium, large": f"{small:.0%}, {max(0.0, 1 - small - large) if len(areas) else 0:.0%}, {large:.0%}",
        "problems in the files": f"{problems:,}",
    }


def _class_counts(split: Split) -> dict[str, int]:
    labels = np.concatenate([image.labels[~image.crowd] for image in split.images])
    counts = np.bincount(labels, minlength=len(split.classes))
    return {name: int(counts[label]) for label, name in enumerate(split.classes.names) if name is not None}


def commands(content: Content) -> list[tuple[str, str]]:
    """(what for, command line) to go on with."""
    model, data = content.model, content.data
    accuracy = content.accuracy
    threshold = f"{0.5 if accuracy is None else accuracy.threshold:.2f}"
    found = [
        ("Find objects in your pictures", _line("predict", model, "PICTURES", "--output", "out", "--threshold", threshold)),
        ("See where it looked, in a page", _line("explain", model, "PICTURE.jpg", "--output", "out.html", "--threshold", threshold)),
    ]  # fmt: skip
    if accuracy is not None:
        split = accuracy.split.name
        found += [
            ("Judge and draw every missed object", _line("explain", model, "--missed", data, "--split", split, "--threshold", threshold, "--output", "missed")),
            ("Measure again, or on another split", _line("evaluate", model, data, "--split", split)),
            ("This report for another split", _line("report", model, data, "--split", "test")),
        ]  # fmt: skip
    if content.history is not None:
        epochs = max(1, content.history.config.train.epochs)
        longer = _line(
            "train",
            data,
            "--init-from",
            model,
            "--output",
            f"{model.rstrip('/')}_longer",
            "--train.epochs",
            str(epochs),
        )
        found.append(("Train on from these weights", longer))
    return found


def _next(content: Content) -> _Section:
    blocks = "".join(f"<h3>{escape(what)}</h3><pre>{escape(line)}</pre>" for what, line in commands(content))
    return _Section("next", "What next", f"<h2>What next</h2>{blocks}")


def _footer(content: Content) -> str:
    return (
        f"Made by deformable_detr {escape(str(content.made['versions'].get('deformable-detr', '')))} on "
        f"{escape(content.made['time'])} for {escape(content.model)}. This file is whole: it loads nothing and can be "
        "sent as it is. How to read each part: docs/report.md."
    )


# ---------------------------------------------------------------- pieces


def _figure(title: str, chart: str, note: str = "") -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(title)}</h3>{chart}{caption}</figure>"


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>'


def _value(value: Any) -> str:
    """As YAML writes it."""
    if isinstance(value, list):
        return escape(", ".join(map(str, value)) or "none")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else escape(str(value))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _lower(text: str) -> str:
    return text if text.startswith("AP") else text[0].lower() + text[1:]


def _line(*words: str) -> str:
    return shlex.join(["deformable-detr", *words])


def _command(*words: str) -> str:
    return escape(_line(*words))
