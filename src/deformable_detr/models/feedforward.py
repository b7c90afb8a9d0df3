"""The feed-forward network of an encoder or decoder layer, with the residual and the norm after it."""

from __future__ import annotations

from torch import Tensor, nn

from .dropout import Dropout, relu_dropout_


class FeedForward(nn.Module):
    """The function norm(x + linear2(relu(linear1(x)))), with dropout after the ReLU and linear2.

    x has the shape (B, Q, C): batch, queries (in the encoder, memory tokens), channels.
    """

    def __init__(self, dim: int, ffn_dim: int, dropout: float):
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.inner_dropout = dropout
        self.outer_dropout = Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = relu_dropout_(self.linear1(x), self.inner_dropout if self.training else 0.0)
        normalised: Tensor = self.norm(x + self.outer_dropout(self.linear2(hidden)))
        return normalised
