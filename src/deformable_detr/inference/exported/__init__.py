"""Exported files as a detector's backend: .onnx by ONNX Runtime, .xml by OpenVINO; no model is built.
What a detector must know besides (classes, preprocessing, …) is in the file's metadata.

A file may come from anyone: metadata is parsed strictly, sizes are bounded, nothing outside of the file is
read (but an .xml's .bin), and nothing in it is executed but the graph.

    model.py            ExportedModel, ExportedBackend; what is checked of every file and of every output
    metadata.py         description and certificate as text
    onnx_file.py openvino_file.py      one format each

A .pt2 file is written for other programs and never read: docs/decisions/0008-pt2-is-written-not-read.md.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...checkpoint.sources import EXPORTED as SUFFIXES
from ...errors import UserError
from .model import ExportedBackend, ExportedModel

__all__ = ["SUFFIXES", "ExportedBackend", "ExportedModel", "is_exported", "load"]


def is_exported(model: object) -> bool:
    """Whether MODEL names an exported file, by its suffix."""
    return (
        isinstance(model, str | Path)
        and Path(model).suffix.lower() in SUFFIXES
        and not Path(model).expanduser().is_dir()
    )


def load(
    path: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype | None = None
) -> ExportedModel:
    """Open an exported file. Engines take as many threads as `torch.get_num_threads()` says now.

    Raises:
        UserError: there is no such file, it is a .pt2, it was not made by `deformable-detr export`, it is
            damaged, what runs it is not installed, or `device` or `dtype` is another than the file's own.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"there is no file {path}: check the path of the exported model.")
    if path.suffix.lower() == ".pt2":
        raise UserError(
            f"{path} is a program of torch.export, which this package writes but does not read, because "
            "reading one can run code: give the run folder that it was exported from, or an exported .onnx "
            "or .xml."
        )
    if str(device) not in ("auto", "cpu"):
        raise UserError(
            f"{path} is an exported model, which runs on the CPU, not on {device}: leave the device out, or "
            "load the checkpoint that it was exported from."
        )
    if dtype not in (None, "fp32", torch.float32):
        raise UserError(
            f"{path} computes as it was exported, not in {dtype}: leave dtype out, or load the checkpoint "
            "that it was exported from."
        )
    if path.suffix.lower() == ".onnx":
        from .onnx_file import open_onnx

        return open_onnx(path)
    from .openvino_file import open_openvino

    return open_openvino(path)
