"""The output layers: a class head and a box head (paper, appendix A.3; specification §4.2).

All variants compute box = sigmoid(delta + logit(reference)). In DETR, the reference is the constant 0.5,
whose logit is 0. Letters: B batch, Q queries, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..boxes import coordinate_dtype, inverse_sigmoid
from ..structures import Predictions


class PredictionHead(nn.Module):
    """A class head and a box head.

    The module maps hidden states (B, Q, C) and reference logits (B, Q, 4) to `Predictions`, for B images, Q
    queries and C channels.
    """

    def __init__(self, dim: int, num_logits: int):
        super().__init__()
        self.class_head = nn.Linear(dim, num_logits)
        self.box_head = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4)
        )

    def start_at_reference(self, size_bias: float) -> None:
        """Initialise the box head as in Deformable DETR: centres start at their references.

        Sizes start at those of the references, with `size_bias` added to their logits.
        """
        last = self.box_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        nn.init.constant_(last.bias[2:], size_bias)

    def forward(self, hidden: Tensor, reference_logits: Tensor) -> Predictions:
        return Predictions(self.class_head(hidden), self.boxes(hidden, reference_logits))

    def boxes(self, hidden: Tensor, reference_logits: Tensor) -> Tensor:
        """Return only the boxes, (B, Q, 4) cxcywh, without computing the class logits."""
        return corrected(reference_logits, self.box_head(hidden))


def corrected(reference_logits: Tensor, deltas: Tensor) -> Tensor:
    """Return the boxes sigmoid(deltas + reference_logits), (B, Q, 4) cxcywh, in at least float32.

    `deltas` (B, Q, 4) are the output of a box head for B images and Q queries.
    """
    # float32: in 16 bits, a box side near 1 would step by several pixels.
    return (deltas.to(coordinate_dtype(deltas)) + reference_logits).sigmoid()


def logits_of_references(references: Tensor) -> Tensor:
    """Convert references, points (B, Q, 2) or boxes (B, Q, 4) in [0, 1], to logits (B, Q, 4).

    The logits of a point's width and height are 0. B is the number of images, and Q that of queries.
    """
    logits = inverse_sigmoid(references)
    return F.pad(logits, (0, 4 - logits.shape[-1]))
