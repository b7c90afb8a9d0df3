"""The set loss: assigners of queries to objects, and the criterion (paper, section 3).

assignment.py   the base classes of all assigners
matcher.py      the Hungarian matcher
assigners.py    assigners that give an object several queries
stages.py       the predictions that have losses
criterion.py    the losses
"""

from .assigners import Known, QualityAssigner, Repeated
from .assignment import Assigner, Match
from .criterion import Losses, SetCriterion
from .matcher import HungarianMatcher
from .stages import Stage, objects_only, stages_of

__all__ = [
    "Assigner",
    "HungarianMatcher",
    "Known",
    "Losses",
    "Match",
    "QualityAssigner",
    "Repeated",
    "SetCriterion",
    "Stage",
    "objects_only",
    "stages_of",
]
