"""Table 2: what multi-scale inputs, multi-scale attention, the number of points K and a pyramid neck add.

    python -m experiments.paper table2 DATA --output runs/paper [--scale small] [--rows …] [--epochs 12]

With multi-scale inputs but without multi-scale attention, each query samples only its own level
(`OwnLevelAttention` in models/attention.py).
"""

from __future__ import annotations

from argparse import Namespace

from deformable_detr.cli.options import Parser

from . import published
from .rows import RecipeRow, Row
from .table import (
    AP_COLUMNS,
    COST_COLUMNS,
    add_table_arguments,
    make_table,
    options_of,
)

ROWS: tuple[Row, ...] = (
    RecipeRow("MS inputs, MS attention, K = 4, FPN", "deformable_detr_r50_fpn", 50, published.FPN),
    RecipeRow("MS inputs, MS attention, K = 4, BiFPN", "deformable_detr_r50_bifpn", 50, published.BIFPN),
    RecipeRow(
        "one level, K = 1",
        "deformable_detr_r50_single_scale_k1",
        50,
        published.SINGLE_SCALE_K1,
    ),
    RecipeRow("MS inputs, K = 1", "deformable_detr_r50_own_level_k1", 50, published.OWN_LEVEL_K1),
    RecipeRow("MS inputs, K = 4", "deformable_detr_r50_own_level", 50, published.OWN_LEVEL_K4),
    RecipeRow("MS inputs, MS attention, K = 4", "deformable_detr_r50", 50, published.MULTI_SCALE_K4),
)


def add_arguments(parser: Parser) -> None:
    add_table_arguments(parser, ROWS)


def run(arguments: Namespace) -> None:
    make_table(
        "table2",
        "Table 2: ablations of deformable attention",
        ROWS,
        AP_COLUMNS + COST_COLUMNS,
        options_of(arguments),
    )
