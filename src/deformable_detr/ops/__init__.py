"""The operators: multi-scale deformable attention."""

from .ms_deform_attn import fused_ms_deform_attn, ms_deform_attn
from .native import NativeOperatorMissing, kernels, native_available

__all__ = ["NativeOperatorMissing", "fused_ms_deform_attn", "kernels", "ms_deform_attn", "native_available"]
