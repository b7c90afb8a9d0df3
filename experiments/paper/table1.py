"""Table 1: Deformable DETR against DETR and Faster R-CNN on COCO val2017, and the repository's rows with one
feature level.

    python -m experiments.paper table1 DATA --output runs/paper [--scale small] [--rows …] [--epochs 12]
"""

from __future__ import annotations

from argparse import Namespace

from deformable_detr.cli.options import Parser

from . import published
from .faster_rcnn import FasterRcnnRow
from .rows import RecipeRow, Row
from .table import (
    AP_COLUMNS,
    COST_COLUMNS,
    TIME_COLUMNS,
    add_table_arguments,
    make_table,
    options_of,
)

ROWS: tuple[Row, ...] = (
    FasterRcnnRow("Faster R-CNN + FPN", "faster_rcnn_r50_fpn", 109, published.FASTER_RCNN),
    RecipeRow("DETR", "detr_r50", 500, published.DETR_500),
    RecipeRow("DETR-DC5", "detr_r50_dc5", 500, published.DETR_DC5_500),
    RecipeRow("DETR-DC5", "detr_r50_dc5", 50, published.DETR_DC5_50, suffix="_50_epochs"),
    RecipeRow("DETR-DC5+", "detr_r50_dc5_plus", 50, published.DETR_DC5_PLUS_50),
    RecipeRow("Deformable DETR", "deformable_detr_r50", 50, published.DEFORMABLE_50),
    RecipeRow("+ iterative refinement", "deformable_detr_r50_refine", 50, published.REFINE_50),
    RecipeRow("++ two-stage", "deformable_detr_r50_two_stage", 50, published.TWO_STAGE_50),
    RecipeRow("single scale", "deformable_detr_r50_single_scale", 50, published.SINGLE_SCALE_50),
    RecipeRow(
        "single scale, DC5",
        "deformable_detr_r50_single_scale_dc5",
        50,
        published.SINGLE_SCALE_DC5_50,
    ),
)


def add_arguments(parser: Parser) -> None:
    add_table_arguments(parser, ROWS)


def run(arguments: Namespace) -> None:
    make_table(
        "table1",
        "Table 1: Deformable DETR and its peers",
        ROWS,
        AP_COLUMNS + COST_COLUMNS + TIME_COLUMNS,
        options_of(arguments),
    )
