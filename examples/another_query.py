"""Another kind of query: reference points on a regular grid that does not move, instead of learned ones.

This is the whole command line, with one more kind of query:

    python examples/another_query.py train DATA --recipe deformable_detr_lite \
        --model.queries grid --output runs/grid
    python examples/another_query.py explain runs/grid a.jpg --output a.html

Letters: B batch, Q queries, C channels.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn

from deformable_detr.cli.main import main
from deformable_detr.models import register_queries
from deformable_detr.models.position import sine_encoding
from deformable_detr.structures import FeatureMemory, Queries


class GridQueries(nn.Module):
    """Q points, row by row; a query's position is the encoding of its point, its content is learned."""

    points: Tensor

    def __init__(self, num_queries: int, dim: int):
        super().__init__()
        columns = math.ceil(math.sqrt(num_queries))
        number = torch.arange(num_queries)
        rows = math.ceil(num_queries / columns)
        grid = torch.stack([(number % columns + 0.5) / columns, (number // columns + 0.5) / rows], dim=-1)
        self.register_buffer("points", grid)  # (Q, 2), saved with the weights
        self.content = nn.Parameter(torch.randn(num_queries, dim))
        self.projection = nn.Linear(dim, dim)

    def forward(self, memory: FeatureMemory) -> Queries:
        B, dim = len(memory.tokens), self.content.shape[1]
        encoded = sine_encoding(self.points * (2 * math.pi), dim // 2).flatten(1)  # (Q, C)
        positions = self.projection(encoded)
        return Queries(
            self.content.expand(B, -1, -1), positions.expand(B, -1, -1), self.points.expand(B, -1, -1)
        )


register_queries("grid", lambda config, heads: GridQueries(config.num_queries, config.hidden_dim))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
