"""Sources of object queries (paper, section 4.2; specification §4.1, §4.4, §12.1).

Queries may be learned (DETR), learned together with reference points (Deformable DETR), or derived from the
first stage's proposals, in which case their content may still be learned. Each source is a module with
forward(memory) -> Queries.

Letters: B batch, Q queries, S memory tokens, C channels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..boxes import coordinate_dtype
from ..structures import FeatureMemory, Predictions, Queries
from .heads import PredictionHead
from .position import points_of_level, sine_encoding

# Side of the base boxes on the finest level, as a fraction of the image; it doubles from level to level.
PROPOSAL_SIZE = 0.05


class FixedQueries(nn.Module, ABC):
    """Queries that depend only on weights, so that they are the same for every image."""

    @abstractmethod
    def fixed(self) -> Queries:
        """Return the Q queries of one image, (1, Q, C)."""

    def forward(self, memory: FeatureMemory) -> Queries:
        return for_each_image(self.fixed(), memory)


class StaticQueries(FixedQueries):
    """DETR's queries: learned positions, zero content, and a constant 0.5 in the place of a reference."""

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, dim))

    def fixed(self) -> Queries:
        positions = self.positions[None]
        references = torch.full_like(positions[..., :4], 0.5)  # the logit of 0.5 is 0: no reference
        return Queries(torch.zeros_like(positions), positions, references)


class ReferencePointQueries(FixedQueries):
    """Deformable DETR's queries: learned content, positions and reference points.

    The logits of the reference points are linear in the positions.
    """

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, dim))
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def fixed(self) -> Queries:
        references = self.reference_points(self.positions)
        references = references.to(coordinate_dtype(references)).sigmoid()
        return Queries(self.content[None], self.positions[None], references[None])


class ProposalQueries(nn.Module):
    """Queries of two-stage models: every memory token proposes a box, and the best Q become the queries.

    `mask_invalid` excludes tokens whose base box is invalid (see `base_boxes`) from the best Q, unless there
    are too few others. The authors' code includes these tokens (specification §11, item 10), and its
    checkpoints depend on that. In the first stage, class 0 means "object". If an image has fewer tokens than
    `num_queries`, each token becomes a query.
    """

    def __init__(self, num_queries: int, dim: int, head: PredictionHead, mask_invalid: bool):
        super().__init__()
        self.num_queries, self.mask_invalid = num_queries, mask_invalid
        self.head = head
        self.memory_projection = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.box_projection = nn.Linear(2 * dim, 2 * dim)
        self.box_norm = nn.LayerNorm(2 * dim)
        for projection in (self.memory_projection, self.box_projection):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, memory: FeatureMemory) -> Queries:
        base, invalid = base_boxes(memory)
        base_logits = torch.log(base / (1 - base)).masked_fill(invalid[..., None], torch.inf)
        tokens = memory.tokens.masked_fill(invalid[..., None], 0.0)
        proposals: Predictions = self.head(self.memory_norm(self.memory_projection(tokens)), base_logits)

        objectness = proposals.logits[..., 0]
        if self.mask_invalid:
            objectness = objectness.masked_fill(invalid, -torch.inf)
        best = objectness.topk(min(self.num_queries, objectness.shape[1]), dim=1).indices
        references = proposals.boxes_cxcywh.gather(1, best[..., None].expand(-1, -1, 4)).detach()

        return self.starting_at(references, best, proposals)

    def starting_at(
        self, references: Tensor, tokens: Tensor, proposals: Predictions | None = None
    ) -> Queries:
        """Return the queries that start from the boxes `references` (B, Q, 4), for B images and Q queries.

        `tokens` (B, Q) are the indices of the tokens that proposed the boxes. `proposals`, the proposals of
        all tokens, become part of the result.
        """
        positions, content = self.encode(references)
        return Queries(content, positions, references, proposals, tokens)

    def encode(self, boxes_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions and the content, both (B, Q, C), of queries with the boxes (B, Q, 4)."""
        dim = self.memory_norm.normalized_shape[0]
        encoded = sine_encoding(boxes_cxcywh * (2 * math.pi), dim // 2).flatten(2)  # (B, Q, 2C)
        positions, content = self.box_norm(self.box_projection(encoded)).chunk(2, dim=-1)
        return positions, content


class MixedQueries(ProposalQueries):
    """Queries whose boxes and positions come from the best proposals, and whose content is learned.

    The method is the "mixed query selection" of DINO (Zhang et al., ICLR 2023), as implemented in H-DETR. Row
    i of the content, (Q, C), belongs to the i-th best proposal of every image. The positions are those of
    `ProposalQueries`. The content of `ProposalQueries` is computed too, because positions and content share a
    layer norm, but it is not used.
    """

    def __init__(self, num_queries: int, dim: int, head: PredictionHead, mask_invalid: bool):
        super().__init__(num_queries, dim, head, mask_invalid)
        self.content = nn.Parameter(torch.randn(num_queries, dim))

    def starting_at(
        self, references: Tensor, tokens: Tensor, proposals: Predictions | None = None
    ) -> Queries:
        queries = super().starting_at(references, tokens, proposals)
        B, Q, _ = references.shape
        return replace(queries, content=self.content[:Q].expand(B, -1, -1))


class BestProposals(nn.Module):
    """A faster `ProposalQueries` for inference.

    The module computes the objectness (one logit of the class head) of all S tokens, but the boxes of only
    the Q best ones, and its queries have no `proposals`. In training, all boxes are needed, because all of
    them take part in the matching.
    """

    def __init__(self, queries: ProposalQueries):
        super().__init__()
        self.plain = queries

    def forward(self, memory: FeatureMemory) -> Queries:
        plain = self.plain
        base, invalid = base_boxes(memory)
        encoded = self.encode(memory.tokens, invalid)
        object_row = plain.head.class_head.weight[:1], plain.head.class_head.bias[:1]
        objectness = F.linear(encoded, *object_row)[..., 0]
        if plain.mask_invalid:
            objectness = objectness.masked_fill(invalid, -torch.inf)
        best = objectness.topk(self.num_best(objectness.shape[1]), dim=1).indices

        def best_of(rows: Tensor) -> Tensor:
            return rows.gather(1, best[..., None].expand(-1, -1, rows.shape[-1]))

        base_logits = torch.log(base / (1 - base)).masked_fill(invalid[..., None], torch.inf)
        references = plain.head.boxes(best_of(encoded), best_of(base_logits))
        return plain.starting_at(references, best)

    def num_best(self, num_tokens: int) -> int:
        """Return the number of queries, Q, of an image with `num_tokens` tokens."""
        return min(self.plain.num_queries, num_tokens)

    def encode(self, tokens: Tensor, invalid: Tensor) -> Tensor:
        """Return the input of the first stage's head for the S tokens of B images, (B, S, C).

        Tokens for which `invalid` (B, S) is True are replaced by zeros before they are encoded.
        """
        encoded: Tensor = self.plain.memory_norm(
            self.plain.memory_projection(tokens.masked_fill(invalid[..., None], 0.0))
        )
        return encoded


def with_best_proposals(queries: nn.Module) -> nn.Module:
    """Return `BestProposals(queries)` if it can replace the module `queries`, otherwise `queries` itself."""
    return BestProposals(queries) if chooses_proposals(queries) else queries


def chooses_proposals(queries: nn.Module) -> TypeGuard[ProposalQueries]:
    """Return whether `queries` chooses proposals as `BestProposals` does, so that the latter can replace it.

    This is the case for `ProposalQueries` and for its subclasses that inherit its `forward`, also those from
    outside the package.
    """
    return isinstance(queries, ProposalQueries) and type(queries).forward is ProposalQueries.forward


def for_each_image(queries: Queries, memory: FeatureMemory) -> Queries:
    """Expand the queries of one image, (1, Q, C), to all images of the memory, (B, Q, C)."""
    B = memory.tokens.shape[0]  # len() would be a constant under torch.export
    return Queries(
        queries.content.expand(B, -1, -1),
        queries.positions.expand(B, -1, -1),
        queries.references.expand(B, -1, -1),
    )


def base_boxes(memory: FeatureMemory) -> tuple[Tensor, Tensor]:
    """Return the boxes that proposals are relative to, (B, S, 4) cxcywh, and a mask of invalid ones, (B, S).

    There is one box for each of the S tokens of B images, relative to the unpadded image. The base box of a
    token is centred on the token's pixel. Its width and height are 0.05 of the image's on the finest level,
    and double from level to level. A box is invalid if its token is in the padding, or if its x, y, width or
    height is outside the open interval (0.01, 0.99).
    """
    boxes, device, dtype = [], memory.tokens.device, coordinate_dtype(memory.tokens)
    paddings = memory.mask.split([height * width for height, width in memory.spatial_shapes], dim=1)
    for level, (height, width) in enumerate(memory.spatial_shapes):
        padding = paddings[level].unflatten(1, (height, width))
        valid_height = (~padding.select(2, 0)).sum(1, keepdim=True)
        valid_width = (~padding.select(1, 0)).sum(1, keepdim=True)
        y = (torch.arange(height, dtype=dtype, device=device) + 0.5) / valid_height
        x = (torch.arange(width, dtype=dtype, device=device) + 0.5) / valid_width
        boxes.append(F.pad(points_of_level(x, y), (0, 2), value=PROPOSAL_SIZE * 2**level))
    base = torch.cat(boxes, dim=1)
    outside = (base <= 0.01).logical_or(base >= 0.99).any(-1)
    return base, outside.logical_or(memory.mask)
