"""Multi-scale deformable attention in plain PyTorch, which defines the operator and runs on any device.

Paper: section 4.1, equations 2 and 3. Letters: B batch, S value tokens, M heads, D head dimension,
Q queries, L levels, K points per level (K_l if levels differ), P = Σ K_l points of one head and query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Return weighted sums of bilinear samples, computed level by level with `grid_sample`.

    Pixels outside a level count as zeros, and a location that is not finite is outside. The computation uses
    the dtype of the locations. 16-bit values need float32 locations, because a location in bfloat16 may be
    off by half a pixel.

    Args:
        value: (B, S, M, D), for B images, S tokens of all levels, M heads and D channels per head.
        spatial_shapes: ((H, W), ...), one pair per level.
        sampling_locations: (B, Q, M, P, 2), (x, y) as fractions of the padded level, for Q queries and P
            points of a head, sorted by level.
        attention_weights: (B, Q, M, P).
        points_per_level: (K_0, ...), the number of points on each level, with the sum P.

    Returns:
        (B, Q, M·D), in the dtype of `value`.
    """
    B, _, M, D = value.shape
    Q, P = sampling_locations.shape[1], sampling_locations.shape[3]
    # Every point that can touch a pixel is in [-0.5, 1.5]; the bounds -1 and 2 are certainly outside. With
    # them, no NaN, infinity or 1e30 reaches the float-to-integer conversion inside grid_sample.
    locations = torch.nan_to_num(sampling_locations, nan=-1.0, posinf=2.0, neginf=-1.0).clamp(-1.0, 2.0)
    grids = (2 * locations - 1).transpose(1, 2).reshape(B * M, Q, P, 2)
    tokens_per_level = [height * width for height, width in spatial_shapes]

    samples = []
    for level_value, (height, width), level_grid in zip(
        value.split(tokens_per_level, dim=1),
        spatial_shapes,
        grids.split(list(points_per_level), dim=2),
        strict=True,
    ):
        level_map = level_value.permute(0, 2, 3, 1).reshape(B * M, D, height, width).to(locations.dtype)
        samples.append(
            F.grid_sample(
                level_map,
                level_grid,
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # (B*M, D, Q, K_l)
        )
    weights = attention_weights.transpose(1, 2).reshape(B * M, 1, Q, P)
    output = (torch.cat(samples, dim=-1) * weights).sum(-1)  # (B*M, D, Q)
    return output.view(B, M * D, Q).transpose(1, 2).to(value.dtype)


def sampling_locations_of(
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    sampling_offsets: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Add offsets (B, Q, M, P, 2) to references (B, Q, L, 2 or 4), and return locations (B, Q, M, P, 2).

    The tensors belong to B images, Q queries, M heads, L levels and P points of a head, K of them on a level
    (`points_per_level`). References and locations are fractions of the padded levels. Offsets from a
    reference point are in pixels of the level. Offsets from a reference box are in half box sides divided by
    K (specification §3.1), so that the initial points are inside the box.
    """
    levels = torch.tensor(
        [level for level, points in enumerate(points_per_level) for _ in range(points)],
        device=reference.device,
    )
    per_point = reference[:, :, None, levels]  # (B, Q, 1, P, 2|4)
    if reference.shape[-1] == 2:
        sizes = sampling_offsets.new_tensor([(width, height) for height, width in spatial_shapes])
        return per_point + sampling_offsets / sizes[levels]
    points = sampling_offsets.new_tensor(list(points_per_level))[levels, None]
    return per_point[..., :2] + sampling_offsets / points * per_point[..., 2:] * 0.5


def fused_ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    points_per_level: Sequence[int],
) -> Tensor:
    """Return the result of `ms_deform_attn_reference`, computed from references, offsets and logits.

    The references are (B, Q, L, 2 or 4) and the offsets (B, Q, M, P, 2), as in `sampling_locations_of`. The
    weights are the softmax of the logits (B, Q, M, P) over the P points of a head.
    """
    locations = sampling_locations_of(spatial_shapes, reference, sampling_offsets, points_per_level)
    return ms_deform_attn_reference(
        value, spatial_shapes, locations, attention_logits.softmax(-1), points_per_level
    )
