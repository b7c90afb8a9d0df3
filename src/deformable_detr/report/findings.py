"""Conclusions from the numbers, written as sentences for the report's chart titles and its first screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.records import Split
from ..evaluation.areas import METRIC_LETTERS
from ..explain.missed import MEANINGS as STAGE_MEANINGS
from ..explain.missed import Stage
from ..run_folder.reading import History
from ..words import count, exists, percent
from .accuracy import MEANINGS as MISTAKE_MEANINGS
from .accuracy import Accuracy, ClassRow, Mistake
from .measures import Calibration
from .pictures import Misses

CLEAR = 0.05  # a difference in AP; smaller ones are not worth a sentence
MATTERS = 0.05  # a share of the objects; a size with fewer does not limit the result
FLAT = 0.005  # a gain in AP; a smaller one counts as no progress

STAGE_HELP = {
    Stage.NEVER_ATTENDED: "larger pictures (--data.image_size), more queries or longer training help",
    Stage.BADLY_PLACED: "longer training, box refinement or a check of how such objects are annotated help",
    Stage.WRONG_CLASS: "more examples of the confused classes help, or a check of their labels",
    Stage.UNDER_THRESHOLD: "a lower threshold or longer training find more of them",
    Stage.LOST: "they stand close together: more queries help, or a check for duplicate annotations",
}

MISTAKE_HELP = {
    Mistake.DUPLICATE: "longer training, or suppression (model.nms_iou), leaves each object to one query",
    Mistake.WRONG_CLASS: "more examples of the confused classes help, or a check of their labels",
    Mistake.BADLY_PLACED: "longer training and box refinement help",
    Mistake.BACKGROUND: "the pictures below show which",
}


@dataclass(frozen=True)
class Limit:
    """A factor that limits the result: `short` names it, and `text` explains it and may suggest a remedy."""

    short: str
    text: str


def headline(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "Trained, but not measured: the data have no split to evaluate on."
    curve = accuracy.thresholds
    if not accuracy.num_objects:
        return f"The split {accuracy.split.name} has no annotated objects, so nothing can be measured."
    if curve.best is None:
        return "The model does not find any object yet: no detection is right."
    recall, precision = accuracy.recall, accuracy.precision
    if not exists(precision):
        return f"No detection reaches the threshold {accuracy.cut.in_words()}."
    return (
        f"At the threshold {accuracy.cut.in_words()}, the model finds {out_of(recall)} objects, and "
        f"{out_of(precision)} detections are right."
    )


def limits(accuracy: Accuracy, misses: Misses | None, mistakes: Mapping[Mistake, int]) -> list[Limit]:
    """List the factors that limit the result; there are none if nothing stands out or no detection is right.

    The main reason for misses comes first (unless `misses` is None), then the weakest class, the weakest
    size, the most frequent kind of false positive, and loose boxes.
    """
    if accuracy.thresholds.best is None:
        return []
    result: list[Limit] = []
    if misses is not None and (stage := misses.main_stage) is not None:
        lost = misses.stages[stage]
        sample = (
            ""
            if misses.images == misses.split_images
            else f" (in {misses.images} of {misses.split_images} images)"
        )
        result.append(
            Limit(
                f"Most misses: {stage.value}",
                f"{lost} of {misses.missed} missed objects{sample}: {STAGE_MEANINGS[stage]}; "
                f"{STAGE_HELP[stage]}.",
            )
        )
    weakest = weakest_class(accuracy)
    if weakest is not None:
        others = [
            f"{row.name} {percent(row.mean_ap)}" for row in accuracy.classes_to_find if row is not weakest
        ]
        versus = ", ".join(others) if len(others) <= 3 else f"all {percent(accuracy.summary['AP'])}"
        result.append(
            Limit(
                f"Weakest class: {weakest.name}",
                f"AP {percent(weakest.mean_ap)} ({versus}), {weakest.objects} objects here.",
            )
        )
    size = weakest_size(accuracy.summary, accuracy.size_counts)
    if size is not None:
        result.append(size)
    total = sum(mistakes.values())
    precision = accuracy.precision
    if total and precision < 1 - CLEAR:
        kind = max(mistakes, key=lambda mistake: mistakes[mistake])
        result.append(
            Limit(
                f"Most false positives: {kind.value}",
                f"{mistakes[kind]} of {total}: {MISTAKE_MEANINGS[kind]}; {MISTAKE_HELP[kind]}.",
            )
        )
    loose, tight = accuracy.summary["AP50"], accuracy.summary["AP75"]
    if loose > 0.2 and tight < 0.6 * loose:
        result.append(
            Limit(
                "Boxes are loose",
                f"AP is {percent(loose)} at an IoU of 0.5, but {percent(tight)} at 0.75: "
                "longer training at a falling learning rate and box refinement tighten boxes.",
            )
        )
    return result


def weakest_class(accuracy: Accuracy) -> ClassRow | None:
    """Return the class with the lowest AP.

    Return None if fewer than two classes have objects, or if the lowest AP is not clearly below the mean.
    """
    if len(accuracy.classes_to_find) < 2:
        return None
    weakest = min(accuracy.classes_to_find, key=lambda row: row.mean_ap)
    return weakest if weakest.mean_ap < accuracy.summary["AP"] - CLEAR else None


def weakest_size(summary: Mapping[str, float], counts: Mapping[str, int]) -> Limit | None:
    """Return a limit that names the size with the lowest AP, among the sizes with enough objects to matter.

    Args:
        summary: COCO's numbers, by name.
        counts: the number of objects of each size: small, medium and large.

    Returns:
        The limit, or None if fewer than two sizes matter or none of them is clearly below the overall AP.
    """
    aps = {
        size: summary[f"AP{letter}"]
        for size, letter in METRIC_LETTERS.items()
        if counts[size] >= MATTERS * sum(counts.values()) and exists(summary[f"AP{letter}"])
    }
    weakest = min(aps, key=lambda name: aps[name], default=None)
    if weakest is None or len(aps) < 2 or aps[weakest] > summary["AP"] - CLEAR:
        return None
    others = ", ".join(f"{name} {percent(value)}" for name, value in aps.items() if name != weakest)
    helps = " Larger pictures (--data.image_size) or more feature levels help." if weakest == "small" else ""
    return Limit(
        f"Weakest size: {weakest}", f"AP {percent(aps[weakest])} of {weakest} objects ({others}).{helps}"
    )


# ---------------------------------------------------------------- titles


def training_title(history: History) -> str:
    evaluations = history.evaluations
    if not evaluations:
        return "Not evaluated during training"
    best = history.best
    assert best is not None
    if history.unfinished:
        return f"Not finished: AP {percent(best['AP'])} in epoch {best['epoch'] + 1}, the best so far"
    if len(evaluations) == 1:
        return f"AP {percent(best['AP'])} after epoch {best['epoch'] + 1}, the only one evaluated"
    last = evaluations[-1]
    at = f"AP {percent(best['AP'])} in epoch {best['epoch'] + 1}"
    if best["step"] == last["step"]:
        recent = evaluations[max(0, len(evaluations) - 1 - max(1, len(evaluations) // 5))]
        if best["AP"] - recent["AP"] > FLAT:
            return f"Still improving at the end: {at}, the last one; longer training may help"
        return f"Levelled off at the end: {at}, the last one"
    epochs_after = last["epoch"] - best["epoch"]
    if best["AP"] - last["AP"] > CLEAR:
        return f"Best {at}, then it got worse ({percent(last['AP'])} at the end): the best weights were kept"
    return f"Best {at}; {count(epochs_after, 'more epoch')} brought no gain"


def training_limit(history: History) -> Limit | None:
    """Return a limit if training is unfinished or was still improving at the end, otherwise None."""
    if history.unfinished:
        done, planned = history.updates[-1]["epoch"] + 1, history.config.train.epochs
        return Limit("Training is not finished", f"{done} of {planned} epochs: continue with --resume.")
    short, colon, text = training_title(history).partition(": ")
    return Limit(short, f"{text}.") if colon and short.startswith("Still improving") else None


def loss_title(history: History) -> str:
    losses = [row["loss"] for row in history.updates]
    if len(losses) < 2:
        return "Loss"
    first, last = losses[0], float(np.mean(losses[-max(1, len(losses) // 20) :]))
    if last < 0.98 * first:
        return f"The loss fell from {first:.3g} to {last:.3g}"
    return f"The loss did not fall: {first:.3g} at first, {last:.3g} at the end"


def rate_title(history: History) -> str:
    rates = [row["learning_rate"].get("base") for row in history.updates if row.get("learning_rate")]
    known = [rate for rate in rates if rate is not None]
    if not known:
        return "Learning rates"
    if known[-1] < 0.2 * max(known):
        return f"The learning rate peaked at {max(known):.1e} and fell to {known[-1]:.1e}"
    if max(known) - min(known) < 1e-12:
        return f"The learning rate stayed at {max(known):.1e}"
    if known[-1] > 0.9 * max(known):
        return f"The learning rate rose to {max(known):.1e} and has hardly fallen yet"
    return f"The learning rate peaked at {max(known):.1e} and ended at {known[-1]:.1e}"


def classes_title(accuracy: Accuracy) -> str:
    mean = percent(accuracy.summary["AP"])
    if len(accuracy.classes_to_find) == 1:
        return f"AP {mean}"
    best = max(accuracy.classes_to_find, key=lambda row: row.mean_ap)
    return f"AP {mean}; the best class is {best.name} with {percent(best.mean_ap)}"


def curve_title(accuracy: Accuracy) -> str:
    rows = accuracy.classes_to_find
    if len(rows) == 1:
        loose, tight = (percent(accuracy.summary[name]) for name in ("AP50", "AP75"))
        return f"The area under the curve is {loose} at IoU 0.5 (AP50) and {tight} at 0.75"
    best, worst = max(rows, key=lambda row: row.ap50), min(rows, key=lambda row: row.ap50)
    mean = percent(accuracy.summary["AP50"])
    return f"AP50 {mean}, from {percent(best.ap50)} ({best.name}) to {percent(worst.ap50)} ({worst.name})"


def threshold_title(accuracy: Accuracy) -> str:
    curve = accuracy.thresholds
    if curve.best is None:
        return "No threshold is better than another: no detection is right"
    cut = accuracy.cut
    lead = "Use the threshold" if cut.decision is None else "The model's own threshold is"
    precision, recall = accuracy.precision, accuracy.recall
    f1 = 2 * precision * recall / (precision + recall) if recall else 0.0
    return (
        f"{lead} {cut.in_words()} ({cut.reason}): precision {percent(precision)}, recall {percent(recall)}, "
        f"F1 {percent(f1)}"
    )


def threshold_note(accuracy: Accuracy) -> str:
    """Return a note that states on which split the report's thresholds were chosen."""
    decision, split = accuracy.cut.decision, accuracy.split.name
    if decision is None:
        return (
            "The model has no thresholds of its own. This one is chosen and measured on the same split, so "
            "the numbers are slightly optimistic."
        )
    if decision.split == split:
        return "The model's thresholds were chosen on this split, so the numbers are slightly optimistic."
    return f"The model's thresholds were chosen on {decision.split}, not on this split."


def calibration_title(calibration: Calibration | None) -> str:
    if calibration is None:
        return "All scores are too low for a calibration"
    size = f"calibration error {percent(calibration.error)}"
    if calibration.error < 0.03:
        return f"Scores can be read as probabilities ({size})"
    direction = "too high" if calibration.bias > 0 else "too low"
    if abs(calibration.bias) < 0.5 * calibration.error:
        return f"Scores are too high in some ranges and too low in others ({size})"
    return f"Scores are {direction}, by {percent(abs(calibration.bias))} points on average ({size})"


def confusion_title(accuracy: Accuracy) -> str:
    table = accuracy.confusion
    C = len(table) - 1
    mixed = table[:C, :C].copy()
    np.fill_diagonal(mixed, 0)
    missed, background = int(table[:C, C].sum()), int(table[C, :C].sum())
    if not mixed.any():
        return f"No class is taken for another; {missed:,} objects missed, {background:,} detections too many"
    truth, predicted = np.unravel_index(mixed.argmax(), mixed.shape)
    names = accuracy.split.classes
    return (
        f"Most often confused: {names.name(int(truth))} is called {names.name(int(predicted))} "
        f"({int(mixed.max())} of {int(mixed.sum())} confusions); {missed} objects missed"
    )


def data_title(splits: Sequence[Split], counts: Mapping[str, int]) -> str:
    """Return a title that describes `splits`, at least one.

    `counts` contains the first split's number of objects of each class, by the class's name.
    """
    title = " and ".join(f"{len(split):,} {split.name} images" for split in splits)
    if len(counts) < 2:
        return title
    rarest = min(counts, key=lambda name: counts[name])
    return f"{title}; the rarest class of {splits[0].name} is {rarest} ({counts[rarest]:,} objects)"


# ---------------------------------------------------------------- words


def out_of(share: float) -> str:
    """Return a share, which is in [0, 1], in words such as '84 of 100'."""
    return f"{100 * share:.0f} of 100"
