"""Evaluation: a model's average precision on a split, by COCO's rules or Pascal VOC's."""

from .run import collect_detections, evaluate, ground_truth_of, match_classes, print_metrics

__all__ = ["collect_detections", "evaluate", "ground_truth_of", "match_classes", "print_metrics"]
