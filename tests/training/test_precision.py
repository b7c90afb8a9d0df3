"""Training in 16 bits, and what a CPU cannot train in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from deformable_detr.errors import UserError
from deformable_detr.training import train
from deformable_detr.training.messages import opening_lines
from deformable_detr.training.parts import build_parts
from deformable_detr.training.precision import resolve_precision
from tests.support.tiny import (
    rows,
    tiny_config,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_bfloat16_after_float32(tiny_data: Path, tmp_path: Path) -> None:
    # In one Python session, which some libraries fix to one precision.
    train(tiny_data, tiny_config(max_steps=1), tmp_path / "fp32")
    train(tiny_data, tiny_config(max_steps=3, precision="bf16"), tmp_path / "bf16")
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "bf16", "train"))
    assert {value.dtype for value in weights(tmp_path / "bf16").values()} == {torch.float32}
    reference, rounded = (rows(tmp_path / name, "train")[0]["loss"] for name in ("fp32", "bf16"))
    assert rounded != reference
    assert rounded == pytest.approx(reference, rel=0.05)


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
        ("cpu", True, torch.float32),
        ("mps", True, torch.float32),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, device: str, has_bfloat16: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    assert resolve_precision("auto", torch.device(device)) == dtype
    assert resolve_precision("fp32", torch.device(device)) == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_formats_and_devices_that_need_a_gpu_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU: use bf16 or fp32"):
        train(tiny_data, tiny_config(precision="fp16"), tmp_path / "run")
    with pytest.raises(UserError, match="this machine has no device cuda"):
        train(tiny_data, tiny_config(), tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("precision", "has_bfloat16", "is_mentioned"),
    [("auto", True, True), ("auto", False, False), ("fp32", True, False)],
)
def test_the_log_mentions_a_faster_format(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    has_bfloat16: bool,
    is_mentioned: bool,
) -> None:
    monkeypatch.setattr("deformable_detr.training.messages.cpu_has_bfloat16", lambda: has_bfloat16)
    monkeypatch.setattr("deformable_detr.training.messages.native_available", lambda: True)
    run = build_parts(tiny_data, tiny_config(precision=precision), tmp_path / "run", device="cpu")
    assert any("--train.precision bf16" in line for line in opening_lines(run)) == is_mentioned
