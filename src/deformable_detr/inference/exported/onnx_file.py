"""ONNX by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    """Raises `UserError` where the file is not one of ours, is damaged, or wants data from other files."""
    onnx, onnxruntime = engine("onnx"), engine("onnxruntime")
    check_size(path)
    content = path.read_bytes()
    with reading(path):
        model = onnx.load_model_from_string(content)
    # Our exports hold their weights. Somebody else's could name any file of this machine as their data.
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise UserError(f"{path} wants weights from other files, which is not read: export the model again.")
    metadata = Metadata.from_texts({entry.key: entry.value for entry in model.metadata_props}, path)
    del model
    return ExportedModel(path, metadata, OnnxBackend(path, metadata, content, onnxruntime))


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of a graph, its nodes' and its subgraphs'."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for each in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (each.values, each.indices)
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)


class OnnxBackend(ExportedBackend):
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

    def _run(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(INPUTS, (pixels.numpy(), mask.numpy()), strict=True))
        logits, boxes = self._session.run(list(OUTPUTS), given)
        return torch.from_numpy(logits), torch.from_numpy(boxes)
