"""The feed-forward half of an encoder or decoder layer, with its residual and norm (post-norm)."""

from __future__ import annotations

from torch import Tensor, nn


class FeedForward(nn.Module):
    """norm(x + linear2(relu(linear1(x)))), dropout after both linears. x: (B, Q, C)."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.inner_dropout = nn.Dropout(dropout)
        self.outer_dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner_dropout(self.linear1(x).relu())
        normalised: Tensor = self.norm(x + self.outer_dropout(self.linear2(hidden)))
        return normalised
