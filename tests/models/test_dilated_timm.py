"""DC5 for timm's backbones: the last map at stride 16, with the same weights; refused where it cannot be."""

from __future__ import annotations

import pytest
import torch

from deformable_detr.config import BackboneConfig
from deformable_detr.errors import UserError
from deformable_detr.models.backbone import build_backbone


def test_the_last_map_keeps_stride_16() -> None:
    plain = build_backbone(BackboneConfig("test_efficientnet"), num_maps=2).eval()
    dilated = build_backbone(BackboneConfig("test_efficientnet", dilation=True), num_maps=2).eval()
    dilated.load_state_dict(plain.state_dict())
    pixels = torch.randn(1, 3, 64, 96)
    coarse, fine = plain(pixels), dilated(pixels)
    assert [m.shape[-2:] for m in coarse] == [(4, 6), (2, 3)]
    assert [m.shape[-2:] for m in fine] == [(4, 6), (4, 6)]
    torch.testing.assert_close(fine[0], coarse[0])


def test_a_backbone_that_cannot_dilate_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.backbone\.name: .*test_vit"):
        build_backbone(BackboneConfig("test_vit", dilation=True), num_maps=1)
