"""Training: the loop, the state that a run can resume from, and the settings that a run starts with."""

from .run import TrainingInterruptedError, resolve_config, train

__all__ = ["TrainingInterruptedError", "resolve_config", "train"]
