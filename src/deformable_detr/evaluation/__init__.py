"""Evaluation: a model's average precision on a split, by COCO's rules or Pascal VOC's, and its thresholds."""

from .run import classes_not_in_model, collect_detections, evaluate, ground_truth_of, match_classes
from .terminal import decision_lines, print_metrics
from .thresholds import choose_thresholds

__all__ = [
    "choose_thresholds",
    "classes_not_in_model",
    "collect_detections",
    "decision_lines",
    "evaluate",
    "ground_truth_of",
    "match_classes",
    "print_metrics",
]
