"""Numbers of parameters that tests expect, in one place: specification §9.1, §12.1, with COCO's 91 logits."""

from __future__ import annotations

# recipe: all parameters, and those that learn
PARAMETERS = {
    "detr_r50": (41_524_768, 41_302_368),
    "detr_r50_dc5": (41_524_768, 41_302_368),
    "detr_r101": (60_464_672, 60_242_272),
    "deformable_detr_r50_single_scale": (34_066_593, 33_844_193),
    "deformable_detr_r50_single_scale_dc5": (34_066_593, 33_844_193),
    "deformable_detr_r50": (40_069_665, 39_847_265),
    "deformable_detr_r50_refine": (40_849_660, 40_627_260),
    "deformable_detr_r50_two_stage": (41_181_529, 40_959_129),
    "deformable_detr_r50_plus": (47_562_073, 47_339_673),
    "deformable_detr_r50_plus_routes": (47_562_073, 47_339_673),
    "deformable_detr_r101_two_stage": (60_121_433, 59_899_033),
}
