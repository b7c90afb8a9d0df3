"""Every family, exported for real: one file, at several sizes and batches that it was not traced with, padded
and not, both ways up (slow: tracing a multi-scale model takes a minute)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from deformable_detr.checkpoint import Description
from deformable_detr.exporter.formats import OnnxDraft, OpenVinoDraft, TorchDraft
from deformable_detr.inference.backend import Backend
from deformable_detr.inference.exported import load
from deformable_detr.inference.exported.metadata import Metadata
from deformable_detr.models import DetectionModel
from deformable_detr.models.queries import ProposalQueries
from deformable_detr.structures import ImageBatch
from tests.support.matching import in_the_order_of
from tests.support.small_models import random_checkpoint, small_config

pytestmark = pytest.mark.slow
for name in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(name)

FAMILIES = (
    ("detr_r50", "grid_sample"),
    ("deformable_detr_r50_single_scale", "grid_sample"),
    ("deformable_detr_r50", "grid_sample"),
    ("deformable_detr_r50", "gather"),
    ("deformable_detr_r50_refine", "gather"),
    ("deformable_detr_r50_two_stage", "grid_sample"),
    ("deformable_detr_r50_own_level", "grid_sample"),
    ("deformable_detr_r50_bifpn", "grid_sample"),
    ("deformable_detr_lite", "grid_sample"),
    ("deformable_detr_lite", "gather"),
)
SIZES = ((1, 480, 640), (2, 333, 217), (1, 97, 130), (3, 161, 160), (1, 64, 64))


def made(recipe: str) -> tuple[DetectionModel, dict[str, str]]:
    checkpoint = random_checkpoint(small_config(recipe))
    known: Description = replace(checkpoint.description, recipe=recipe)
    return checkpoint.model.eval(), Metadata(known, None).to_texts()


# Here a level takes a row on the edge of the padding, or its neighbour where the ratio is rounded otherwise.
ON_THE_EDGE = ((135, 160), (120, 135))


def check(backend: Backend, model: DetectionModel) -> None:
    batches = [[(H - 19 * i, W - 7 * i) for i in range(B)] for B, H, W in SIZES]
    for sizes in (*batches, ON_THE_EDGE):
        generator = torch.Generator().manual_seed(sizes[0][0])
        images = ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])
        with torch.no_grad():
            wanted = model(images).predictions[-1]
        found = backend(images)
        if isinstance(model.queries, ProposalQueries):
            found = in_the_order_of(wanted, found)
        torch.testing.assert_close(found.logits, wanted.logits, atol=2e-4, rtol=0)
        torch.testing.assert_close(found.boxes_cxcywh, wanted.boxes_cxcywh, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("recipe", "operator"), FAMILIES)
def test_onnx_runtime_and_openvino(
    recipe: str, operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decompose = Mock(side_effect=AssertionError("decomposing takes longer than the rest of the export"))
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", decompose)
    model, texts = made(recipe)
    draft = OnnxDraft.from_model(model, operator)
    kinds = {node.op_type for node in draft.proto.graph.node}
    assert ("GridSample" in kinds) == (operator == "grid_sample" and recipe != "detr_r50")
    OpenVinoDraft(draft).save(tmp_path / "model.xml", texts)
    check(load(tmp_path / "model.xml").backend, model)
    draft.save(tmp_path / "model.onnx", texts)
    check(load(tmp_path / "model.onnx").backend, model)


@pytest.mark.parametrize("operator", ["native", "grid_sample"])
@pytest.mark.parametrize("recipe", ["detr_r50", "deformable_detr_r50_two_stage", "deformable_detr_lite"])
def test_torch(recipe: str, operator: str, tmp_path: Path) -> None:
    model, texts = made(recipe)
    draft = TorchDraft(model, operator)
    draft.save(tmp_path / "model.pt2", texts)
    check(draft.open(tmp_path / "model.pt2").backend, model)
