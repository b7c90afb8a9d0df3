"""OpenVINO's format: an .xml with the graph, and a .bin of the same name with the weights."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from .metadata import CERTIFICATE, DESCRIPTION, INPUTS, OUTPUTS, Metadata
from .model import (
    ExportedBackend,
    ExportedModel,
    check_size,
    engine,
    reading,
    threads,
)


def open_openvino(path: Path) -> ExportedModel:
    """Open an .xml file and the .bin file of the same name.

    Raises:
        UserError: if this package did not write the .xml, one of the two files is damaged or larger than
            2 GiB, the .bin is missing, or OpenVINO is not installed.
    """
    openvino = engine("openvino")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(f"{weights}, the weights of {path}, is missing: keep the two files together.")
    for each in (path, weights):
        check_size(each)
    with path.open("rb") as file:
        # OpenVINO also recognises other formats by their content, and in some of them, a file names others.
        if not file.read(16).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            raise UserError(f"{path} is not XML: export the model again.")
    core = openvino.Core()
    with reading(path):
        model = core.read_model(path, weights)
        texts = {
            key: str(model.get_rt_info([key]).value)
            for key in (DESCRIPTION, CERTIFICATE)
            if model.has_rt_info([key])
        }
    metadata = Metadata.from_texts(texts, path)
    return ExportedModel(path, metadata, OpenVinoBackend(path, metadata, core, model))


class OpenVinoBackend(ExportedBackend):
    """A backend that runs the graph of an .xml file with OpenVINO on the CPU."""

    def __init__(self, path: Path, metadata: Metadata, core: Any, model: Any):
        super().__init__(path, metadata.description)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # otherwise, processors with bfloat16 would compute in it
            "INFERENCE_NUM_THREADS": threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        with reading(path):
            self._compiled = core.compile_model(model, "CPU", settings)
            names = {name for port in self._compiled.inputs for name in port.names}
        if not names.issuperset(INPUTS):
            raise UserError(f"{path} has the inputs {', '.join(names)}: it was changed, export it again.")
        self._lock = threading.Lock()  # a request computes one batch at a time

    def _run(self, pixels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            outputs = self._compiled(dict(zip(INPUTS, (pixels, mask), strict=True)))
            logits, boxes = (outputs[name].copy() for name in OUTPUTS)
        return logits, boxes
