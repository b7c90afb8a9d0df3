"""The set loss (DETR, section 3.1; specification §5.2).

The predictions of every layer are matched to the objects, and the loss measures how far each prediction
differs from its object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..boxes import cxcywh_to_xyxy, generalized_iou, iou
from ..classification import NO_OBJECT, ClassificationScheme
from ..config import LossConfig
from ..structures import BatchCount, DetectorOutput, Target
from .assigners import Repeated
from .assignment import Assigner, Match
from .matcher import HungarianMatcher
from .stages import Stage, objects_only, stages_of


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        total: the weighted sum, which is differentiated.
        terms: the unweighted terms by name, detached. They are `class`, `box` and `giou` for the last layer.
            These names have the suffixes `_0`, `_1`, … for the earlier layers and `_proposals` for the first
            stage. The suffixes of a training route begin with an underscore and the route's name, as in
            `class_denoising_0`.
    """

    total: Tensor
    terms: dict[str, Tensor]


class SetCriterion:
    """The set loss of a `DetectorOutput`; it does not depend on the model."""

    def __init__(self, classification: ClassificationScheme, config: LossConfig):
        self.classification = classification
        self.config = config
        self.matcher = HungarianMatcher(classification, config.class_cost, config.box_cost, config.giou_cost)

    def __call__(
        self,
        output: DetectorOutput,
        targets: Sequence[Target],
        count: BatchCount | None = None,
        further: Sequence[Stage] = (),
    ) -> Losses:
        """Compute the losses of one (micro-)batch.

        Args:
            output: the predictions of all layers.
            targets: one target per image; an image may have no objects.
            count: this process's share of the counts over the whole update; None if this batch is the whole
                update.
            further: the stages of training routes, whose predictions are not in the model's output.

        Returns:
            The weighted total, a float32 scalar with a gradient, and the unweighted terms by name.

        Raises:
            NonFiniteError: if queries cannot be compared with the objects of an image, because predictions or
                target boxes are not finite; the message names the image.
        """
        last = output.predictions[-1]
        count = count or BatchCount.from_targets(targets, last.logits.shape[1]).share_of(1)
        total = last.logits.new_zeros((), dtype=torch.float32)
        terms: dict[str, Tensor] = {}
        for stage, match in _matched([*self.stages(output, targets), *further]):
            class_loss, box_loss, giou_loss = self._stage(stage, match, count)
            total = (
                total
                + stage.weight * self.config.class_weight * class_loss
                + stage.weight * self.config.box_weight * box_loss
                + stage.weight * self.config.giou_weight * giou_loss
            )
            for name, value in (("class", class_loss), ("box", box_loss), ("giou", giou_loss)):
                terms[name + stage.suffix] = value.detach()
        return Losses(total, terms)

    def stages(self, output: DetectorOutput, targets: Sequence[Target]) -> list[Stage]:
        """Return the stages of the decoder (see `stages_of`), then that of the proposals if there are any."""
        repeats = self.config.object_repeats
        assigner = self.matcher if repeats == 1 else Repeated(self.matcher, repeats)
        stages = stages_of(
            output.predictions, targets, assigner, auxiliary=self.config.auxiliary, repeats=repeats
        )
        if output.proposals is not None:
            stages.append(
                Stage("_proposals", output.proposals, objects_only(targets), assigner, repeats=repeats)
            )
        return stages

    def _stage(self, stage: Stage, match: Match, count: BatchCount) -> tuple[Tensor, Tensor, Tensor]:
        # Mixed precision ends here: sums over thousands of terms need float32.
        logits, boxes = stage.predictions.logits.float(), stage.predictions.boxes_cxcywh.float()
        targets, count = stage.targets, replace(count, objects=count.objects * stage.repeats)
        labels = torch.cat([target.labels for target in targets])
        predicted = boxes.flatten(0, 1).index_select(0, match.queries)
        target_boxes = torch.cat([target.boxes_cxcywh for target in targets])[match.objects].to(predicted)
        corners, target_corners = cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(target_boxes)

        assigned = torch.full((logits.shape[0] * logits.shape[1],), NO_OBJECT, device=logits.device)
        assigned = assigned.scatter(0, match.queries, labels[match.objects]).view(logits.shape[:2])
        quality = boxes.new_zeros(assigned.numel())
        quality = quality.scatter(0, match.queries, iou(corners.detach(), target_corners)).view_as(assigned)
        class_loss = self.classification.loss(logits, assigned, quality, count)
        box_loss = F.l1_loss(predicted, target_boxes, reduction="sum") / count.objects
        giou_loss = (1 - generalized_iou(corners, target_corners)).sum() / count.objects
        return class_loss, box_loss, giou_loss


def _matched(stages: Sequence[Stage]) -> list[tuple[Stage, Match]]:
    """Return each stage with its match; stages with the same assigner are assigned together."""
    matches: dict[int, Match] = {}
    assigners: dict[Assigner, None] = dict.fromkeys(stage.assigner for stage in stages)
    for assigner in assigners:
        own = [index for index, stage in enumerate(stages) if stage.assigner is assigner]
        found = assigner([(stages[index].predictions, stages[index].targets) for index in own])
        matches.update(zip(own, found, strict=True))
    return [(stage, matches[index]) for index, stage in enumerate(stages)]
