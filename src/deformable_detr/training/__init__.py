"""Training: the loop, the state from which a run resumes, and the settings with which a run starts."""

from .run import train
from .settings import resolve_config

__all__ = ["resolve_config", "train"]
