"""The set loss: the Hungarian matcher and the criterion (paper, section 3)."""

from .criterion import Losses, SetCriterion
from .matcher import HungarianMatcher, Match

__all__ = ["HungarianMatcher", "Losses", "Match", "SetCriterion"]
