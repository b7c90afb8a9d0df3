"""The report's sections on a split: classes, curves, threshold, confusion, calibration and errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ..evaluation.areas import METRIC_LETTERS, size_ranges
from ..evaluation.average_precision import CLASS_METRICS
from ..evaluation.thresholds import THRESHOLDS
from ..explain.missed import MEANINGS as STAGE_MEANINGS
from ..pages import Bar, Cell, Line, Mark, Table, TableRow, axis_for, line_chart, sparkline, unit_axis
from ..words import NOT_AVAILABLE, percent
from .accuracy import MEANINGS as MISTAKE_MEANINGS
from .accuracy import Accuracy, ClassRow, Cut
from .content import Content, Section
from .findings import (
    calibration_title,
    classes_title,
    confusion_title,
    curve_title,
    threshold_note,
    threshold_title,
)
from .measures import MIN_SCORE, NUM_BINS, RECALLS, Calibration
from .pictures import Misses

MAX_COLOURED = 6  # with more classes, only the best and the worst have coloured lines
MAX_IN_MATRIX = 20
LISTED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Figure = tuple[str, Markup, str]  # title, chart, note


def accuracy_sections(content: Content, accuracy: Accuracy) -> list[Section]:
    """Return the sections on a split; the list is empty if the split has no objects."""
    if not accuracy.num_objects:
        return []
    sections = [
        _classes(accuracy),
        _curves(accuracy),
        _thresholds(accuracy),
        _confusion(accuracy),
        _calibration(accuracy.calibration),
    ]
    if content.misses is not None:
        sections.append(_misses(content.misses, accuracy.cut))
    return [*sections, _false_positives(content, accuracy)]


def _classes(accuracy: Accuracy) -> Section:
    curve = accuracy.thresholds
    foot = [
        "all",
        str(accuracy.num_objects),
        str(len(np.unique(accuracy.objects.images[~accuracy.objects.crowd]))),
        *(percent(accuracy.summary[name]) for name in CLASS_METRICS),
        "",
        accuracy.cut.in_words(),
        NOT_AVAILABLE if curve.best_threshold is None else f"{curve.best_threshold:.2f}",
        percent(float(curve.f1.max())),
    ]
    heads = [
        "class",
        "objects",
        "images",
        *CLASS_METRICS,
        "PR curve",
        "threshold",
        "best threshold",
        "F1 there",
    ]
    rows = [_class_cells(row, accuracy.cut) for row in accuracy.classes]
    classes = Table(heads, rows, "AP of each class", foot, "numbers sortable")
    return Section(
        "classes", "Classes", classes_title(accuracy), {"classes": classes, "sizes": _sizes(accuracy)}
    )


def _sizes(accuracy: Accuracy) -> Table:
    summary, ranges = accuracy.summary, size_ranges()
    rows = [
        [
            size,
            ranges[size],
            f"{count:,}",
            percent(count / max(accuracy.num_objects, 1)),
            percent(summary[f"AP{METRIC_LETTERS[size]}"]),
            percent(summary[f"AR{METRIC_LETTERS[size]}"]),
        ]
        for size, count in accuracy.size_counts.items()
    ]
    return Table(["size", "area in pixels", "objects", "% of all", "AP", "AR100"], rows, "AP of each size")


def _class_cells(row: ClassRow, cut: Cut) -> list[str | Cell]:
    head = Cell(row.name, tag="" if row.known else "not in the model", title=row.name)
    cells: list[str | Cell] = [head, str(row.objects), str(row.images)]
    if row.ap is None:
        return cells + [NOT_AVAILABLE] * (len(CLASS_METRICS) + 4)
    cells.append(Cell(percent(row.ap["AP"]), kind="share", share=max(row.ap["AP"], 0.0)))
    cells += [percent(row.ap[name]) for name in CLASS_METRICS[1:]]
    area = row.ap["AP50"]
    title = f"Precision against recall of {row.name}: area {percent(area)} at IoU 0.5"
    cells.append(Cell(sparkline(row.curve, row.tight_curve, title), value=area))
    best = row.thresholds.best_threshold
    cells += [f"{cut.scores[row.label]:.2f}", NOT_AVAILABLE if best is None else f"{best:.2f}"]
    return [*cells, percent(float(row.thresholds.f1.max()))]


def _curves(accuracy: Accuracy) -> Section:
    loose, tight = accuracy.mean_curves
    areas = percent(float(loose.mean())), percent(float(tight.mean()))
    overall = line_chart(
        [
            Line(f"IoU 0.5, area {areas[0]} (AP50)", RECALLS, loose, 0),
            Line(f"IoU 0.75, area {areas[1]} (AP75)", RECALLS, tight, 1, dashed=True),
        ],
        unit_axis("recall: share of the objects that are found"),
        unit_axis("precision"),
        title=f"Precision against recall, mean over classes: area {areas[0]} at IoU 0.5, {areas[1]} at 0.75",
    )
    figures = [("Over all classes", overall, "Precision: share of the detections that are right.")]
    if len(accuracy.classes_to_find) > 1:
        figures.append(_curves_by_class(accuracy))
    return Section("curves", "Precision and recall", curve_title(accuracy), {"figures": figures})


def _curves_by_class(accuracy: Accuracy) -> Figure:
    rows = sorted(accuracy.classes_to_find, key=lambda row: -row.ap50)
    few = len(rows) <= MAX_COLOURED
    coloured = rows if few else [*rows[: MAX_COLOURED // 2], *rows[-(MAX_COLOURED // 2) :]]
    faint = [] if few else rows[MAX_COLOURED // 2 : -(MAX_COLOURED // 2)]
    # The colour of a class depends on its position, as in the chart of training.
    colours = {row.name: colour for colour, row in enumerate(accuracy.classes_to_find if few else coloured)}
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
    note = (
        f"At IoU 0.5; the area (AP50) is in brackets. {how} Objects beyond the end of a curve are not found."
    )
    return names, chart, note


def _thresholds(accuracy: Accuracy) -> Section:
    curve, title = accuracy.thresholds, threshold_title(accuracy)
    best = curve.best_threshold
    chart = line_chart(
        [
            Line("precision", THRESHOLDS, curve.precision, 1),
            Line("recall", THRESHOLDS, curve.recall, 2),
            Line("F1", THRESHOLDS, curve.f1, 0),
        ],
        unit_axis("score threshold"),
        unit_axis("share"),
        title=title,
        marks=[] if best is None else [Mark(best, f"{best:.2f}")],
    )
    indices = {round(threshold * 100) - 1 for threshold in LISTED_THRESHOLDS}
    if curve.best is not None:
        indices.add(curve.best)
    rows: list[TableRow] = [
        [
            Cell(f"{THRESHOLDS[index]:.2f}", tag="best F1" if index == curve.best else ""),
            *(percent(values[index]) for values in (curve.precision, curve.recall, curve.f1)),
            f"{curve.num_detections[index]:,}",
        ]
        for index in sorted(indices)
    ]
    heads = ["threshold", "precision", "recall", "F1", "detections"]
    table = Table(heads, rows, "Precision and recall by threshold")
    parts = {"chart": chart, "table": table, "note": threshold_note(accuracy)}
    return Section("threshold", "Threshold", title, parts)


# ---------------------------------------------------------------- confusion, calibration


def _confusion(accuracy: Accuracy) -> Section:
    counts, names, folded = fold(accuracy.confusion, accuracy.split.classes.names)
    rows = [_confusion_cells(counts, names, index) for index in range(len(names) + 1)]
    heads = ["annotated \\ detected", *names, "missed"]
    table = Table(heads, rows, "Confusion matrix", kind="matrix")
    parts = {"table": table, "shown": MAX_IN_MATRIX, "folded": folded}
    return Section("confusion", "Confusion", confusion_title(accuracy), parts)


def _confusion_cells(counts: np.ndarray, names: Sequence[str], row: int) -> list[str | Cell]:
    C = len(names)
    name = "background" if row == C else names[row]
    total = max(int(counts[row].sum()), 1)
    cells: list[str | Cell] = [name]
    for column in range(C + 1):
        if row == column == C:
            return [*cells, ""]
        verb = "missed" if column == C else f"called {names[column]}"
        number = int(counts[row, column])
        cells.append(
            Cell(
                f"{number:,}" if number else "·",
                kind="" if row == column else "error",
                share=0.85 * number / total,
                title=f"{name} {verb}: {number} of {total}",
            )
        )
    return cells


def fold(counts: np.ndarray, names: Sequence[str | None]) -> tuple[np.ndarray, list[str], int]:
    """Reduce a confusion matrix to the MAX_IN_MATRIX classes with the most errors.

    Args:
        counts: (C + 1, C + 1), as in `Accuracy.confusion`, for C classes.
        names: the names of the C classes; classes without a name are left out.

    Returns:
        A tuple of three. The first is the matrix of the chosen classes in their original order, of all others
        merged into one (if there are any), and of the row and column for no class, which remain the last. The
        second is the list of the names of the matrix's classes. The third is the number of merged classes.
    """
    C = len(names)
    used = [label for label, name in enumerate(names) if name is not None]
    shown, rest = used, []
    if len(used) > MAX_IN_MATRIX:
        errors = counts.sum(0)[:C] + counts.sum(1)[:C] - 2 * counts.diagonal()[:C]
        shown = sorted(sorted(used, key=lambda label: -errors[label])[:MAX_IN_MATRIX])
        rest = [label for label in used if label not in shown]
    groups = [[label] for label in shown] + ([rest] if rest else []) + [[C]]
    folded = np.array([[counts[np.ix_(rows, columns)].sum() for columns in groups] for rows in groups])
    return folded, [str(names[label]) for label in shown] + ["other classes"] * bool(rest), len(rest)


def _calibration(calibration: Calibration | None) -> Section:
    parts = {} if calibration is None else _calibration_parts(calibration)
    parts = {"min_score": MIN_SCORE, "figures": (), **parts}
    return Section("calibration", "Calibration", calibration_title(calibration), parts)


def _calibration_parts(calibration: Calibration) -> dict[str, object]:
    edges = np.linspace(0, 1, NUM_BINS + 1)
    counts, confidence, accuracy = calibration.counts, calibration.confidence, calibration.accuracy
    filled = [index for index in range(NUM_BINS) if counts[index]]
    texts = {
        index: f"scores {edges[index]:.1f} to {edges[index + 1]:.1f}: {counts[index]:,} detections, "
        f"mean score {confidence[index]:.2f}, {percent(accuracy[index])}% right"
        for index in filled
    }

    def bars(values: np.ndarray) -> list[Bar]:
        return [Bar(edges[index], edges[index + 1], float(values[index]), texts[index]) for index in filled]

    ideal = Line("as often right as the score says", (0, 1), (0, 1), 2, dashed=True)
    measured = Line("right, at the mean score", confidence[filled], accuracy[filled], 1, dots=True)
    reliability = line_chart(
        [ideal, measured],
        unit_axis("score"),
        unit_axis("share that is right"),
        title=f"{calibration_title(calibration)}. {'; '.join(texts.values())}",
        bars=bars(accuracy),
    )
    total = f"{int(counts.sum()):,} detections by score"
    y = axis_for("detections", counts)
    histogram = line_chart([], unit_axis("score"), y, title=total, bars=bars(counts))
    return {
        "error": percent(calibration.error),
        "ranges": NUM_BINS,
        "figures": [("How often a score is right", reliability), (total, histogram)],
    }


# ---------------------------------------------------------------- pictures


def _misses(misses: Misses, cut: Cut) -> Section:
    stage = misses.main_stage
    if stage is None:
        title = f"No object was missed at the threshold {cut.in_words()}"
        return Section("misses", "Misses", title)
    share = 100 * misses.stages[stage] / misses.missed
    title = f"{misses.missed} of {misses.objects} objects missed, {share:.0f}% of them {stage.value}"
    rows = [[each.value, str(misses.stages[each]), meaning] for each, meaning in STAGE_MEANINGS.items()]
    table = Table(["lost because", "objects", "meaning"], rows, "Why objects were missed", left=(2,))
    return Section("misses", "Misses", title, {"misses": misses, "table": table})


def _false_positives(content: Content, accuracy: Accuracy) -> Section:
    kinds = content.mistakes
    total = sum(kinds.values())
    num_detections = int(accuracy.cut.mask(accuracy.detections).sum())
    above = f"a score of at least {accuracy.cut.in_words()}"
    if not total:
        title = (
            f"None of the {num_detections:,} detections with {above} is wrong"
            if num_detections
            else f"No detection has {above}"
        )
        return Section("false-positives", "False positives", title)
    kind = max(kinds, key=lambda each: kinds[each])
    title = (
        f"{total:,} of {num_detections:,} detections with {above} are wrong, most often: {kind.value} "
        f"({kinds[kind]:,})"
    )
    rows = [[each.value, str(kinds.get(each, 0)), text] for each, text in MISTAKE_MEANINGS.items()]
    label = "What is wrong with the false positives"
    table = Table(["mistake", "detections", "meaning"], rows, label, left=(2,))
    parts = {"table": table, "shown": content.false_positives}
    return Section("false-positives", "False positives", title, parts)
