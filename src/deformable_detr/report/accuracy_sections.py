"""The sections on a split: classes, curves, threshold, confusion, calibration, misses, false positives."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ..evaluation.average_precision import CLASS_METRICS
from ..evaluation.matching import LOOSE
from ..explain.drawing import BOX_COLOUR, OBJECT_COLOUR
from ..explain.missed import MEANINGS as STAGE_MEANINGS
from .accuracy import MEANINGS as MISTAKE_MEANINGS
from .accuracy import SIZE_EDGES, Accuracy, ClassRow
from .content import Content, Section
from .findings import (
    calibration_title,
    classes_title,
    confusion_title,
    curve_title,
    percent,
    threshold_title,
)
from .html_parts import Cell, cards, colour_key, figure, table, tag
from .measures import LEAST_SCORE, NUM_BINS, RECALLS, THRESHOLDS
from .pictures import Misses
from .svg import (
    Line,
    Mark,
    axis_for,
    bar_chart,
    line_chart,
    sparkline,
    unit_axis,
)

MOST_COLOURED = 6  # classes with a line of their own
MOST_IN_MATRIX = 20
SIZES = (("small", "s", 0, 32), ("medium", "m", 32, 96), ("large", "l", 96, 0))  # COCO's
LISTED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def accuracy_sections(content: Content, accuracy: Accuracy) -> list[Section]:
    """None where the split has no object to find."""
    if not accuracy.num_objects:
        return []
    sections = [
        _classes(accuracy),
        _curves(accuracy),
        _thresholds(accuracy),
        _confusion(accuracy),
        _calibration(accuracy),
    ]
    if content.misses is not None:
        sections.append(_misses(content.misses))
    return [*sections, _false_positives(content, accuracy)]


def _classes(accuracy: Accuracy) -> Section:
    curve = accuracy.thresholds
    foot = [
        "all",
        str(accuracy.num_objects),
        str(len(np.unique(accuracy.objects.images[~accuracy.objects.crowd]))),
        *(percent(accuracy.summary[name]) for name in CLASS_METRICS),
        "",
        "-" if curve.best is None else f"{accuracy.threshold:.2f}",
        percent(float(curve.f1.max())),
    ]
    listed = table(
        ["class", "objects", "images", *CLASS_METRICS, "PR curve", "best threshold", "F1 there"],
        [_class_cells(row) for row in accuracy.classes],
        label="AP of each class",
        foot=foot,
        kind="numbers sortable",
    )
    note = (
        "In percent; - where the split has no such object. APs, APm, APl: small, medium and large objects, "
        "by area in pixels of the original picture (under 32², under 96², the rest). AR100: share of the "
        "objects found by 100 detections of a picture, mean over IoU 0.5 to 0.95. PR curve: precision "
        "against recall at IoU 0.5, dashed at 0.75. A click on a column's head sorts."
    )
    title = f"<h2>{escape(classes_title(accuracy))}</h2>"
    body = f'{title}<p class="dim">{note}</p>{listed}<h3>By size</h3>{_sizes(accuracy)}'
    return Section("classes", "Classes", body)


def _sizes(accuracy: Accuracy) -> str:
    areas = accuracy.objects.areas[~accuracy.objects.crowd]
    summary = accuracy.summary
    rows = []
    for (name, letter, least, most), count in zip(SIZES, np.histogram(areas, SIZE_EDGES)[0], strict=True):
        bounds = (
            f"{least}² to {most}²" if least and most else f"under {most}²" if most else f"{least}² or more"
        )
        share = percent(count / max(len(areas), 1))
        rows.append(
            [
                name,
                bounds,
                f"{count:,}",
                share,
                percent(summary[f"AP{letter}"]),
                percent(summary[f"AR{letter}"]),
            ]
        )
    heads = ["size", "area in pixels", "objects", "% of all", "AP", "AR100"]
    return table(heads, rows, label="AP of each size")


def _class_cells(row: ClassRow) -> list[str | Cell]:
    note = "" if row.known else f" {tag('not in the model')}"
    head = Cell(escape(row.name) + note, f'title="{escape(row.name)}"')
    cells: list[str | Cell] = [head, str(row.objects), str(row.images)]
    if row.ap is None:
        return cells + ["-"] * (len(CLASS_METRICS) + 3)
    cells.append(Cell(percent(row.ap["AP"]), f'style="--share:{max(row.ap["AP"], 0.0):.3f}"'))
    cells += [percent(row.ap[name]) for name in CLASS_METRICS[1:]]
    area = row.ap["AP50"]
    title = f"Precision against recall of {row.name}: area {percent(area)} at IoU 0.5"
    cells.append(Cell(sparkline(row.curve, row.tight_curve, title), f'data-value="{area:.4f}"'))
    best = row.thresholds.best
    cells.append("-" if best is None else f"{THRESHOLDS[best]:.2f}")
    return [*cells, percent(float(row.thresholds.f1.max()))]


def _curves(accuracy: Accuracy) -> Section:
    loose, tight = accuracy.mean_curves
    areas = percent(float(loose.mean())), percent(float(tight.mean()))
    x, y = unit_axis("recall: share of the objects that are found"), unit_axis("precision")
    overall = line_chart(
        [
            Line(f"IoU 0.5, area {areas[0]} (AP50)", RECALLS, loose, 0),
            Line(f"IoU 0.75, area {areas[1]} (AP75)", RECALLS, tight, 1, dashed=True),
        ],
        x,
        y,
        title=f"Precision against recall, mean over classes: area {areas[0]} at IoU 0.5, {areas[1]} at 0.75",
    )
    grid = figure("Over all classes", overall, "Precision: share of the detections that are right.")
    if len(accuracy.wanted) > 1:
        grid += _curves_by_class(accuracy)
    body = f'<h2>{escape(curve_title(accuracy))}</h2><div class="grid">{grid}</div>'
    return Section("curves", "Precision and recall", body)


def _curves_by_class(accuracy: Accuracy) -> str:
    rows = sorted(accuracy.wanted, key=lambda row: -row.ap50)
    few = len(rows) <= MOST_COLOURED
    coloured = rows if few else [*rows[: MOST_COLOURED // 2], *rows[-(MOST_COLOURED // 2) :]]
    faint = [] if few else rows[MOST_COLOURED // 2 : -(MOST_COLOURED // 2)]
    # As in the chart of training: a class has the colour of its place.
    colours = {row.name: colour for colour, row in enumerate(accuracy.wanted if few else coloured)}
    named = [
        Line(f"{row.name} ({percent(row.ap50)})", RECALLS, row.curve, colours[row.name]) for row in coloured
    ]
    others = [Line(row.name, RECALLS, row.curve, None) for row in faint]
    if few:
        others += [
            Line(f"{row.name}, IoU 0.75", RECALLS, row.tight_curve, colours[row.name], dashed=True)
            for row in coloured
        ]
    names = "Each class" if few else "The three best and the three worst classes"
    chart = line_chart(
        [*others, *named],
        unit_axis("recall"),
        unit_axis("precision"),
        title=f"Precision against recall. {names}: {', '.join(line.name for line in named)}",
        named=named,
    )
    how = "Dashed: at IoU 0.75." if few else "The others are faint; the table above has all."
    return figure(
        names,
        chart,
        f"At IoU 0.5, in brackets the area, AP50. {how} Where a curve ends, the rest is not found.",
    )


def _thresholds(accuracy: Accuracy) -> Section:
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
    indices = {round(threshold * 100) - 1 for threshold in LISTED_THRESHOLDS}
    if curve.best is not None:
        indices.add(curve.best)
    rows: list[list[str | Cell]] = []
    for index in sorted(indices):
        note = f" {tag('best F1')}" if index == curve.best else ""
        shares = (percent(values[index]) for values in (curve.precision, curve.recall, curve.f1))
        rows.append([Cell(f"{THRESHOLDS[index]:.2f}{note}"), *shares, f"{curve.kept[index]:,}"])
    listed = table(
        ["threshold", "precision", "recall", "F1", "detections"],
        rows,
        label="Precision and recall by threshold",
    )
    body = (
        f"<h2>{escape(threshold_title(accuracy))}</h2>"
        "<p>A higher threshold gives fewer false alarms, a lower one fewer misses; F1 weighs both alike. All "
        "classes together (the table of classes has the best threshold of each); right is a detection that "
        f"overlaps a free object of its class with an IoU of at least {LOOSE}. The threshold is chosen on "
        "the split it is measured on, which is a little optimistic.</p>"
        f'<div class="grid">{figure("Precision, recall and F1", chart)}{listed}</div>'
    )
    return Section("threshold", "Threshold", body)


# ---------------------------------------------------------------- confusion, calibration


def _confusion(accuracy: Accuracy) -> Section:
    counts, names, folded = fold(accuracy.confusion, accuracy.split.classes.names)
    rows = [_confusion_cells(counts, names, index) for index in range(len(names) + 1)]
    listed = table(["annotated \\ detected", *names, "missed"], rows, label="Confusion matrix", kind="matrix")
    note = f" The {MOST_IN_MATRIX} classes with the most errors; {folded} others are one." if folded else ""
    body = (
        f"<h2>{escape(confusion_title(accuracy))}</h2>"
        "<p>Rows: what is annotated. Columns: what the detections with a score of at least "
        f"{accuracy.threshold:.2f} say. Each object and each detection counts once: detections first take "
        f"objects of their own class, as COCO's metric does (IoU {LOOSE}); those left over take what is left "
        "of other classes. Last column: objects that nothing found; last row: detections too many, of "
        "background or of an object that is found already. Shades are shares of a row."
        f"{note}</p>{listed}"
    )
    return Section("confusion", "Confusion", body)


def _confusion_cells(counts: np.ndarray, names: Sequence[str], row: int) -> list[str | Cell]:
    C = len(names)
    name = "background" if row == C else names[row]
    total = max(int(counts[row].sum()), 1)
    cells: list[str | Cell] = [Cell(escape(name), 'class="apart"' if row == C else "")]
    for column in range(C + 1):
        if row == column == C:
            return [*cells, Cell("")]
        said = "missed" if column == C else f"called {names[column]}"
        number = int(counts[row, column])
        error = "" if row == column else 'class="error" '
        title = escape(f"{name} {said}: {number} of {total}")
        share = 0.85 * number / total
        cells.append(
            Cell(f"{number:,}" if number else "·", f'{error}style="--share:{share:.3f}" title="{title}"')
        )
    return cells


def fold(counts: np.ndarray, names: Sequence[str | None]) -> tuple[np.ndarray, list[str], int]:
    """A confusion matrix (C + 1, C + 1) of the MOST_IN_MATRIX classes with the most errors, in their order;
    the others are put together. Also their names, and how many the others are."""
    C = len(names)
    used = [label for label, name in enumerate(names) if name is not None]
    shown, rest = used, []
    if len(used) > MOST_IN_MATRIX:
        errors = counts.sum(0)[:C] + counts.sum(1)[:C] - 2 * counts.diagonal()[:C]
        shown = sorted(sorted(used, key=lambda label: -errors[label])[:MOST_IN_MATRIX])
        rest = [label for label in used if label not in shown]
    groups = [[label] for label in shown] + ([rest] if rest else []) + [[C]]
    folded = np.array([[counts[np.ix_(rows, columns)].sum() for columns in groups] for rows in groups])
    return folded, [str(names[label]) for label in shown] + ["other classes"] * bool(rest), len(rest)


def _calibration(accuracy: Accuracy) -> Section:
    found = accuracy.calibration
    title = f"<h2>{escape(calibration_title(accuracy))}</h2>"
    if found is None:
        body = f"{title}<p>No detection has a score of {LEAST_SCORE} or more.</p>"
        return Section("calibration", "Calibration", body)
    edges = np.linspace(0, 1, NUM_BINS + 1)
    filled = [index for index in range(NUM_BINS) if found.counts[index]]
    said = {
        index: f"scores {edges[index]:.1f} to {edges[index + 1]:.1f}: {found.counts[index]:,} detections, "
        f"mean score {found.confidence[index]:.2f}, {percent(found.accuracy[index])}% right"
        for index in filled
    }
    share, amount = (
        [(edges[index], edges[index + 1], float(values[index]), said[index]) for index in filled]
        for values in (found.accuracy, found.counts)
    )
    ideal = Line("as often right as the score says", (0, 1), (0, 1), 2, dashed=True)
    held = Line("right, at the mean score", found.confidence[filled], found.accuracy[filled], 1, dots=True)
    reliability = bar_chart(
        unit_axis("score"),
        unit_axis("share that is right"),
        share,
        [ideal, held],
        title=f"{calibration_title(accuracy)}. {'; '.join(said.values())}",
    )
    total = f"{int(found.counts.sum()):,} detections"
    counts = bar_chart(
        unit_axis("score"), axis_for("detections", found.counts), amount, title=f"{total} by score"
    )
    body = (
        f"{title}<p>Bars below the dashed line: scores promise too much; above it: too little. Right is a "
        f"box that overlaps a free object of its class with an IoU of at least {LOOSE}; detections with a "
        f"score of {LEAST_SCORE} or more are looked at. The expected calibration error, "
        f"{percent(found.error)} percent, is the mean distance from the line over {NUM_BINS} ranges of "
        "scores, weighted by detections.</p>"
        f'<div class="grid">{figure("How often a score is right", reliability)}'
        f"{figure(f'{total} by score', counts)}</div>"
    )
    return Section("calibration", "Calibration", body)


# ---------------------------------------------------------------- pictures


def _misses(misses: Misses) -> Section:
    stage = misses.main_stage
    if stage is None:
        body = f"<h2>No object was missed at the threshold {misses.threshold:.2f}</h2>"
        return Section("misses", "Misses", body)
    share = 100 * misses.stages[stage] / misses.missed
    title = f"{misses.missed} of {misses.objects} objects missed, {share:.0f}% of them {stage.value}"
    everywhere = misses.images == misses.of
    where = "all" if everywhere else f"{misses.images} of"
    evenly = "" if everywhere else ", evenly chosen"
    listed = table(
        ["lost because", "objects", "meaning"],
        [[each.value, str(misses.stages[each]), meaning] for each, meaning in STAGE_MEANINGS.items()],
        label="Why objects were missed",
        left=(2,),
    )
    body = (
        f"<h2>{escape(title)}</h2><p>In {where} {misses.of} images{evenly}, at the threshold "
        f"{misses.threshold:.2f}: the first stage of the model that lost the object. "
        f"<code>deformable-detr explain --missed</code> judges and draws all of them.</p>{listed}"
        '<p class="dim">Some of each kind, the largest first. Left the whole picture, right the query that '
        f"came furthest. {colour_key(OBJECT_COLOUR, True)}the object; {colour_key(BOX_COLOUR)}the query's "
        "box after each decoder layer; dots: where it looked, from blue (little weight) to red.</p>"
        f"{cards(misses.shown)}"
    )
    return Section("misses", "Misses", body)


def _false_positives(content: Content, accuracy: Accuracy) -> Section:
    kinds = content.mistakes
    total = sum(kinds.values())
    kept = int((accuracy.found.scores >= accuracy.threshold).sum())
    above = f"with a score of {accuracy.threshold:.2f} or more"
    if not total:
        nothing = "No detection has" if not kept else f"None of the {kept:,} detections is wrong that have"
        body = f"<h2>{nothing} a score of {accuracy.threshold:.2f} or more</h2>"
        return Section("false-positives", "False positives", body)
    kind = max(kinds, key=lambda each: kinds[each])
    title = f"{total:,} of {kept:,} detections {above} are wrong, most often: {kind.value} ({kinds[kind]:,})"
    listed = table(
        ["mistake", "detections", "meaning"],
        [[each.value, str(kinds.get(each, 0)), text] for each, text in MISTAKE_MEANINGS.items()],
        label="What is wrong with the false positives",
        left=(2,),
    )
    body = (
        f"<h2>{escape(title)}</h2>{listed}"
        '<p class="dim">The ones with the highest scores, some of each kind. '
        f"{colour_key(BOX_COLOUR)}the detection; {colour_key(OBJECT_COLOUR, True)}annotated objects; dots: "
        f"where the model looked for it.</p>{cards(content.false_positives)}"
    )
    return Section("false-positives", "False positives", body)
