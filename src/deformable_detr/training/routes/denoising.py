"""Contrastive denoising (DINO, Zhang et al., ICLR 2023; DN-DETR, Li et al., CVPR 2022; specification §12.6).

Queries are built from the objects themselves, with noise in their boxes and labels. Half of them have little
noise and learn to predict their object; the other half have more noise and learn to predict background. No
matching is needed.

Letters: B batch, C channels, M number of objects in the fullest image, G groups. A group has 2M slots for
each image: M with little noise, then M with more noise. Images with fewer objects leave slots empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from ...loss import Known, Match, Stage, stages_of
from ...models import DetectionModel
from ...models.decoder import DecoderLayer
from ...models.queries import ProposalQueries
from ...structures import FeatureMemory, Predictions, Queries, Target
from .route import Route

LABEL_NOISE = 0.25  # the fraction of labels that are replaced by random ones
BOX_NOISE = 1.0  # the largest shift of an edge with little noise, relative to half the width or height


class Denoising(Route):
    """A pass of queries that are built from the objects, with noise, through the decoder.

    The content of a query is a learned vector of its noisy label, and its reference is a noisy box. The model
    must have two stages (`ProposalQueries`).

    Args:
        num_classes: the number of classes.
        dim: the channels C of queries.
        num_queries: the maximum number of queries with little noise in an image. An image with more objects
            has one such query for each object. The same number of queries have more noise.
        weight: the factor on the losses of this pass.
        auxiliary: True if all decoder layers have losses, False if only the last one does.
    """

    def __init__(
        self, num_classes: int, dim: int, num_queries: int, weight: float = 1.0, auxiliary: bool = True
    ):
        super().__init__(weight, auxiliary)
        self.num_queries = num_queries
        self.labels = nn.Embedding(num_classes, dim)

    def forward(
        self, model: DetectionModel, memory: FeatureMemory, queries: Queries, targets: Sequence[Target]
    ) -> list[Stage]:
        assert isinstance(model.queries, ProposalQueries)
        slots = Slots.of([len(target) for target in targets], self.num_queries)
        labels, boxes = slots.filled(targets)
        boxes_cxcywh = noisy_boxes(boxes).flatten(1, 3)
        labels = noisy_labels(labels, self.labels.num_embeddings).flatten(1)
        positions, _ = model.queries.encode(boxes_cxcywh)
        steps = [partial(attend_within_groups, layer, slots) for layer in model.decoder.layers]
        layers = model.decoder(Queries(self.labels(labels), positions, boxes_cxcywh), memory, steps)

        device = boxes.device
        rows = slots.rows.to(device)
        used = [
            Predictions(layer.logits.flatten(0, 1)[rows][None], layer.boxes_cxcywh.flatten(0, 1)[rows][None])
            for layer in layers
        ]
        match = Match(slots.restoring.to(device), slots.objects.to(device))
        return stages_of(
            used,
            targets,
            Known(match),
            name="_denoising",
            auxiliary=self.auxiliary,
            weight=self.weight,
            repeats=slots.num_groups,
        )


@dataclass(frozen=True)
class Slots:
    """The slots of the queries, (B, G, 2, M), flattened image by image.

    Each of B images has G groups (`num_groups`). A group has M slots with little noise, followed by M slots
    with more noise, where M is the number of objects in the fullest image.

    Attributes:
        empty: (B, 2M), True for slots without an object; the same in each group.
        rows: the queries that have an object, as indices into all B·G·2·M slots.
        restoring: the queries of `rows` that have little noise, as indices into `rows`.
        objects: the object of each query in `restoring`, as an index into the objects of the batch.
    """

    num_groups: int
    empty: Tensor
    rows: Tensor
    restoring: Tensor
    objects: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], num_queries: int) -> Slots:
        """Return the slots for images with these numbers of objects (`counts`).

        There are as many groups as `num_queries` queries with little noise allow, but at least one.
        """
        M = max(1, *counts)
        B, G = len(counts), max(1, num_queries // M)
        real = torch.arange(M) < torch.tensor(counts)[:, None]  # (B, M)
        starts = torch.tensor([0, *counts]).cumsum(0)[:-1]
        numbers = (starts[:, None] + torch.arange(M))[:, None, None].expand(B, G, 2, M).flatten()
        with_more = torch.arange(2)[:, None].expand(B, G, 2, M).flatten()
        rows = real[:, None, None].expand(B, G, 2, M).flatten().nonzero()[:, 0]
        restoring = (with_more[rows] == 0).nonzero()[:, 0]
        return cls(G, (~real).repeat(1, 2), rows, restoring, numbers[rows[restoring]])

    def filled(self, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Return the labels (B, G, 2, M) and the boxes (B, G, 2, M, 4) cxcywh of the slots, without noise.

        Empty slots have the label 0 and a box at the centre of the image, half as wide and high as the image.
        """
        B, twice_M = self.empty.shape
        M = twice_M // 2
        labels = targets[0].labels.new_zeros(B, M)
        boxes = targets[0].boxes_cxcywh.new_full((B, M, 4), 0.5)
        most = max(map(len, targets))
        labels[:, :most] = pad_sequence([target.labels for target in targets], batch_first=True)
        boxes[:, :most] = pad_sequence(
            [target.boxes_cxcywh for target in targets], batch_first=True, padding_value=0.5
        )
        shape = B, self.num_groups, 2, M
        return labels[:, None, None].expand(shape), boxes[:, None, None].expand(*shape, 4)


def noisy_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return `labels`, each replaced with probability `LABEL_NOISE` by one that is drawn from all classes."""
    drawn = torch.randint_like(labels, num_classes)
    return torch.where(torch.rand(labels.shape, device=labels.device) < LABEL_NOISE, drawn, labels)


def noisy_boxes(boxes_cxcywh: Tensor) -> Tensor:
    """Return boxes (B, G, 2, M, 4), as in `Slots`, with edges shifted independently and clipped to the image.

    With little noise, an edge shifts by at most half of the box's width or height, so that the centre of the
    object stays inside; with more noise, it shifts by between half and all of it.
    """
    corners = cxcywh_to_xyxy(boxes_cxcywh)
    share = torch.rand_like(corners)
    share[:, :, 1] += 1.0
    sign = torch.randint_like(corners, 2) * 2 - 1
    half = boxes_cxcywh[..., 2:].repeat(1, 1, 1, 1, 2) / 2
    moved = (corners + sign * share * half * BOX_NOISE).clamp(0, 1)
    # Opposite edges may have passed each other.
    low, high = torch.minimum(moved[..., :2], moved[..., 2:]), torch.maximum(moved[..., :2], moved[..., 2:])
    return xyxy_to_cxcywh(torch.cat([low, high], dim=-1))


def attend_within_groups(layer: nn.Module, slots: Slots, content: Tensor, positions: Tensor) -> Tensor:
    """Return the content (B, G·2·M, C) of the queries after the self-attention of `layer`, with its norm.

    Each query attends only to itself and to the queries of its group that have an object.
    """
    assert isinstance(layer, DecoderLayer)
    G, twice_M = slots.num_groups, slots.empty.shape[1]
    heads = layer.self_attention.num_heads
    unseen = slots.empty[:, None] & ~torch.eye(twice_M, dtype=torch.bool)  # (B, 2M, 2M)
    mask = unseen.to(content.device).repeat_interleave(G * heads, dim=0)
    of_group, its_positions = (part.unflatten(1, (G, twice_M)).flatten(0, 1) for part in (content, positions))
    query = of_group + its_positions
    attended, _ = layer.self_attention(query, query, of_group, attn_mask=mask, need_weights=False)
    attended = attended.unflatten(0, (-1, G)).flatten(1, 2)
    normalised: Tensor = layer.self_norm(content + layer.self_dropout(attended))
    return normalised
