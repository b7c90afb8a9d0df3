"""Training: the loop, the state that a run can resume from, and the settings that a run starts with."""

from .run import train
from .settings import resolve_config

__all__ = ["resolve_config", "train"]
