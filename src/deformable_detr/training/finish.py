"""The end of a run: the best weights get their thresholds, and the report is written."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from .. import checkpoint as checkpoints
from ..checkpoint import Checkpoint
from ..checkpoint.decision import Rule
from ..data.records import Split
from ..errors import UserError
from ..evaluation import choose_thresholds, collect_detections, decision_lines, match_classes
from ..files import write_text
from ..inference.detector import Detector
from ..report import report_text
from ..run_folder.names import REPORT_PAGE
from ..words import one_line
from .parts import Parts

MAX_TRAINING_IMAGES = 200  # on which thresholds are chosen if there is no other split


def finish(run: Parts) -> Detector:
    """Choose the thresholds of the best weights, write the report, and return a detector with these weights.

    Without an evaluation, the best weights are the last ones. Thresholds are chosen on the split for
    evaluation or, without one, on some of the training images. None are chosen if the run has no updates or
    no detection is correct. `train.report` may turn the report off. All processes detect objects, and the
    first process writes the files. As the run is already finished and saved, an error in the thresholds or in
    the report is printed, not raised.

    Raises:
        UserError: if the best weights cannot be read.
    """
    best = _best_checkpoint(run)
    detector = Detector.of(best, run.processes.device)
    try:
        split = run.val_split or _some_of(run.train_split)
        report = " and the report" if run.config.train.report else ""
        _say(run, f"measuring the best weights on {split.name} for the thresholds{report}")
        rows = collect_detections(detector, split, progress=False)
        if run.last_step > 0:
            detector = _with_thresholds(run, best, split, rows)
        if run.config.train.report:
            _write_report(run, detector, rows if run.val_split is not None else [])
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        _say(
            run,
            "The run is finished and saved, but its thresholds and its report could not be written "
            f"({reason}); try again with `deformable-detr evaluate {run.output} {run.data} --decide best_f1` "
            f"and `deformable-detr report {run.output} {run.data}`.",
            style="red",
        )
    return detector


def _best_checkpoint(run: Parts) -> Checkpoint:
    """Return the best checkpoint of the run folder, or the last one if there was no evaluation.

    Raises:
        UserError: in every process, if the first one cannot read it.
    """
    checkpoint = run.start

    def read() -> dict[str, Any]:
        nonlocal checkpoint
        try:
            checkpoint = checkpoints.load(run.output)
        except Exception as error:
            reason = one_line(
                str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            )
            raise UserError(
                f"the run in {run.output} is finished and saved, but its best weights cannot be read "
                f"({reason}): once they can, the same command with --resume chooses the thresholds and "
                "writes the report."
            ) from error
        return checkpoint.model.state_dict()

    weights = run.processes.from_first(read)
    if not run.processes.is_first:
        checkpoint = replace(checkpoint, model=copy.deepcopy(run.state.model_to_keep))
        checkpoint.model.load_state_dict(weights)
    checkpoint.model.eval()
    return checkpoint


def _some_of(split: Split) -> Split:
    """Return a split with at most MAX_TRAINING_IMAGES evenly spaced images of the training split."""
    step = -(-len(split) // MAX_TRAINING_IMAGES)
    return replace(split, images=split.images[::step])


def _with_thresholds(run: Parts, best: Checkpoint, split: Split, rows: list[dict[str, Any]]) -> Detector:
    """Choose the thresholds of the best weights on a split, save them, and print how reliable they are.

    The rule is the minimum precision `train.precision_at_least`, or the best F1 if that is not set.

    Args:
        run: the parts of the run.
        best: the checkpoint with the best weights.
        split: the images on which the thresholds are chosen.
        rows: the detections on these images, from `collect_detections`.

    Returns:
        The detector with the best weights. It gets no thresholds if no detection is correct.
    """
    device = run.processes.device
    rule: Rule = run.config.train.precision_at_least or "best_f1"
    decision = choose_thresholds(
        split, rows, best.classes, match_classes(best.classes, split.classes, split.source), rule
    )
    if decision is None:
        _say(
            run,
            f"No detection on {split.name} is right, so that no thresholds were chosen: detections count "
            "from a score of 0.5.",
        )
        return Detector.of(best, device)
    if run.processes.is_first:
        checkpoints.save_decision(checkpoints.checkpoint_folder(run.output), decision)
    for line in decision_lines(decision.by_class(best.classes.names)):
        _say(run, line)
    _say(run, "They are saved in the model.")
    if run.val_split is None:
        _say(
            run,
            f"As the data have no split val or test, they come from {len(split)} pictures that the model was "
            "trained on, where its scores are too high: `deformable-detr evaluate MODEL DATA --decide "
            "best_f1` chooses them on other pictures.",
        )
    else:
        _say(
            run,
            f"{split.name} is also the split that is measured, which flatters precision and recall at these "
            "thresholds a little.",
        )
    return Detector.of(replace(best, decision=decision), device)


def _write_report(run: Parts, detector: Detector, rows: list[dict[str, Any]]) -> None:
    if not run.processes.is_first:
        return
    path = run.output / REPORT_PAGE
    text = report_text(
        detector, rows, run.val_split, run.train_split, model=str(run.output), data=str(run.data)
    )
    write_text(path, text)
    _say(run, f"report: {path}")


def _say(run: Parts, sentence: str, style: str | None = None) -> None:
    run.console.print(sentence, style=style, markup=False, highlight=False, soft_wrap=True)
