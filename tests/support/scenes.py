"""Generated pictures and videos for the tests of `predict`, and a detector of bright squares in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import scipy.ndimage
from PIL import Image
from torch import Tensor

from deformable_detr.detections import ClassTable, Detections
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import new_checkpoint
from tests.support.tiny import tiny_config

BACKGROUND = 60


def write(path: Path, size: tuple[int, int] = (45, 70), mode: str = "RGB") -> Path:
    """Write a picture of noise and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def squares(size: tuple[int, int], boxes: Sequence[tuple[int, int, int, int]]) -> np.ndarray:
    """Return a grey picture (H, W, 3) with bright rectangles (x0, y0, x1, y1)."""
    picture = np.full((*size, 3), BACKGROUND, np.uint8)
    for x0, y0, x1, y1 in boxes:
        picture[y0:y1, x0:x1] = 250
    return picture


class SquareFinder(Detector):
    """Finds bright rectangles with sides of at least `least` pixels after resizing.

    Like a real model, it misses objects that resizing makes too small. Scores grow with the size, up to 0.9.
    """

    def __init__(self, image_size: int = 160, least: float = 6.0, name: str = "square") -> None:
        config = tiny_config()
        classes = ClassTable((name, "other"), (4, 9))
        super().__init__(new_checkpoint(config.model, classes, config.data, config.recipe, None), None)  # type: ignore[arg-type]
        self.image_size, self.least = image_size, least
        self.seen: list[tuple[int, int]] = []
        self.data = _with_size(config.data, image_size)
        self.preprocess = self._resized

    def _resized(self, picture: Image.Image) -> Tensor:
        height, width = self.resized_size((picture.height, picture.width))
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX), np.float32)
        import torch

        return torch.from_numpy(pixels).permute(2, 0, 1) / 255

    def detect(
        self,
        pixels: Sequence[Any],
        original_sizes: Sequence[tuple[int, int]],
        *,
        max_detections: int = 100,
    ) -> list[Detections]:
        return [self._detect(one.numpy()[0], size) for one, size in zip(pixels, original_sizes, strict=True)]

    def _detect(self, seen: np.ndarray, size: tuple[int, int]) -> Detections:
        self.seen.append(size)
        marked, _ = scipy.ndimage.label(seen > 0.6)
        boxes, scores = [], []
        for rows, columns in scipy.ndimage.find_objects(marked):
            side = min(rows.stop - rows.start, columns.stop - columns.start)
            if side >= self.least:
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                scores.append(min(0.9, 0.5 + side / 200))
        scale = np.array([size[1] / seen.shape[1], size[0] / seen.shape[0]] * 2, np.float32)
        order = np.argsort(-np.array(scores, np.float32), kind="stable")
        found = np.array(boxes, np.float32).reshape(-1, 4)[order] * scale
        count = len(scores)
        return Detections(
            boxes_xyxy=found,
            scores=np.array(scores, np.float32)[order],
            labels=np.zeros(count, np.int64),
            category_ids=np.full(count, 4),
            names=("square",) * count,
            image_size=size,
        )


def _with_size(data: Any, image_size: int) -> Any:
    from dataclasses import replace

    return replace(data, image_size=image_size, max_size=2 * image_size)


def moving_squares(index: int, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """Return frame `index` of two squares that move to the right, one above the other."""
    return squares(size, [(4 + 3 * index, 10, 28 + 3 * index, 34), (10 + 2 * index, 56, 34 + 2 * index, 80)])


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    fps: int = 25,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
) -> Path:
    """Write frames to a video file, at a fixed rate or at `times` in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], pixels
        if times is not None:
            from fractions import Fraction

            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
