"""Faster parts for training on a CPU."""

from .build import replica_for_training

__all__ = ["replica_for_training"]
