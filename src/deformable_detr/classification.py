"""The meaning of class logits.

One object defines the matching cost, the loss, the score and the selection of detections, so that they are
consistent. DETR uses softmax with a no-object class (specification §4.5). Deformable DETR uses one sigmoid
per class with focal loss (paper, section 5; specification §5.1, §5.2). Two other sigmoid losses also use the
IoU of the predicted boxes (specification §12.3).

Letters: B batch, Q queries, N objects of one image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .config import LossConfig, ModelConfig, add_choice
from .structures import BatchCount

if TYPE_CHECKING:
    # Not imported when the program runs: the detections of an exported model are selected without PyTorch.
    from torch import Tensor

NO_OBJECT = -1  # class index of a query to which no object was assigned


@dataclass(frozen=True)
class TopPairs:
    """The k best (query, class) pairs of each of B images, best first.

    If there are fewer pairs to choose from, k is their number.

    Attributes:
        scores: (B, k), the probability of the class.
        labels: (B, k) int64, the class index.
        queries: (B, k) int64, the index of the query.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor

    def arrays(self) -> TopArrays:
        return TopArrays(*(field.cpu().numpy() for field in (self.scores, self.labels, self.queries)))


@dataclass(frozen=True)
class TopArrays:
    """The fields of `TopPairs` as NumPy arrays, each (B, k) for the k best pairs of each of B images."""

    scores: np.ndarray
    labels: np.ndarray
    queries: np.ndarray


class ClassificationScheme(ABC):
    """The meaning of class logits: their score, loss and matching cost, and the selection of detections.

    Attributes:
        num_classes: the number of classes of the model.
        num_logits: the number of logits of a query, the last axis of all logits. It is larger than
            `num_classes` if there is a logit for "no object".
        initial_class_bias: the initial bias of the class head's layer; None keeps PyTorch's.
    """

    num_classes: int
    num_logits: int
    initial_class_bias: float | None  # None: keep the layer's own initialisation

    @abstractmethod
    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cost (..., Q, N) of assigning each object to each query.

        `logits` (..., Q, num_logits) belong to the Q queries of an image, and `labels` (..., N) are the
        classes of its N objects.
        """

    @abstractmethod
    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        """Return the scalar loss of the logits (B, Q, num_logits) of Q queries for each of B images.

        `assigned` (B, Q) holds the class index of each query's object, or NO_OBJECT (-1). `quality` (B, Q)
        holds the IoU of the query's box with its object, without a gradient, or 0 if the query has no object;
        a scheme may ignore it. `count` holds the numbers of images, objects and matched queries in the whole
        update, by which losses are divided.
        """

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, (..., num_classes), for logits (..., num_logits)."""

    @abstractmethod
    def select(self, logits: Tensor, k: int) -> TopPairs:
        """Return the k best (query, class) pairs of each image, or all pairs if there are fewer than k.

        `logits` are (B, Q, num_logits), for B images and Q queries. If only one class can be true of a query,
        as with softmax, only the pair with its best class counts.
        """


def at_labels(values: Tensor, labels: Tensor) -> Tensor:
    """Return the entries (..., Q, N) of `values` (..., Q, num_logits) at the classes `labels` (..., N)."""
    return values.gather(-1, labels[..., None, :].expand(*values.shape[:-1], labels.shape[-1]))


class SigmoidFocal(ClassificationScheme):
    """One sigmoid per class, an independent yes-or-no decision, with focal loss.

    A query may be selected for several classes.
    """

    def __init__(self, num_classes: int, alpha: float = 0.25, gamma: float = 2.0):
        self.num_classes = self.num_logits = num_classes
        self.alpha, self.gamma = alpha, gamma
        # All probabilities start at 0.01. Otherwise, thousands of background terms would dominate the loss.
        self.initial_class_bias = -math.log((1 - 0.01) / 0.01)

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        p = at_labels(logits.sigmoid(), labels)
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        return positive - negative

    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss

        target = self.target(logits, assigned)
        focal: Tensor = sigmoid_focal_loss(logits, target, self.alpha, self.gamma, reduction="sum")
        return focal / count.objects

    def target(self, logits: Tensor, assigned: Tensor) -> Tensor:
        """Return the targets (B, Q, num_classes): 1 at the class of each query's object, and 0 elsewhere.

        `assigned` (B, Q) holds the class index of each query's object, or NO_OBJECT (-1), for B images and Q
        queries.
        """
        import torch.nn.functional as F

        # The extra column is for queries without an object, and is cut off.
        target = F.one_hot(assigned.where(assigned != NO_OBJECT, self.num_classes), self.num_classes + 1)
        return target[..., :-1].to(logits.dtype)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def select(self, logits: Tensor, k: int) -> TopPairs:
        scores, index = self.scores(logits).flatten(1).topk(min(k, logits.shape[1] * self.num_classes))
        return TopPairs(scores, index % self.num_classes, index // self.num_classes)


class SigmoidMatchability(SigmoidFocal):
    """Sigmoids that learn the quality of the box: the matchability-aware loss (DEIM, CVPR 2025).

    The target of a matched query's class is IoU^γ, and its binary cross-entropy has the weight 1. All other
    targets are 0, with the weight p^γ; p is the predicted probability. The matching cost is that of the focal
    loss.
    """

    exponent = 1.5  # γ

    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        import torch
        import torch.nn.functional as F

        pairs = self.target(logits, assigned)
        target = pairs * quality[..., None] ** self.exponent
        weight = torch.where(pairs > 0, 1.0, logits.detach().sigmoid() ** self.exponent)
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / count.objects


class SigmoidVarifocal(SigmoidFocal):
    """Sigmoids that learn the quality of the box: the varifocal loss (Zhang et al., CVPR 2021; RT-DETR).

    The target of a matched query's class is the IoU, which is also the weight of its binary cross-entropy.
    All other targets are 0, with the weight α·p^γ; p is the predicted probability. The matching cost is that
    of the focal loss.
    """

    share, exponent = 0.75, 2.0  # α and γ

    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        import torch
        import torch.nn.functional as F

        pairs = self.target(logits, assigned)
        target = pairs * quality[..., None]
        weight = torch.where(pairs > 0, target, self.share * logits.detach().sigmoid() ** self.exponent)
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / count.objects


class SoftmaxWithNoObject(ClassificationScheme):
    """A softmax over all classes and "no object", the last logit. A query yields at most one detection."""

    initial_class_bias = None

    def __init__(self, num_classes: int, no_object_weight: float = 0.1):
        self.num_classes = num_classes
        self.num_logits = num_classes + 1
        self.no_object_weight = no_object_weight

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -at_labels(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, assigned: Tensor, quality: Tensor, count: BatchCount) -> Tensor:
        import torch.nn.functional as F

        target = assigned.where(assigned != NO_OBJECT, self.num_classes)
        weight = logits.new_ones(self.num_logits)
        weight[-1] = self.no_object_weight
        total = F.cross_entropy(logits.transpose(1, 2), target, weight, reduction="sum")
        # The weighted mean of specification §5.2, with a denominator counted over the whole update.
        unmatched = count.images * logits.shape[1] - count.matched
        return total / (count.matched + self.no_object_weight * unmatched)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)[..., :-1]

    def select(self, logits: Tensor, k: int) -> TopPairs:
        best, labels = self.scores(logits).max(-1)  # (B, Q)
        scores, queries = best.topk(min(k, logits.shape[1]))
        return TopPairs(scores, labels.gather(1, queries), queries)


_SIGMOIDS: dict[str, type[SigmoidFocal]] = {  # by LossConfig.classification_loss
    "focal": SigmoidFocal,
    "mal": SigmoidMatchability,
    "varifocal": SigmoidVarifocal,
}

SchemeBuilder = Callable[[ModelConfig, LossConfig], ClassificationScheme]
_SCHEMES: dict[str, SchemeBuilder] = {
    "softmax": lambda model, loss: SoftmaxWithNoObject(model.num_classes, loss.no_object_weight),
    "sigmoid_focal": lambda model, loss: _SIGMOIDS[loss.classification_loss](
        model.num_classes, loss.focal_alpha, loss.focal_gamma
    ),
}


def register_classification(name: str, build: SchemeBuilder) -> None:
    """Make `model.classification=name` select a scheme from outside the package, in this process.

    `build` creates the scheme from the model's configuration and that of the loss. A checkpoint stores only
    the name, so register the scheme before you load a checkpoint that uses it.
    """
    add_choice("model.classification", name)
    _SCHEMES[name] = build


def build_classification(model: ModelConfig, loss: LossConfig | None = None) -> ClassificationScheme:
    """Build the scheme that `model.classification` names, with the parameters in `loss` or the defaults."""
    return _SCHEMES[model.classification](model, loss or LossConfig())


def select_from_arrays(scheme: ClassificationScheme, logits: np.ndarray, k: int) -> TopArrays:
    """Return the result of `scheme.select` as NumPy arrays, for float32 logits (B, Q, num_logits).

    The logits are those of Q queries for each of B images. If the scheme inherits `scores` and `select` from
    a scheme of this package, PyTorch is not imported, and pairs with equal scores are in the order of the
    queries.
    """
    kind = type(scheme)
    if (kind.scores, kind.select) == (SigmoidFocal.scores, SigmoidFocal.select):
        scores = 1 / (1 + np.exp(-np.clip(logits, -80, None)))  # exp(80) is below float32's maximum
        scores = scores.reshape(len(logits), -1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        classes = scheme.num_classes
        return TopArrays(np.take_along_axis(scores, best, 1), best % classes, best // classes)
    if (kind.scores, kind.select) == (SoftmaxWithNoObject.scores, SoftmaxWithNoObject.select):
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        scores = (exponentials / exponentials.sum(-1, keepdims=True))[..., :-1]
        labels, scores = scores.argmax(-1), scores.max(-1)  # (B, Q)
        queries = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, labels = (np.take_along_axis(each, queries, 1) for each in (scores, labels))
        return TopArrays(scores, labels, queries)
    import torch

    return scheme.select(torch.from_numpy(logits), k).arrays()
