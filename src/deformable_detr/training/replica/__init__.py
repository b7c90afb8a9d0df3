"""Faster parts for training: convolutions merged with norms, and on a CPU an encoder without padding."""

from .build import replica_for_training

__all__ = ["replica_for_training"]
