"""Table 3: two stages on larger backbones (COCO test-dev, whose annotations are not public: `DATA` has val).

    deformable-detr paper table3 DATA --output runs/paper --epochs 0     sizes and costs, no training
    torchrun --nproc-per-node 8 -m deformable_detr train DATA --recipe deformable_detr_x101_dcn_two_stage …

The last row of the published table (52.3 AP) adds test-time augmentation, which this package does not have.
"""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from . import published
from .rows import RecipeRow, Row
from .table import AP_COLUMNS, COST_COLUMNS, add_table_arguments, make_table, options_of

ROWS: tuple[Row, ...] = (
    RecipeRow("ResNet-50", "deformable_detr_r50_two_stage", 50, published.R50_TEST_DEV),
    RecipeRow("ResNet-101", "deformable_detr_r101_two_stage", 50, published.R101_TEST_DEV),
    RecipeRow("ResNeXt-101", "deformable_detr_x101_two_stage", 50, published.X101_TEST_DEV),
    RecipeRow(
        "ResNeXt-101 + DCN",
        "deformable_detr_x101_dcn_two_stage",
        50,
        published.X101_DCN_TEST_DEV,
    ),
)


def add_arguments(parser: ArgumentParser) -> None:
    add_table_arguments(parser, ROWS)


def run(arguments: Namespace) -> None:
    make_table(
        "table3",
        "Table 3: larger backbones, two stages",
        ROWS,
        AP_COLUMNS + COST_COLUMNS,
        options_of(arguments),
    )
