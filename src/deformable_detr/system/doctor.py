"""Report the versions, devices and kernels in use, and test deformable attention (the command `doctor`)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch

from .. import ops
from ..ops import fused_ms_deform_attn, ms_deform_attn
from .machine import cpu_quota, system, version_of
from .openmp import waiting_in_words

PACKAGES = (
    "deformable-detr",
    "torch",
    "torchvision",
    "triton",
    "timm",
    "faster-coco-eval",
    "supervision",
    "transformers",
    "onnxruntime",
    "openvino",
)


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        facts: the versions, devices and kernels by name.
        tests: the maximum error of each self-test by name; 0 means an exact result.
        healthy: True if all errors are below 1e-4.
    """

    facts: dict[str, str]
    tests: dict[str, float]
    healthy: bool


def diagnose() -> Diagnosis:
    """Inspect this machine, and compare both operators of deformable attention with a direct computation.

    The operators (`ms_deform_attn` and `fused_ms_deform_attn`) are tested on the CPU and on each CUDA device.
    """
    facts = {
        "python": platform.python_version(),
        "system": system(),
        "cpu": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "cpu quota": _quota_in_words(),
        "waiting threads": waiting_in_words(),
        "cuda": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        or "no CUDA device",
        "operator, CPU": ops.kernels()["cpu"],
        "operator, CUDA": ops.kernels()["cuda"],
        "operator, other devices": ops.kernels()["other"],
    }
    facts |= {package: version_of(package) or "not installed" for package in PACKAGES}
    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    tests = {name: error for device in devices for name, error in _errors(device).items()}
    return Diagnosis(facts, tests, healthy=all(error < 1e-4 for error in tests.values()))


def _quota_in_words() -> str:
    quota = cpu_quota()
    return "none" if quota is None else f"{quota:g} cores, from the control group (cgroup)"


SHAPES = ((5, 7), (3, 2))


def _case(device: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    B, Q, M, D, L, K = 2, 3, 2, 8, len(SHAPES), 4
    tokens = sum(height * width for height, width in SHAPES)
    return {
        "value": torch.randn(B, tokens, M, D, generator=generator).to(device),
        "reference": torch.rand(B, Q, L, 2, generator=generator).to(device),
        "offsets": (3 * torch.randn(B, Q, M, L, K, 2, generator=generator)).to(device),
        "logits": torch.randn(B, Q, M, L * K, generator=generator).to(device),
    }


def _direct(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the output (B, Q, M·D) of the paper's equation 3, computed without sampling code.

    The weight of a pixel in a bilinear sample is a tent function of its distance from the sample.

    Args:
        value: (B, S, M, D) for B images, the S pixels of all levels, M heads and D channels per head.
        locations: (B, Q, M, L, K, 2), x and y in [0, 1] of K sampling points on each of L levels, for each of
            Q queries.
        weights: (B, Q, M, L, K), the attention weights of these points.
    """
    outputs, start = torch.zeros(()), 0
    for level, (height, width) in enumerate(SHAPES):
        pixels = value[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        x = locations[..., level, :, 0] * width - 0.5  # (B, Q, M, K)
        y = locations[..., level, :, 1] * height - 0.5
        tent_x = (1 - (x[..., None] - torch.arange(width, device=x.device)).abs()).clamp(min=0)
        tent_y = (1 - (y[..., None] - torch.arange(height, device=y.device)).abs()).clamp(min=0)
        outputs = outputs + torch.einsum(
            "bqmk,bqmkh,bqmkw,bhwmd->bqmd", weights[..., level, :], tent_y, tent_x, pixels
        )
    return outputs.flatten(2)


def _errors(device: str) -> dict[str, float]:
    """Return, by the name of the test, each operator's largest error on `device`."""
    case = _case(device)
    value, reference, offsets, logits = case["value"], case["reference"], case["offsets"], case["logits"]
    sizes = torch.tensor([(width, height) for height, width in SHAPES], device=device)
    locations = reference[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.softmax(-1).view(offsets.shape[:-1])
    expected = _direct(value, locations, weights)
    outputs = {
        f"operator, {device}": ms_deform_attn(value, SHAPES, locations, weights),
        f"fused operator, {device}": fused_ms_deform_attn(value, SHAPES, reference, offsets, logits),
    }
    return {name: float((output - expected).abs().max()) for name, output in outputs.items()}
