"""Queries that are independent of the picture are computed once; proposals are encoded in chunks.

Letters: B batch, S memory tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...models.queries import BestProposals, FixedQueries, for_each_image
from ...structures import FeatureMemory, Queries
from .encoder import chunks


class ComputedQueries(nn.Module):
    """The queries of a `FixedQueries` module, computed once, because they depend only on the weights."""

    def __init__(self, queries: FixedQueries):
        super().__init__()
        self.queries = queries.fixed()

    def forward(self, memory: FeatureMemory) -> Queries:
        return for_each_image(self.queries, memory)


class ChunkedProposals(BestProposals):
    """A `BestProposals` that encodes tokens in chunks, which stay in the processor's cache."""

    def encode(self, tokens: Tensor, invalid: Tensor) -> Tensor:
        """Return the input of the first stage's head for the S tokens of B images, (B, S, C) float32.

        Tokens for which `invalid` (B, S) is True are replaced by zeros before they are encoded.
        """
        encoded = torch.empty_like(tokens, dtype=torch.float32)
        for image, of_image in enumerate(tokens):
            for chunk in chunks(len(of_image)):
                # Not in place: `float` does not copy float32 tensors, and the decoder needs all tokens.
                valid = of_image[chunk].float().masked_fill(invalid[image, chunk, None], 0.0)
                encoded[image, chunk] = self.plain.memory_norm(self.plain.memory_projection(valid))
        return encoded
