"""The set loss: every layer's predictions are matched to the objects and pulled towards them
(DETR, section 3.1; specification §5.2).

Letters: B batch, Q queries, N matched pairs of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_iou
from ..classification import NO_OBJECT, ClassificationScheme
from ..config import LossConfig
from ..structures import BatchCount, DetectorOutput, Predictions, Target
from .matcher import HungarianMatcher, Match


@dataclass(frozen=True)
class Losses:
    """`total`: the weighted sum to differentiate. `terms`: each unweighted term by name, detached:
    `class`, `box`, `giou` of the last layer, with suffix `_0`, `_1`, … of the earlier ones and
    `_proposals` of the first stage."""

    total: Tensor
    terms: dict[str, Tensor]


class SetCriterion:
    """Sees a `DetectorOutput`, never a model."""

    def __init__(self, classification: ClassificationScheme, config: LossConfig):
        self.classification = classification
        self.config = config
        self.matcher = HungarianMatcher(classification, config.class_cost, config.box_cost, config.giou_cost)

    def __call__(
        self, output: DetectorOutput, targets: Sequence[Target], count: BatchCount | None = None
    ) -> Losses:
        """Losses of one (micro-)batch.

        Args:
            output: predictions of all layers.
            targets: one per image; an image may have no objects.
            count: what the whole update holds; None where this batch is the whole update.

        Raises:
            NonFiniteError: names the image.
        """
        last = output.predictions[-1]
        count = count or BatchCount.of(targets, last.logits.shape[1]).share_of(1)
        stages = [("", last, targets)]
        if self.config.auxiliary:
            stages += [(f"_{i}", layer, targets) for i, layer in enumerate(output.predictions[:-1])]
        if output.proposals is not None:
            # The first stage only tells objects from background, and class 0 is its "object".
            objects = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
            stages.append(("_proposals", output.proposals, objects))

        total = last.logits.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        for suffix, predictions, stage_targets in stages:
            class_loss, box_loss, giou_loss = self._stage(predictions, stage_targets, count)
            total = (
                total
                + self.config.class_weight * class_loss
                + self.config.box_weight * box_loss
                + self.config.giou_weight * giou_loss
            )
            for name, value in (("class", class_loss), ("box", box_loss), ("giou", giou_loss)):
                terms[name + suffix] = value.detach()
        return Losses(total, terms)

    def _stage(
        self, predictions: Predictions, targets: Sequence[Target], count: BatchCount
    ) -> tuple[Tensor, Tensor, Tensor]:
        matches = self.matcher(predictions, targets)
        # Mixed precision ends here: sums over thousands of terms need float32.
        logits, boxes = predictions.logits.float(), predictions.boxes_cxcywh.float()
        assigned = _assigned_labels(logits, matches, targets)
        class_loss = self.classification.loss(logits, assigned, count)
        found = torch.cat([image[match.queries] for image, match in zip(boxes, matches, strict=True)])
        wanted = torch.cat(
            [target.boxes_cxcywh[match.objects] for target, match in zip(targets, matches, strict=True)]
        ).to(found)
        box_loss = F.l1_loss(found, wanted, reduction="sum") / count.objects
        overlap = generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
        giou_loss = (1 - overlap).sum() / count.objects
        return class_loss, box_loss, giou_loss


def _assigned_labels(logits: Tensor, matches: Sequence[Match], targets: Sequence[Target]) -> Tensor:
    """(B, Q): the class that each query shall say, or NO_OBJECT."""
    assigned = torch.full(logits.shape[:2], NO_OBJECT, dtype=torch.int64, device=logits.device)
    for row, match, target in zip(assigned, matches, targets, strict=True):
        row[match.queries] = target.labels[match.objects]
    return assigned
