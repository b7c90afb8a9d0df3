"""The three export formats. Each is a traced model that can be saved with metadata and opened again."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import Description
from ..errors import UserError
from ..inference import exported
from ..inference.exported import ExportedBackend, ExportedModel
from ..inference.exported.metadata import CERTIFICATE, DESCRIPTION, Metadata
from ..inference.exported.model import engine
from ..models import DetectionModel
from .graph import traced
from .translation import translated

OPERATORS = {
    "onnx": ("grid_sample", "gather"),
    "openvino": ("grid_sample", "gather"),
    "torch": ("native", "grid_sample", "gather"),
}
LIBRARIES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}
_AXES = {"pixels": ("batch", None, "height", "width"), "mask": ("batch", "height", "width")}
REMARKS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


class Draft(ABC):
    """An exported graph that has not been written to a file yet."""

    @abstractmethod
    def save(self, path: Path, texts: Mapping[str, str]) -> None:
        """Write the graph to `path`, with the strings `texts`, by name, as its metadata.

        OpenVINO also writes a .bin file next to the .xml file `path`.
        """

    def open(self, path: Path) -> ExportedModel:
        """Open the file that `save` wrote to `path`, to compare it with the PyTorch model."""
        return exported.load(path)


class OnnxDraft(Draft):
    """An ONNX graph of standard operators with all weights, but without file paths of this machine."""

    def __init__(self, proto: Any):
        self.proto = proto

    @classmethod
    def from_model(cls, model: DetectionModel, operator: str) -> OnnxDraft:
        """Trace a model and convert it to ONNX.

        `operator` is the way in which deformable attention samples, `grid_sample` or `gather`.

        Raises:
            UserError: if the model needs operators that ONNX does not have, or a library is not installed.
        """
        with torch.no_grad(), quietly():
            program = translated(traced(model, "onnx_grid_sample" if operator == "grid_sample" else operator))
        proto = program.model_proto
        foreign = sorted({node.domain for node in proto.graph.node} - {"", "ai.onnx"})
        if foreign:
            raise UserError(
                f"this model needs operators that are not ONNX's own ({', '.join(foreign)}): export it with "
                "--to torch."
            )
        _tidy(proto)
        return cls(proto)

    def save(self, path: Path, texts: Mapping[str, str]) -> None:
        onnx = engine("onnx")
        onnx.helper.set_model_props(self.proto, dict(texts))
        onnx.save_model(self.proto, path)


def _tidy(proto: Any) -> None:
    """Name the dynamic axes of an ONNX model, and remove inferred shapes and torch's remarks.

    The remarks contain stack traces and file paths.
    """
    for tensor in proto.graph.input:
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, _AXES[tensor.name], strict=True):
            if name is not None:
                dimension.dim_param = name
    for tensor in proto.graph.output:
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:], proto.metadata_props[:], proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        del part.metadata_props[:]


class OpenVinoDraft(Draft):
    """OpenVINO's conversion of an ONNX graph. Its weights are not compressed to float16."""

    def __init__(self, onnx_draft: OnnxDraft):
        openvino = engine("openvino")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            onnx_draft.save(file, {})
            self.model = openvino.convert_model(file)

    def save(self, path: Path, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self.model.set_rt_info(text, [name])
        engine("openvino").save_model(self.model, path, compress_to_fp16=False)


class TorchDraft(Draft):
    """A program of torch.export without example inputs and without the metadata on each node's origin.

    The program is serialised once, and loaded once for all checks, because both take many seconds. A .pt2
    file is a zip archive, so `save` only adds its texts to a copy of the serialised program.
    """

    def __init__(self, model: DetectionModel, operator: str):
        program = traced(model, operator)
        for node in program.graph.nodes:
            for remark in REMARKS:
                node.meta.pop(remark, None)
        program.example_inputs = None
        # Tracing demands two rows and columns of the coarsest level, but the graph also computes one.
        for size, limits in program.range_constraints.items():
            program.range_constraints[size] = type(limits)(2, limits.upper)
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, buffer)
        self._program = buffer.getvalue()
        self._saved = b""

    def save(self, path: Path, texts: Mapping[str, str]) -> None:
        buffer = io.BytesIO(self._program)
        with zipfile.ZipFile(buffer, "a") as archive:
            folder = archive.namelist()[0].partition("/")[0]
            for name, text in texts.items():
                archive.writestr(zipfile.ZipInfo(f"{folder}/extra/{name}"), text)
        self._saved = buffer.getvalue()
        path.write_bytes(self._saved)

    def open(self, path: Path) -> ExportedModel:
        """Open the program and the metadata that `save` wrote, from memory.

        The file `path` is not read, because it could have been replaced since, and `torch.export.load` runs
        code that its file contains.
        """
        with zipfile.ZipFile(io.BytesIO(self._saved)) as archive:
            inside = {name.partition("/")[2]: name for name in archive.namelist()}
            texts = {
                name: archive.read(inside[f"extra/{name}"]).decode()
                for name in (DESCRIPTION, CERTIFICATE)
                if f"extra/{name}" in inside
            }
        metadata = Metadata.from_texts(texts, path)
        return ExportedModel(path, metadata, ProgramBackend(path, metadata.description, self._module))

    @cached_property
    def _module(self) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.export.load(io.BytesIO(self._program))
        # The guards would reject pictures whose coarsest level has one row or column.
        return loaded.module(check_guards=False)


class ProgramBackend(ExportedBackend):
    """A backend that runs the graph of a .pt2 file in PyTorch."""

    def __init__(self, path: Path, description: Description, module: nn.Module):
        super().__init__(path, description)
        self._module = module

    def _run(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, boxes = self._module(torch.from_numpy(pixels), torch.from_numpy(mask))
        return logits.numpy(), boxes.numpy()


def check_libraries(to: str) -> None:
    """Raise a `UserError` if a library that the format `to` needs is missing (extra [export])."""
    for name in LIBRARIES[to]:
        engine(name)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence onnxscript and torch in the block, because they print and log every folded constant."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
