"""Another class loss: one focal exponent for objects and another one for the background, the asymmetric loss
of Ridnik et al. (2021).

This is the whole command line, with one more classification:

    python examples/another_class_loss.py train DATA --recipe deformable_detr_lite \
        --model.classification asymmetric --train.loss.classification_loss focal \
        --model.queries reference_points --output runs/asymmetric
    python examples/another_class_loss.py evaluate runs/asymmetric DATA

Scores, matching cost and selection stay those of the focal loss. Two-stage models insist on `sigmoid_focal`.
Letters: B batch, Q queries.
"""

from __future__ import annotations

import sys

import torch.nn.functional as F
from torch import Tensor

from deformable_detr.classification import SigmoidFocal, register_classification
from deformable_detr.cli.main import main
from deformable_detr.structures import BatchCount

OBJECT_EXPONENT, BACKGROUND_EXPONENT = 0.0, 4.0


class Asymmetric(SigmoidFocal):
    """Sigmoids whose easy background terms fade faster than their easy objects."""

    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        targets = self.target(logits, assigned)  # (B, Q, classes)
        error = (logits.sigmoid() - targets).abs()
        exponent = OBJECT_EXPONENT * targets + BACKGROUND_EXPONENT * (1 - targets)
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (error**exponent * terms).sum() / count.objects


register_classification("asymmetric", lambda model, loss: Asymmetric(model.num_classes))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
