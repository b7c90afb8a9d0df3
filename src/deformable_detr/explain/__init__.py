"""Explanations of models: figures (paper, figures 5 and 6), interactive pages, verdicts on missed objects."""

from ..inference.trace_drawing import draw
from .commands import (
    Explained,
    print_missed,
    write_explanation,
    write_gradient,
    write_missed,
)
from .gradient import Gradients, draw_gradients, gradients
from .missed import MissedReport, Stage, Verdict, missed_objects, verdicts
from .page import explanation_page, page

__all__ = [
    "Explained",
    "Gradients",
    "MissedReport",
    "Stage",
    "Verdict",
    "draw",
    "draw_gradients",
    "explanation_page",
    "gradients",
    "missed_objects",
    "page",
    "print_missed",
    "verdicts",
    "write_explanation",
    "write_gradient",
    "write_missed",
]
