"""Exported files as backends of a detector, without a PyTorch model.

ONNX Runtime runs .onnx files, and OpenVINO runs .xml files. The detector's other settings (classes,
preprocessing, …) are in the file's metadata.

A file may come from anyone: metadata is parsed strictly, sizes are limited, no other file is read (except the
.bin of an .xml), and only the graph is executed.

    model.py            ExportedModel, ExportedBackend, and the checks of every file and every output
    metadata.py         description and certificate as text
    onnx_file.py, openvino_file.py     the two formats

A .pt2 file is written for other programs and never read: docs/decisions/0008-pt2-is-written-not-read.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.names import EXPORTED as SUFFIXES
from ...errors import UserError
from .model import ExportedBackend, ExportedModel

if TYPE_CHECKING:
    import torch

__all__ = ["SUFFIXES", "ExportedBackend", "ExportedModel", "is_exported", "load"]


def is_exported(model: object) -> bool:
    """Return True if `model` is a path with the suffix .onnx, .xml or .pt2, and not a folder."""
    return (
        isinstance(model, str | Path)
        and Path(model).suffix.lower() in SUFFIXES
        and not Path(model).expanduser().is_dir()
    )


def load(
    path: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype | None = None
) -> ExportedModel:
    """Open an exported file.

    If PyTorch is imported, the engine uses as many threads as `torch.get_num_threads()` returns during this
    call. Otherwise it uses OMP_NUM_THREADS threads or, without this variable, one for each core that the
    process may use.

    Raises:
        UserError: if there is no such file, it is a .pt2, it was not written by `deformable-detr export`, it
            is damaged or larger than 2 GiB, the .bin of an .xml is missing, its engine is not installed,
            `device` is not the CPU (or `auto`), or `dtype` is not float32 (or None).
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
    if dtype is not None and str(dtype) not in ("fp32", "torch.float32"):
        raise UserError(
            f"{path} computes as it was exported, not in {dtype}: leave dtype out, or load the checkpoint "
            "that it was exported from."
        )
    if path.suffix.lower() == ".onnx":
        from .onnx_file import open_onnx

        return open_onnx(path)
    from .openvino_file import open_openvino

    return open_openvino(path)
