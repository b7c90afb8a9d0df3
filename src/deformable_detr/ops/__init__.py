"""The operators: multi-scale deformable attention and deformable convolution."""

from .deform_conv import DeformConv2d
from .ms_deform_attn import fused_ms_deform_attn, ms_deform_attn
from .native import NativeOperatorMissing, kernels, native_available
from .patch import patch

__all__ = [
    "DeformConv2d",
    "NativeOperatorMissing",
    "fused_ms_deform_attn",
    "kernels",
    "ms_deform_attn",
    "native_available",
    "patch",
]
