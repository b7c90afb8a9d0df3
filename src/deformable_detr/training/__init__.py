"""Training: the loop, the state that a run can resume from, and the settings that a run starts with."""

from .run import resolve_config, train

__all__ = ["resolve_config", "train"]
