"""Export a model: trace it, write a draft, compare the draft with the PyTorch model, and rename the draft.

formats.py defines the drafts, translation.py translates traced graphs to ONNX, and certificate.py measures
the drift. The final file contains the certificate.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from ..checkpoint.names import check_exported_file
from ..data.formats import read_split
from ..data.records import Split
from ..data.scenes import draw_scene
from ..errors import ExportRefusedError, UserError
from ..evaluation import evaluate
from ..files import check_output_file, replacing, write_json
from ..inference.detector import Detector
from ..inference.exported import ExportedModel
from ..inference.exported.metadata import Metadata
from ..inference.loading import load
from ..inference.pictures import read_picture
from ..inference.torch_backends import TorchBackend
from ..models import copy_on_same_memory
from ..prediction.sources import find_pictures
from ..system.machine import package_version, versions_of
from .certificate import (
    FLOAT32,
    INT8,
    Bounds,
    CheckedPicture,
    Drift,
    complaints,
    measure,
    measured,
    sha256_of,
    sha256_of_pixels,
)
from .formats import (
    LIBRARIES,
    OPERATORS,
    Draft,
    OnnxDraft,
    OpenVinoDraft,
    TorchDraft,
    check_libraries,
)
from .quantisation import quantised

Format = Literal["onnx", "openvino", "torch"]
Operator = Literal["native", "grid_sample", "gather"]
Precision = Literal["fp32", "int8"]

# (height, width) of the pictures that are drawn here: landscape and portrait, some with odd sides.
DRAWN_SIZES = ((480, 640), (640, 480), (427, 640), (500, 333))


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        files: the exported file and, for an .xml file, its .bin file.
        certificate_file: the certificate's .json file, next to the exported file.
        certificate: the content of `certificate_file`.
    """

    files: tuple[Path, ...]
    certificate_file: Path
    certificate: dict[str, Any]

    def summary(self) -> str:
        """Summarise the export in a few lines for a user."""
        drift, bounds = self.certificate["drift"], self.certificate["bounds"]
        box = drift["box" if self.certificate["precision"] == "fp32" else "confident_box"]
        lines = [
            f"written: {', '.join(map(str, self.files))}",
            f"against PyTorch on {len(self.certificate['images'])} pictures: boxes within {box:.1e} of a "
            f"side (allowed {bounds['box']:g}), scores within {drift['score']:.1e} ({bounds['score']:g})",
        ]
        if "ap" in drift:
            lines.append(
                f"AP {drift['ap']['pytorch']:.4f} in PyTorch, {drift['ap']['exported']:.4f} exported"
            )
        return "\n".join([*lines, f"certificate: {self.certificate_file}"])


def export(
    model: Detector | str | Path,
    output: str | Path,
    *,
    to: Format,
    operator: Operator | None = None,
    precision: Precision = "fp32",
    images: str | Path | Sequence[str | Path] | None = None,
    data: Split | str | Path | None = None,
    split: str | None = None,
    format: str = "auto",
    calibration: str | Path | Sequence[str | Path] | None = None,
    num_images: int = 4,
    max_pixels: int | None = None,
    max_box_drift: float | None = None,
    max_score_drift: float | None = None,
    max_ap_drift: float | None = None,
    console: Console | None = None,
) -> Export:
    """Export `model` to a file for another engine, and certify how far it differs from the PyTorch model.

    The file takes `pixels` (B, 3, H, W) float32, normalised, and `mask` (B, H, W) bool, True = padding, for
    any batch size B, height H and width W; for two-stage models, the pictures must have at least as many
    memory tokens as there are queries. It returns `logits` (B, Q, number of logits) and `boxes_cxcywh`
    (B, Q, 4) of the Q queries, normalised by the unpadded picture. Its metadata contains everything else that
    a detector needs, so that `load(output)` returns a detector, except from a .pt2 file, which is for other
    programs. The certificate is in the metadata and in a .json file next to the exported file.

    Args:
        model: a `Detector`, or anything that `load` accepts except an exported file. Test-time augmentation
            is left out.
        output: an .onnx file, an .xml file (OpenVINO, which adds a .bin file), or a .pt2 file (torch.export).
        to: the format: `onnx`, `openvino` or `torch`, which must match the suffix of `output`.
        operator: the way in which deformable attention samples. `grid_sample` uses a standard operator.
            `gather` uses indexing and arithmetic, for engines whose GridSample is missing or wrong. `native`
            (for torch only) uses this package's operator, which must be installed where the file runs. None
            means `native` for torch, otherwise `grid_sample`.
        precision: `fp32`, or `int8` (for the convolutions of backbone and neck), which needs `calibration`
            and is not available for torch.
        images: the pictures, folders or globs on which the models are compared. The default is pictures of
            `data` or, without `data`, drawn ones.
        data: a data set, or one `Split` of it, for which `split` and `format` have no effect. If it is given,
            the average precision on the split is compared as well.
        split: the part of `data` to use; None means `val`, or else `test`.
        format: the layout of `data`: coco, voc, yolo or auto.
        calibration: pictures, folders or globs that determine the numeric ranges for int8.
        num_images: the maximum number of pictures that are compared, at least 1.
        max_pixels: the maximum number of pixels (width times height) of a picture, as for `load`; it must be
            None if `model` is a `Detector`.
        max_box_drift, max_score_drift, max_ap_drift: the maximum accepted differences of a box coordinate (as
            a fraction of the picture's side), of a score and of the average precision (both in [0, 1]). None
            means 0.001 for each with fp32, and 0.05, 0.15 and 0.02 with int8.
        console: the console on which progress is shown; None means that it is not shown.

    Returns:
        The paths of the written files, and the content of the certificate.

    Raises:
        UserError: if an option is wrong, the model, data or pictures cannot be read, the model and the data
            have no class in common, the engine lacks an operator that the model needs, the file cannot be
            written, or a library of the extra [export] is missing.
        ExportRefusedError: if the drift of the exported model exceeds a bound; the file is not written.
    """
    target = Path(output).expanduser()
    operator = _checked(target, to, operator, precision, calibration, num_images)
    bounds = _bounds(precision, max_box_drift, max_score_drift, max_ap_drift)
    check_libraries(to)
    if isinstance(model, Detector) and max_pixels is not None:
        raise UserError("max_pixels cannot change a detector that is already loaded: pass it to load().")
    detector = model.plain if isinstance(model, Detector) else load(model, "cpu", max_pixels=max_pixels)
    part = data if data is None or isinstance(data, Split) else read_split(data, split, format=format)
    pictures = _pictures(detector, images, part, num_images)
    console = console or Console(quiet=True)
    task = _Task(detector, to, operator, precision, bounds, pictures, part, console)
    return task.write(task.trace(None if calibration is None else find_pictures(calibration)), target)


@dataclass(frozen=True)
class _Task:
    """An export whose options have been checked.

    Attributes:
        pictures: the pictures on which the models are compared.
        part: the part of a data set on which average precision is compared.
    """

    detector: Detector
    to: Format
    operator: Operator
    precision: Precision
    bounds: Bounds
    pictures: list[CheckedPicture]
    part: Split | None
    console: Console

    @cached_property
    def plain(self) -> TorchBackend:
        """The backend that runs the PyTorch model on the CPU.

        The model is a copy, because the detector's model may be on a GPU.
        """
        copied = copy_on_same_memory(self.detector.model).to("cpu").eval()
        return TorchBackend(copied, torch.device("cpu"), torch.float32)

    def trace(self, calibration: list[Path] | None) -> Draft:
        """Trace the model and return it as a draft of the file.

        `calibration` lists the pictures for int8; None means float32.

        Raises:
            UserError: if the format lacks an operator that the model needs, or a picture cannot be read.
        """
        self.console.print(f"tracing {self.detector.recipe} ({self.operator}, {self.precision}) …")
        if self.to == "torch":
            return TorchDraft(self.plain.model, self.operator)
        onnx_draft = OnnxDraft.from_model(self.plain.model, self.operator)
        if calibration is not None:
            onnx_draft = quantised(onnx_draft, self.detector, calibration, self.console)
        return onnx_draft if self.to == "onnx" else OpenVinoDraft(onnx_draft)

    def write(self, graph: Draft, target: Path) -> Export:
        """Write the graph with its certificate if its drift from the PyTorch model is within the bounds.

        Raises:
            ExportRefusedError: if the drift exceeds a bound.
            UserError: if a file cannot be written.
        """
        metadata = Metadata(self.detector.checkpoint.description, None)
        with replacing(target) as draft:
            graph.save(draft, metadata.to_texts())
            certificate = self.compare(graph.open(draft), target)
            self.save_certified(graph, draft, replace(metadata, certificate=certificate))
            files = [draft] if self.to != "openvino" else [draft, draft.with_suffix(".bin")]
            certificate["files"] = [
                {"name": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
                for file in reversed(files)
            ]
            for other in files[1:]:
                with replacing(target.with_name(other.name)) as second:
                    os.replace(other, second)
        certificate_file = target.with_name(f"{target.name}.certificate.json")
        write_json(certificate_file, certificate)
        return Export(tuple(target.with_name(file.name) for file in files), certificate_file, certificate)

    def compare(self, opened: ExportedModel, target: Path) -> dict[str, Any]:
        """Compare an exported file with the PyTorch model and return the content of its certificate.

        Raises:
            ExportRefusedError: if a bound is exceeded, so that `target` must not be written.
        """
        self.console.print(f"comparing with PyTorch on {len(self.pictures)} pictures …")
        drift, shapes = measure(self.detector, opened.backend, self.plain, self.pictures)
        part = self.part
        ap = None if part is None else _average_precisions(self.detector, opened, part, self.console)
        problems = complaints(drift, ap, self.bounds, self.precision)
        if problems:
            raise ExportRefusedError(
                f"{target} was not written: against the PyTorch model {'; '.join(problems)}. "
                + _advice(self.operator, self.precision)
            )
        return {
            "format": "deformable_detr_certificate",
            "format_version": 1,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "recipe": self.detector.recipe,
            "to": self.to,
            "operator": self.operator,
            "precision": self.precision,
            "bounds": asdict(self.bounds),
            "drift": measured(drift, ap),
            "images": [picture.to_dict() for picture in self.pictures],
            "batches": shapes,
            "data": None
            if part is None
            else {"source": Path(part.source).name, "split": part.name, "images": len(part)},
            "versions": _versions(self.to),
        }

    def save_certified(self, graph: Draft, draft: Path, metadata: Metadata) -> None:
        """Save the graph again, with its certificate, and check the resulting file on the first picture."""
        graph.save(draft, metadata.to_texts())
        opened = graph.open(draft)
        detector = Detector(opened, opened.backend)
        drift: Drift = measure(detector, opened.backend, self.plain, self.pictures[:1])[0]
        certificate = opened.metadata.certificate
        if certificate is None or complaints(drift, None, self.bounds, certificate["precision"]):
            raise RuntimeError(f"{draft} does not compute what was checked before it was saved")


def _checked(
    target: Path,
    to: str,
    operator: Operator | None,
    precision: str,
    calibration: object,
    num_images: int,
) -> Operator:
    check_exported_file(to, target)
    check_output_file(target)
    if operator is None:
        operator = "native" if to == "torch" else "grid_sample"
    if operator not in OPERATORS[to]:
        raise UserError(
            f"--operator {operator} is not available for {to}: choose {' or '.join(OPERATORS[to])}."
        )
    if precision not in ("fp32", "int8"):
        raise UserError(f"precision must be fp32 or int8, not {precision}.")
    if precision == "int8" and to == "torch":
        raise UserError("int8 is for --to onnx and openvino: choose one of them.")
    if (precision == "int8") != (calibration is not None):
        raise UserError(
            "--precision int8 and --calibration IMAGES go together: give some 20 pictures like those that "
            "the model will see, from which int8 takes the ranges of its numbers."
        )
    if num_images < 1:
        raise UserError(f"num_images must be at least 1, not {num_images}.")
    return operator


def _bounds(precision: str, box: float | None, score: float | None, ap: float | None) -> Bounds:
    bounds = FLOAT32 if precision == "fp32" else INT8
    given = {"box": box, "score": score, "ap": ap}
    for name, value in given.items():
        if value is not None and not value >= 0:
            raise UserError(f"--max-{name}-drift must not be negative ({value}).")
    return replace(bounds, **{name: value for name, value in given.items() if value is not None})


def _advice(operator: str, precision: str) -> str:
    if precision == "int8":
        return "Give more and better calibration pictures, stay with fp32, or allow more (--max-…-drift)."
    if operator == "grid_sample":
        return "Try --operator gather, or allow more (--max-…-drift)."
    return "Try another format, or allow more (--max-…-drift)."


def _pictures(
    detector: Detector,
    images: str | Path | Sequence[str | Path] | None,
    part: Split | None,
    num_images: int,
) -> list[CheckedPicture]:
    files: list[Path] = []
    if images is not None:
        files = find_pictures(images)
    elif part is not None:
        files = [image.path for image in part.images]
    if files:
        spread = np.linspace(0, len(files) - 1, min(num_images, len(files))).round().astype(int)
        return [
            _checked_picture(
                detector, read_picture(files[i], detector.data.max_pixels), files[i].name, files[i]
            )
            for i in spread
        ]
    return [
        _checked_picture(
            detector, draw_scene(np.random.default_rng(i), size).picture, f"drawn picture {i}", None
        )
        for i, size in enumerate(DRAWN_SIZES[:num_images])
    ]


def _checked_picture(
    detector: Detector, picture: Image.Image, name: str, file: Path | None
) -> CheckedPicture:
    size = (picture.height, picture.width)
    return CheckedPicture(
        name=name,
        sha256=sha256_of_pixels(np.asarray(picture)) if file is None else sha256_of(file),
        size=size,
        model_size=detector.resized_size(size),
        pixels=detector.preprocess(picture),
    )


def _average_precisions(
    detector: Detector, opened: ExportedModel, part: Split, console: Console
) -> tuple[float, float]:
    """Return the average precision of the PyTorch model and of the exported file on a part of a data set."""
    console.print(f"average precision of both on {len(part)} images of {part.name} …")
    exported_detector = Detector(opened, opened.backend)
    quiet = Console(quiet=True)
    return (
        float(evaluate(detector, part, console=quiet, progress=False)["AP"]),
        float(evaluate(exported_detector, part, console=quiet, progress=False)["AP"]),
    )


def _versions(to: str) -> dict[str, str]:
    return {
        "deformable_detr": package_version(),
        "torch": torch.__version__,
        **versions_of(LIBRARIES[to]),
    }
