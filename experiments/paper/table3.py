"""Table 3: two stages on larger backbones.

The paper evaluates on COCO test-dev, whose annotations are not public. Here the val split of DATA is used.

    python -m experiments.paper table3 DATA --output runs/paper --epochs 0     sizes and costs, no training
    torchrun --nproc-per-node 8 -m deformable_detr train DATA --recipe deformable_detr_x101_dcn_two_stage …

The last row evaluates the model of the row before it with six views (tta.py): its multiply-adds are those of
all views. The command for a trained model is

    deformable-detr evaluate MODEL DATA --tta
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import yaml

from deformable_detr.cli.options import Parser
from deformable_detr.config import RunConfig, to_dict
from deformable_detr.data.formats import read_split
from deformable_detr.detections import ClassTable
from deformable_detr.evaluation import evaluate
from deformable_detr.files import write_text
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load
from deformable_detr.inference.tta import augmented, views_of
from deformable_detr.run_folder.names import CHECKPOINTS, LAST, METRICS_FILE, RUN_CONFIG_FILE

from . import published
from .flops import Size
from .rows import AP_NAMES, RecipeRow, Row, read_run, require_data
from .table import (
    AP_COLUMNS,
    COST_COLUMNS,
    add_table_arguments,
    make_table,
    options_of,
)


class AugmentedRow(RecipeRow):
    """A recipe with test-time augmentation. Its run folder holds only the evaluation.

    The evaluated run is that of the plain row, which is trained first if it is not finished.
    """

    @property
    def run_name(self) -> str:
        return self.name

    def train(self, data: Path, config: RunConfig, folder: Path, device: str) -> None:
        plain = folder.with_name(folder.name.replace(self.run_name, self.recipe, 1))
        run = read_run(plain)
        if run is not None:
            require_data(run, read_split(data, "val"))
        if run is None or not run.finished:
            super().train(data, config, plain, device)
        metrics = evaluate(load(plain / CHECKPOINTS / LAST, device), data, tta=True)
        row = {"kind": "evaluation", "epoch": config.train.epochs - 1, "step": 0}
        row |= {name: metrics[name] for name in AP_NAMES}
        write_text(folder / RUN_CONFIG_FILE, yaml.safe_dump(to_dict(config), sort_keys=False))
        write_text(folder / METRICS_FILE, json.dumps(row) + "\n")

    def multiply_adds(self, config: RunConfig, sizes: Sequence[Size]) -> float:
        one_view = super().multiply_adds
        return sum(one_view(config, _scaled(sizes, view.scale)) for view in views_of())

    def untrained(self, config: RunConfig, classes: ClassTable, device: str) -> Detector:
        return augmented(super().untrained(config, classes, device))


def _scaled(sizes: Sequence[Size], scale: float) -> list[Size]:
    return [(round(height * scale), round(width * scale)) for height, width in sizes]


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
    AugmentedRow(
        "ResNeXt-101 + DCN, test-time augmentation",
        "deformable_detr_x101_dcn_two_stage",
        50,
        published.X101_DCN_TTA_TEST_DEV,
        suffix="_tta",
    ),
)


def add_arguments(parser: Parser) -> None:
    add_table_arguments(parser, ROWS)


def run(arguments: Namespace) -> None:
    make_table(
        "table3",
        "Table 3: larger backbones, two stages",
        ROWS,
        AP_COLUMNS + COST_COLUMNS,
        options_of(arguments),
    )
