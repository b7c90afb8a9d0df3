"""The device on which, and the number format in which, a model computes."""

from __future__ import annotations

import torch

from ..errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that `device` names; `auto` means CUDA if there is a GPU, else the CPU.

    Raises:
        UserError: if `device` is not the name of a device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"this machine has no device {device}: use auto or cpu.") from error
    return chosen


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the PyTorch type in which a model computes; None means float32.

    Raises:
        UserError: if `dtype` is none of fp32, bf16 and fp16 (or of their PyTorch types), if it is fp16 on a
            CPU, or if it is bf16 on a CPU without instructions for it.
    """
    if dtype is None:
        return torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype}.")
    if device.type == "cpu" and chosen == torch.float16:
        raise UserError("dtype fp16 is for GPUs: use fp32 on a CPU, or bf16 if the CPU supports it.")
    if device.type == "cpu" and chosen == torch.bfloat16 and not cpu_has_bfloat16():
        raise UserError(
            "dtype bf16 would be slower than fp32 here: this CPU has no bfloat16 instructions (AVX512-BF16, "
            "AMX or Arm's); use fp32."
        )
    return chosen


def cpu_has_bfloat16() -> bool:
    """Return True if the CPU has instructions for products of bfloat16 matrices."""
    if not hasattr(torch.cpu, "get_capabilities"):  # as in torch 2.10
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return supported
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
