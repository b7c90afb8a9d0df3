"""A program of torch.export (.pt2), run by PyTorch: the graph alone, without the model's classes.

The package's own operator may be in it: then the file runs wherever this package is installed with it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...errors import UserError
from .metadata import Metadata
from .model import ExportedBackend, ExportedModel, check_size, reading
from .screening import screen


def open_torch(path: Path) -> ExportedModel:
    """Raises `UserError` where the file is not ours or is damaged, or needs an operator that is not here."""
    check_size(path)
    metadata = Metadata.from_texts(screen(path), path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    if not ops.native_available() and any(
        str(node.target).startswith("deformable_detr.") for node in program.graph.nodes
    ):
        raise UserError(
            f"{path} was exported with --operator native, which is missing here ({ops.kernels()['cpu']}): "
            "install a wheel of deformable-detr, or export with --operator grid_sample."
        )
    with reading(path):
        # The guards would refuse pictures whose coarsest level has one row, and are code from the file.
        module = program.module(check_guards=False)
    return ExportedModel(path, metadata, TorchProgramBackend(path, metadata, module))


class TorchProgramBackend(ExportedBackend):
    def __init__(self, path: Path, metadata: Metadata, module: Any):
        super().__init__(path, metadata.description)
        self._module = module

    def _run(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            logits, boxes = self._module(pixels, mask)
        return logits, boxes
