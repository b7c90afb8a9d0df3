"""Quantise to int8 with ONNX Runtime's static quantisation, which is calibrated on pictures.

Weights are quantised per channel. The graph contains pairs of QuantizeLinear and DequantizeLinear (QDQ),
which OpenVINO also supports.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..inference.detector import Detector
from ..inference.exported.metadata import INPUTS
from ..inference.exported.model import engine
from ..inference.pictures import read_picture
from .formats import OnnxDraft, quietly

MAX_CALIBRATION = 32  # pictures; more make hardly any difference
QUANTISED = ["Conv"]  # most of the arithmetic, at little loss of accuracy


def quantised(draft: OnnxDraft, detector: Detector, files: Sequence[Path], console: Console) -> OnnxDraft:
    """Return a copy of a graph whose convolutions compute in int8.

    Args:
        files: the pictures for calibration, of which at most MAX_CALIBRATION are used.

    Raises:
        UserError: if a calibration picture cannot be read, or a library of the extra [export] is missing.
    """
    onnx, quantization = engine("onnx"), engine("onnxruntime.quantization")
    chosen = files[:: max(1, len(files) // MAX_CALIBRATION)][:MAX_CALIBRATION]
    console.print(f"calibrating int8 on {len(chosen)} pictures …")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self._batches = _batches(detector, chosen)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, quietly():
        plain, small = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        draft.save(plain, {})
        quantization.quantize_static(
            plain,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return OnnxDraft(onnx.load_model(small))


def _batches(detector: Detector, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        pixels = detector.preprocess(read_picture(file, detector.data.max_pixels))[None]
        mask = torch.zeros(1, *pixels.shape[2:], dtype=torch.bool)
        yield dict(zip(INPUTS, (pixels.numpy(), mask.numpy()), strict=True))
