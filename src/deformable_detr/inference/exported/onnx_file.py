"""ONNX files, which ONNX Runtime runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .metadata import INPUTS, OUTPUTS, Metadata
from .model import (
    ExportedBackend,
    ExportedModel,
    check_size,
    engine,
    reading,
    threads,
)


def open_onnx(path: Path) -> ExportedModel:
    """Open an .onnx file.

    Raises:
        UserError: if this package did not write the file, the file is damaged or larger than 2 GiB, it needs
            data from other files, or a library of the extra [export] is missing.
    """
    onnx, onnxruntime = engine("onnx"), engine("onnxruntime")
    check_size(path)
    content = path.read_bytes()
    with reading(path):
        model = onnx.load_model_from_string(content)
    _check_graph(model, onnx.TensorProto, path)
    metadata = Metadata.from_texts({entry.key: entry.value for entry in model.metadata_props}, path)
    # ONNX Runtime has its own parser, which may parse the file's bytes differently. Therefore it gets the
    # message that was checked.
    model.DiscardUnknownFields()
    checked = model.SerializeToString()
    del model, content
    return ExportedModel(path, metadata, OnnxBackend(path, metadata, checked, onnxruntime))


def _check_graph(model: Any, tensor_type: Any, path: Path) -> None:
    """Raise a `UserError` if a graph needs other files or has operators that are not ONNX's own.

    This package's exports contain their weights and use only ONNX's operators. A file from another source
    could name any file on this machine as its weights, or use operators that read files.
    """
    for message in _messages(model):
        kind = message.DESCRIPTOR.name
        if kind == "TensorProto" and (message.external_data or message.data_location == tensor_type.EXTERNAL):
            raise UserError(
                f"{path} needs weights from other files, which are not read: export the model again."
            )
        if kind in ("NodeProto", "OperatorSetIdProto") and message.domain not in ("", "ai.onnx"):
            raise UserError(
                f"{path} has operators of {message.domain!r:.60}, not only ONNX's own: export the model "
                "again with `deformable-detr export`."
            )


def _messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and, recursively, all messages in its fields."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in (value,) if hasattr(value, "ListFields") else value:
                yield from _messages(each)


class OnnxBackend(ExportedBackend):
    """A backend that runs the graph of an .onnx file with ONNX Runtime on the CPU."""

    def __init__(self, path: Path, metadata: Metadata, content: bytes, onnxruntime: Any):
        super().__init__(path, metadata.description)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads(), 1
        options.log_severity_level = 3  # errors; they are raised as well
        with reading(path):
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        inputs = tuple(sorted(each.name for each in self._session.get_inputs()))
        outputs = {each.name for each in self._session.get_outputs()}
        if inputs != tuple(sorted(INPUTS)) or not outputs.issuperset(OUTPUTS):
            raise UserError(f"{path} has the inputs {', '.join(inputs)}: it was changed, export it again.")

    def _run(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, boxes = self._session.run(list(OUTPUTS), dict(zip(INPUTS, (pixels, mask), strict=True)))
        return logits, boxes
