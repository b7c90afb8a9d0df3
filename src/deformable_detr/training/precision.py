"""The number format of the computations in training: float32, or a 16-bit type under autocast."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..inference.devices import DTYPES


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type for `train.precision` on a device.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`, which is bfloat16 on a GPU that supports it and float32
            otherwise.
        device: the device that trains.

    Raises:
        UserError: if `precision` is `fp16` and the device is a CPU.
    """
    if precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise UserError("train.precision: fp16 needs a GPU: use bf16 or fp32 on a CPU.")
    return DTYPES[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which forward passes run; it changes nothing if `dtype` is float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def gradient_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Return a scaler that keeps float16 gradients from vanishing; it does nothing for other types."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
