"""The detector, which turns pictures into detections.

A `Detector` consists of preprocessing, a backend and postprocessing. The backend computes the last layer's
predictions from padded pixels. It runs a replica of the model for a CPU (cpu/) or a GPU (cuda/), the model
itself, or an exported file (exported/). Evaluation, prediction and the server use only the detector.

PyTorch is imported only for PyTorch models, so that exported files can be used without it.

Letters: H and W, or h and w after resizing, height and width of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from PIL import Image

from .. import checkpoint as checkpoints
from ..classification import build_classification
from ..data.preprocessing import input_size, model_input
from ..detections import MAX_NAMES, Detections
from ..errors import UserError
from ..words import count, listed, printable
from .backend import Backend
from .exported import ExportedModel
from .pictures import Picture, read_picture
from .postprocess import detections_of_candidates, detections_of_queries, num_candidates
from .selection import Selection

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..checkpoint import Checkpoint
    from ..models import DetectionModel
    from .trace import Explanation

USUAL_DETECTIONS = 100  # per picture, unless the model has more queries


class Augmentation(Protocol):
    """A way to detect objects in several views of a picture; see tta.py.

    `plain` is the detector that detects objects in each view.
    """

    @property
    def plain(self) -> Detector: ...

    def preprocess(self, picture: Image.Image) -> Tensor: ...

    def detect(
        self, pixels: Sequence[Any], original_sizes: Sequence[tuple[int, int]], max_detections: int
    ) -> list[Detections]: ...


class Detector:
    """A model that finds objects in pictures. Detectors are created by `load`, `create` and `train`.

    Attributes:
        backend: the part that computes predictions from pixels.
        classification: the meaning of the class logits.
        classes: class names and the data set's own ids.
        data: the configuration of the preprocessing.
        config: the configuration of the model.
        recipe: the name of the model's recipe.
        decision: the model's own thresholds; None if it has none, so that 0.5 is used.
        preprocess: a function that converts a PIL RGB picture to an input of `detect`.
    """

    _augmentation: Augmentation | None = None

    def __init__(self, source: Checkpoint | ExportedModel, backend: Backend):
        self._source = source
        self.backend = backend
        description = source.description
        self.config, self.data, self.recipe = description.config, description.data, description.recipe
        self.classes, self.decision = description.classes, description.decision
        self.classification = build_classification(description.config)
        # `preprocess` converts PIL RGB to (3, h, w) for `detect`: normalised pixels (an array for an exported
        # file, otherwise a tensor) or, with an augmentation, the result of its `preprocess`.
        self.preprocess = _transform_for(source)

    def __repr__(self) -> str:
        return _in_words(self)

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
    ) -> Detector:
        from .devices import choose_device, choose_dtype
        from .torch_backends import backend_for

        chosen = choose_device(device)
        return cls(checkpoint, backend_for(checkpoint.model, chosen, choose_dtype(dtype, chosen)))

    def augmented(self, augmentation: Augmentation) -> Detector:
        """Return a copy of this detector that detects objects with `augmentation`."""
        other = copy(self)
        other._augmentation, other.preprocess = augmentation, augmentation.preprocess
        return other

    @property
    def plain(self) -> Detector:
        """This detector without augmentation, whose `preprocess` returns the input of the model."""
        return self if self._augmentation is None else self._augmentation.plain

    @property
    def checkpoint(self) -> Checkpoint:
        """The model with its classes, configuration and preprocessing.

        Raises:
            UserError: if this detector comes from an exported file.
        """
        if isinstance(self._source, ExportedModel):
            raise UserError(
                f"{self._source.path} is an exported model, without weights that PyTorch could train, save, "
                "convert or explain: load the run or checkpoint folder that it was exported from."
            )
        return self._source

    @property
    def model(self) -> DetectionModel:
        """The plain, trainable model; `model(images)` returns a `DetectorOutput`.

        Raises:
            UserError: if this detector comes from an exported file.
        """
        return self.checkpoint.model

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint folder (`model.safetensors`, `config.json`) completely or not at all.

        An existing checkpoint is replaced. The path of the folder is returned.

        Raises:
            UserError: if this detector comes from an exported file, or the folder holds other files or cannot
                be written.
        """
        folder = Path(folder).expanduser()
        checkpoints.save(folder, self.checkpoint)
        return folder

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) to which a picture of `size` (H, W) is resized for the model."""
        return input_size(size, self.data)

    def detect(
        self,
        pixels: Sequence[Tensor | np.ndarray],
        original_sizes: Sequence[tuple[int, int]],
        *,
        max_detections: int = 100,
    ) -> list[Detections]:
        """Return the detections in each preprocessed picture, best first.

        Without an augmentation, the pictures are padded into one batch. Padding affects the features of these
        models (group norm, convolutions). If results must not depend on the batch, pass pictures of
        equal shape, as `predict` does.

        Args:
            pixels: results of `preprocess`; without an augmentation, each is (3, h, w).
            original_sizes: the (H, W) of each picture before preprocessing. Boxes are in pixels of this size,
                and are not clipped to it.
            max_detections: the maximum number of detections per picture.

        Raises:
            UserError: if an exported file cannot compute the batch.
            ValueError: without an augmentation, if there is no picture, or `original_sizes` has another
                length than `pixels`.
        """
        if self._augmentation is not None:
            return self._augmentation.detect(pixels, original_sizes, max_detections)
        nms_iou = self.config.nms_iou
        k = num_candidates(max_detections, self.config.num_queries, nms_iou)
        candidates = self.backend.candidates(pixels, self.classification, k)
        results = detections_of_candidates(candidates, self.classes, original_sizes, max_detections, nms_iou)
        return [detections for detections, _ in results]

    @overload
    def predict(
        self,
        images: Picture,
        threshold: float | None = ...,
        *,
        classes: Sequence[str] | None = ...,
        class_thresholds: Mapping[str, float] | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        images: list[Picture] | tuple[Picture, ...],
        threshold: float | None = ...,
        *,
        classes: Sequence[str] | None = ...,
        class_thresholds: Mapping[str, float] | None = ...,
        max_detections: int | None = ...,
        batch_size: int = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        images: Picture | list[Picture] | tuple[Picture, ...],
        threshold: float | None = None,
        *,
        classes: Sequence[str] | None = None,
        class_thresholds: Mapping[str, float] | None = None,
        max_detections: int | None = None,
        batch_size: int = 4,
    ) -> Detections | list[Detections]:
        """Find objects in one picture or in a list of them.

        Args:
            images: a path, PIL image, (H, W, 3) RGB uint8 array, or (3, H, W) tensor (uint8, or float in
                [0, 1]); or a list or tuple of these.
            threshold: detections below this score are left out. None means the model's own thresholds, one
                for each class (`decision`), or 0.5 if it has none.
            classes: names of the classes to find; None means all.
            class_thresholds: thresholds by class name, which replace `threshold` for these classes.
            max_detections: the maximum number of detections per picture, before classes are left out. None
                means 100, or the number of queries if that is larger.
            batch_size: the maximum number of pictures of equal resized shape that are computed together; the
                result does not depend on it.

        Returns:
            The `Detections` in one picture, best first, or for a list or tuple of pictures, a list of
            `Detections` in the same order. Boxes are in pixels of the original picture and clipped to it.

        Raises:
            UserError: if a picture cannot be read or is too large, an option is out of range, `classes` is
                empty or a string, the model lacks a class that `classes` or `class_thresholds` names,
                `class_thresholds` names a class that is not selected, an exported file cannot compute a
                batch, or the model's output is not finite.
        """
        most = self.most_detections(max_detections)
        check_options(threshold, most, batch_size)
        selection = self.selection(threshold, classes, class_thresholds)
        if isinstance(images, list | tuple):
            return _predict(self, images, selection, most, batch_size)
        return _predict(self, [images], selection, most, batch_size)[0]

    def most_detections(self, max_detections: int | None) -> int:
        """Return the maximum number of detections per picture; None means the default of `predict`."""
        return max(USUAL_DETECTIONS, self.config.num_queries) if max_detections is None else max_detections

    def selection(
        self,
        threshold: float | None = None,
        classes: Sequence[str] | None = None,
        class_thresholds: Mapping[str, float] | None = None,
    ) -> Selection:
        """Return the minimum score of each class for these options of `predict`.

        Raises:
            UserError: if a score is outside [0, 1], the model lacks a named class, `classes` is empty or a
                string, or `class_thresholds` names a class that is not selected.
        """
        return Selection.of(self.classes, threshold, classes, class_thresholds, self.decision)

    def explain(
        self,
        image: Picture,
        threshold: float | None = None,
        *,
        max_detections: int = 100,
        at: Sequence[tuple[float, float]] = (),
    ) -> Explanation:
        """Return the detections in a picture and the model's attention for each, in pixels of the original.

        The plain PyTorch model computes the attention in float32 without augmentation, whatever `predict`
        uses.

        Args:
            image, threshold: as for `predict`.
            max_detections: the maximum number of detections, before those below their threshold are left out.
            at: points (x, y) in pixels of the picture for which the encoder's attention is returned as well.

        Raises:
            UserError: if the picture cannot be read or is too large, an option is out of range, this detector
                comes from an exported file, a point is outside the picture, there are points but no encoder
                layers, or the model's output is not finite.
            TypeError: if the model has attention from outside the package, which cannot be recorded.
        """
        from .trace import Explanation, trace_picture

        check_options(threshold, max_detections, 1)
        picture = read_picture(image, self.data.max_pixels)
        trace = trace_picture(self, picture, at)
        ((found, queries),) = detections_of_queries(
            trace.predictions.logits,
            trace.predictions.boxes_cxcywh,
            self.classification,
            self.classes,
            [(picture.height, picture.width)],
            max_detections,
            self.config.nms_iou,
        )
        selection = self.selection(threshold)
        chosen = trace.queries.take(queries[selection.mask(found)])
        return Explanation(selection(found).with_image(np.asarray(picture)), chosen, trace.encoder)


def _transform_for(source: Checkpoint | ExportedModel) -> Callable[[Image.Image], Any]:
    if isinstance(source, ExportedModel):
        return partial(model_input, config=source.description.data)
    from ..data.evaluation_transform import evaluation_transform

    return evaluation_transform(source.data)


def _in_words(detector: Detector) -> str:
    """Return the recipe, the classes and the device of a detector in one line."""
    names = [name for name in detector.classes.names if name is not None]
    device = getattr(detector.backend, "device", "cpu")  # exported files run on the CPU
    known = f"{count(len(names), 'class')}: {listed(names, MAX_NAMES)}"
    return printable(f"Detector({detector.recipe}; {known}; on {device})")


def _predict(
    detector: Detector,
    images: Sequence[Picture],
    selection: Selection,
    max_detections: int,
    batch_size: int,
) -> list[Detections]:
    pictures = [read_picture(image, detector.data.max_pixels) for image in images]
    sizes = [(picture.height, picture.width) for picture in pictures]
    results: dict[int, Detections] = {}
    for indices in equal_shape_batches([detector.resized_size(size) for size in sizes], batch_size):
        found = detector.detect(
            [detector.preprocess(pictures[i]) for i in indices],
            [sizes[i] for i in indices],
            max_detections=max_detections,
        )
        for i, detections in zip(indices, found, strict=True):
            results[i] = selection(detections).with_image(np.asarray(pictures[i]))
    return [results[i] for i in range(len(pictures))]


def check_options(threshold: float | None, max_detections: int | None, batch_size: int) -> None:
    """Raise a `UserError` if `threshold` is outside [0, 1], or one of the other options is less than 1.

    A value of None is accepted.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold must be between 0 and 1, not {threshold}.")
    for name, value in (("max_detections", max_detections), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}.")


def equal_shape_batches(shapes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Return the indices of `shapes` in batches of at most `batch_size` indices with the same shape.

    Batches of the same shape follow each other, and shapes are in the order in which they first appear.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(index)
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]
