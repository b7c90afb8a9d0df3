"""Queries that do not look at the picture are kept; proposals compute heads only where they count.

Letters: B batch, Q queries, S memory tokens, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.queries import ProposalQueries, base_boxes
from ...structures import FeatureMemory, Queries
from .encoder import chunks


class FixedQueries(nn.Module):
    """The result of queries that are weights and nothing else."""

    def __init__(self, queries: nn.Module):
        super().__init__()
        one = torch.zeros(1, 0, 0)
        self.queries: Queries = queries(
            FeatureMemory(tokens=one, positions=one, mask=one, spatial_shapes=(), valid_ratios=one)
        )

    def forward(self, memory: FeatureMemory) -> Queries:
        B = len(memory.tokens)
        return Queries(
            self.queries.content.expand(B, -1, -1),
            self.queries.positions.expand(B, -1, -1),
            self.queries.references.expand(B, -1, -1),
        )


class BestProposals(nn.Module):
    """`ProposalQueries`: of all S tokens only the objectness is needed (one logit of the class head), boxes
    only of the Q that are chosen. In training all of them have losses."""

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
        best = objectness.topk(min(plain.num_queries, objectness.shape[1]), dim=1).indices

        def of_best(rows: Tensor) -> Tensor:
            return rows.gather(1, best[..., None].expand(-1, -1, rows.shape[-1]))

        base_logits = torch.log(base / (1 - base)).masked_fill(invalid[..., None], torch.inf)
        references = plain.head.boxes(of_best(encoded), of_best(base_logits))
        return plain.starting_at(references)

    def encode(self, tokens: Tensor, invalid: Tensor) -> Tensor:
        """What the first stage's head sees, (B, S, C) float32."""
        encoded = torch.empty_like(tokens, dtype=torch.float32)
        for image, of_image in enumerate(tokens):
            for chunk in chunks(len(of_image)):
                # not in place: `float` copies nothing of what is float32, and the decoder needs all tokens
                valid = of_image[chunk].float().masked_fill(invalid[image, chunk, None], 0.0)
                encoded[image, chunk] = self.plain.memory_norm(self.plain.memory_projection(valid))
        return encoded
