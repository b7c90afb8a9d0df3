"""Small exported files: a graph whose answer is easy to compute by hand, in both formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deformable_detr.checkpoint import Description
from deformable_detr.detections import ClassTable
from deformable_detr.exporter.formats import OnnxDraft, OpenVinoDraft
from deformable_detr.inference.exported.metadata import Metadata
from tests.support.tiny import tiny_config

CLASSES = ClassTable(("circle", "square"), (5, 3))

GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
toy (float[batch,3,height,width] pixels, bool[batch,height,width] mask)
    => (float[batch,2,2] logits, float[batch,2,4] boxes_cxcywh)
<int64[2] of_pixels = {2, 3}, int64[2] of_mask = {1, 2}, int64[1] zero = {0}, int64[1] one = {1},
 int64[1] two = {2}, float[1,2,4] boxes = {0.3, 0.4, 0.2, 0.1, 0.6, 0.5, 0.3, 0.4}>
{
    means = ReduceMean <keepdims = 0> (pixels, of_pixels)
    first = Slice (means, zero, two, one)
    row = Unsqueeze (first, one)
    opposite = Neg (row)
    logits = Concat <axis = 1> (row, opposite)
    numbers = Cast <to = 1> (mask)
    padding = ReduceMean <keepdims = 1> (numbers, of_mask)
    boxes_cxcywh = Sub (boxes, padding)
}
"""


class Toy(nn.Module):
    """A model that computes the same as `GRAPH`: two queries, whose logits are the means of red and green and
    their negatives, and whose boxes are two constants minus the padded share of the picture.
    """

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        row = pixels.mean((2, 3))[:, None, :2]
        boxes = torch.tensor([[[0.3, 0.4, 0.2, 0.1], [0.6, 0.5, 0.3, 0.4]]])
        return torch.cat([row, -row], dim=1), boxes - mask.float().mean((1, 2))[:, None, None]


def toy_description() -> Description:
    config = tiny_config(num_queries=2, num_classes=2)
    data = replace(config.data, image_size=32, max_size=64)
    return Description(config.model, CLASSES, data, config.recipe)


def write_toy(
    path: Path,
    certificate: dict[str, Any] | None = None,
    graph: str = GRAPH,
    description: Description | None = None,
) -> Path:
    """Write a file in the format of its suffix."""
    texts = Metadata(description or toy_description(), certificate).to_texts()
    import onnx.parser

    draft = OnnxDraft(onnx.parser.parse_model(graph))
    (draft if path.suffix == ".onnx" else OpenVinoDraft(draft)).save(path, texts)
    return path
