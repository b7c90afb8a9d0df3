"""What a class logit means. One object owns the matching cost, the loss, the score and the selection of
detections, so that they cannot disagree.

DETR: softmax with a no-object class (specification §4.5). Deformable DETR: one sigmoid per class with focal
loss (paper, section 5; specification §5.1, §5.2). Letters: B batch, Q queries, N objects of one image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from .config import LossConfig, ModelConfig, add_choice
from .structures import BatchCount

NO_OBJECT = -1  # class index of a query to which no object was assigned


@dataclass(frozen=True)
class Selection:
    """The k best (query, class) pairs of each image, best first: all (B, k)."""

    scores: Tensor
    labels: Tensor
    queries: Tensor


class ClassificationScheme(ABC):
    """Meaning of the logits (..., num_logits) for `num_classes` classes."""

    num_classes: int
    num_logits: int
    initial_class_bias: float | None  # None: keep the layer's own initialisation

    @abstractmethod
    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cost (Q, N) of giving each query (Q, num_logits) each object (N,)."""

    @abstractmethod
    def loss(self, logits: Tensor, assigned: Tensor, count: BatchCount) -> Tensor:
        """Scalar loss of logits (B, Q, num_logits); `assigned` (B, Q) holds class indices or NO_OBJECT."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities (..., num_classes)."""

    @abstractmethod
    def select(self, logits: Tensor, k: int) -> Selection:
        """The k best (query, class) pairs of each image (fewer where there are fewer)."""


class SigmoidFocal(ClassificationScheme):
    """Each class is its own yes-or-no question. A query may be selected with several classes."""

    def __init__(self, num_classes: int, alpha: float = 0.25, gamma: float = 2.0):
        self.num_classes = self.num_logits = num_classes
        self.alpha, self.gamma = alpha, gamma
        # All probabilities start at 0.01: thousands of background terms would drown the rest otherwise.
        self.initial_class_bias = -math.log((1 - 0.01) / 0.01)

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        p = logits.sigmoid()[:, labels]
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + 1e-8)
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + 1e-8)
        return positive - negative

    def loss(self, logits: Tensor, assigned: Tensor, count: BatchCount) -> Tensor:
        # The extra column takes the queries without object, and is cut off.
        wanted = F.one_hot(assigned.where(assigned != NO_OBJECT, self.num_classes), self.num_classes + 1)
        result: Tensor = (
            sigmoid_focal_loss(
                logits, wanted[..., :-1].to(logits.dtype), self.alpha, self.gamma, reduction="sum"
            )
            / count.objects
        )
        return result

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def select(self, logits: Tensor, k: int) -> Selection:
        scores, index = self.scores(logits).flatten(1).topk(min(k, logits.shape[1] * self.num_classes))
        return Selection(scores, index % self.num_classes, index // self.num_classes)


class SoftmaxWithNoObject(ClassificationScheme):
    """One class out of num_classes, or none: the last logit. A query gives at most one detection."""

    initial_class_bias = None

    def __init__(self, num_classes: int, no_object_weight: float = 0.1):
        self.num_classes = num_classes
        self.num_logits = num_classes + 1
        self.no_object_weight = no_object_weight

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.softmax(-1)[:, labels]

    def loss(self, logits: Tensor, assigned: Tensor, count: BatchCount) -> Tensor:
        wanted = assigned.where(assigned != NO_OBJECT, self.num_classes)
        weight = logits.new_ones(self.num_logits)
        weight[-1] = self.no_object_weight
        total = F.cross_entropy(logits.transpose(1, 2), wanted, weight, reduction="sum")
        # The weighted mean of specification §5.2, its denominator counted over the whole update.
        unmatched = count.images * logits.shape[1] - count.matched
        return total / (count.matched + self.no_object_weight * unmatched)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[..., :-1]

    def select(self, logits: Tensor, k: int) -> Selection:
        best, labels = self.scores(logits).max(-1)  # (B, Q)
        scores, queries = best.topk(min(k, logits.shape[1]))
        return Selection(scores, labels.gather(1, queries), queries)


SchemeBuilder = Callable[[ModelConfig, LossConfig], ClassificationScheme]
_SCHEMES: dict[str, SchemeBuilder] = {
    "softmax": lambda model, loss: SoftmaxWithNoObject(model.num_classes, loss.no_object_weight),
    "sigmoid_focal": lambda model, loss: SigmoidFocal(model.num_classes, loss.focal_alpha, loss.focal_gamma),
}


def register_classification(name: str, build: SchemeBuilder) -> None:
    """Make `model.classification=name` choose a scheme from outside of the package, in this process.

    A checkpoint keeps only the name, so whoever loads it must register the scheme before.
    """
    add_choice("model.classification", name)
    _SCHEMES[name] = build


def build_classification(model: ModelConfig, loss: LossConfig | None = None) -> ClassificationScheme:
    """The scheme that `model.classification` names."""
    return _SCHEMES[model.classification](model, loss or LossConfig())
