"""Faster parts for training: convolutions with their norms, and on a CPU an encoder without the padding."""

from .build import replica_for_training

__all__ = ["replica_for_training"]
