"""Process large pictures in tiles.

The model processes a large picture (for example, of 4000x3000 pixels) in overlapping parts at full
resolution, so that small objects are not lost in resizing.

Every object that is no larger than the overlap is whole in at least one tile. Larger objects are found in
tiles whose sides are twice as long, then four times as long, up to the whole picture. The larger tiles add a
third to the cost, and objects seldom have to be assembled from parts; if one is found only in parts, they are
merged. The library `supervision` merges parts and suppresses duplicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from ..detections import Detections, import_supervision
from ..errors import UserError
from ..inference.detector import Detector, check_options
from ..inference.pictures import Picture, read_picture
from ..inference.selection import Selection
from .finding import Finder, Prepared, WholePictures

SAME_OBJECT = 0.5  # IoU of whole boxes; if one is cut, the overlap as a share of the smaller box
MAX_CANDIDATES = 2000  # only the best are merged, because merging compares all pairs
BORDER = 0.01  # share of a tile's side: a box that ends this close to an inner border counts as cut


@dataclass(frozen=True)
class Level:
    """Tiles of one size that cover a picture.

    Attributes:
        tiles: (x0, y0, x1, y1) of each tile, in pixels of the picture.
        minimum: a length in pixels. Boxes whose longer side does not exceed it are ignored, because smaller
            tiles show such objects better.
        reach: the size in pixels up to which every object fits completely into at least one tile.
    """

    tiles: tuple[tuple[int, int, int, int], ...]
    minimum: int
    reach: int


@dataclass(frozen=True)
class Tiling:
    """The settings of tiled prediction.

    Attributes:
        size: the side of a tile in pixels, at least 16. None means the size to which the model resizes
            pictures (`data.image_size`), so that pixels keep their size. A smaller tile is magnified, and a
            larger one is reduced.
        overlap: the overlap of neighbouring tiles as a share of their side, from 0 to 0.75.

    Raises:
        UserError: if a setting is out of range, or the library supervision is not installed.
    """

    size: int | None = None
    overlap: float = 0.2

    def __post_init__(self) -> None:
        import_supervision("tiling")  # fails early, before a model is loaded
        if self.size is not None and self.size < 16:
            raise UserError(f"a tile must have a side of at least 16 pixels, not {self.size}.")
        if not 0 <= self.overlap <= 0.75:
            raise UserError(f"the overlap of tiles must be a share between 0 and 0.75, not {self.overlap}.")

    def levels(self, size: tuple[int, int], image_size: int) -> list[Level]:
        """Return the levels for a picture, from the smallest tiles to the whole picture.

        Args:
            size: (height, width) of the picture.
            image_size: the model's `data.image_size`.
        """
        side, minimum = self.size or image_size, 0
        levels = []
        while True:
            levels.append(Level(self._tiles(size, side), minimum, self.reach(side)))
            if len(levels[-1].tiles) == 1:
                return levels
            side, minimum = 2 * side, self.reach(side)

    def _tiles(self, size: tuple[int, int], side: int) -> tuple[tuple[int, int, int, int], ...]:
        """Return tiles (x0, y0, x1, y1) of equal size that cover the picture.

        Neighbouring tiles overlap by at least `reach(side)`.
        """
        height, width = (min(side, length) for length in size)
        return tuple(
            (x, y, x + width, y + height)
            for y in self._starts(size[0], side)
            for x in self._starts(size[1], side)
        )

    def _starts(self, length: int, side: int) -> list[int]:
        if length <= side:
            return [0]
        count = 1 + math.ceil((length - side) / (side - self.reach(side)))
        return [round(start) for start in np.linspace(0, length - side, count)]

    def reach(self, side: int) -> int:
        """Return the minimum overlap, in pixels, of neighbouring tiles whose sides have `side` pixels.

        An object whose width and height are at most this overlap is whole in at least one tile.
        """
        return min(round(side * self.overlap), side - 1)


class TiledPictures(Finder):
    """Detection in small tiles and, for objects that are too large for them, in larger tiles.

    The largest tile is the whole picture.
    """

    def __init__(
        self,
        detector: Detector,
        selection: Selection,
        max_detections: int,
        batch_size: int,
        tiling: Tiling,
    ):
        super().__init__(detector, selection, max_detections, batch_size)
        self.tiling = tiling

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def prepare(self, picture: Image.Image) -> Prepared:
        return Prepared(np.asarray(picture), None)  # all resized tiles together would fill the memory

    def find(self, prepared: Sequence[Prepared]) -> list[Detections]:
        return [self._find(item.picture) for item in prepared]

    def _find(self, picture: np.ndarray) -> Detections:
        size = (picture.shape[0], picture.shape[1])
        found, cut = [], []
        levels = self.tiling.levels(size, self.detector.data.image_size)
        for level in levels:
            for tile, in_tile in zip(level.tiles, self._detect(picture, level.tiles), strict=True):
                extents = (in_tile.boxes_xyxy[:, 2:] - in_tile.boxes_xyxy[:, :2]).max(axis=1, initial=0)
                useful = in_tile.take(np.flatnonzero(extents > level.minimum))
                border = max(2, BORDER * max(tile[2] - tile[0], tile[3] - tile[1]))
                found.append(useful)
                cut.append(is_cut(useful.boxes_xyxy, tile, size, border))
        if len(levels) == 1:  # this is the model's own result, without duplicates
            return found[0].with_image(picture)
        return merge_parts(Detections.concatenate(found), np.concatenate(cut)).with_image(picture)

    def _detect(self, picture: np.ndarray, tiles: Sequence[tuple[int, int, int, int]]) -> list[Detections]:
        """Return the selected detections in tiles of the picture, in pixels of the whole picture."""
        results = []
        for start in range(0, len(tiles), self.batch_size):
            batch = tiles[start : start + self.batch_size]
            parts = [Image.fromarray(picture[y0:y1, x0:x1]) for x0, y0, x1, y1 in batch]
            detections = self.detector.detect(
                [self.detector.preprocess(part) for part in parts],
                [(part.height, part.width) for part in parts],
                max_detections=self.max_detections,
            )
            for (x0, y0, _, _), in_tile in zip(batch, detections, strict=True):
                selected = self.selection(in_tile)
                offset = np.array([x0, y0, x0, y0], dtype=np.float32)
                results.append(
                    replace(
                        selected,
                        boxes_xyxy=selected.boxes_xyxy + offset,
                        image_size=picture.shape[:2],
                        image=None,
                    )
                )
        return results


def predict_tiled(
    detector: Detector,
    image: Picture,
    threshold: float | None = None,
    *,
    tiling: Tiling | None = None,
    classes: Sequence[str] | None = None,
    class_thresholds: Mapping[str, float] | None = None,
    max_detections: int | None = None,
    batch_size: int = 4,
) -> Detections:
    """Return the objects in one large picture, best score first; the picture is processed tile by tile.

    The result contains the picture. Arguments that are not listed here are those of `Detector.predict`.

    Args:
        tiling: the size and the overlap of the tiles; None means `Tiling()`.
        max_detections: the maximum number of detections per tile; None means the same as in
            `Detector.predict`.
        batch_size: the maximum number of tiles that are computed together.

    Raises:
        UserError: if the picture cannot be read, an option is out of range, the model lacks a named class,
            the model's output is not finite, or the library supervision is not installed.
    """
    check_options(threshold, max_detections, batch_size)
    selection = detector.selection(threshold, classes, class_thresholds)
    most = detector.most_detections(max_detections)
    finder = TiledPictures(detector, selection, most, batch_size, tiling or Tiling())
    picture = read_picture(image, detector.data.max_pixels)
    return finder.find([finder.prepare(picture)])[0]


def finder_for(
    detector: Detector,
    selection: Selection,
    max_detections: int,
    batch_size: int,
    tiling: Tiling | None,
) -> Finder:
    """Return a finder that works in tiles if there is a `tiling`, else on whole pictures."""
    if tiling is None:
        return WholePictures(detector, selection, max_detections, batch_size)
    return TiledPictures(detector, selection, max_detections, batch_size, tiling)


def is_cut(
    boxes_xyxy: np.ndarray, tile: tuple[int, int, int, int], size: tuple[int, int], border: float
) -> np.ndarray:
    """Return a mask of the boxes that end at a side of their tile that is not a side of the picture.

    The mask is (number of boxes,) bool, and True for these boxes.

    Args:
        boxes_xyxy: (number of boxes, 4), in pixels of the picture.
        tile: (x0, y0, x1, y1), in pixels of the picture.
        size: (height, width) of the picture.
        border: the distance in pixels up to which a box counts as ending at a side.
    """
    x0, y0, x1, y1 = tile
    height, width = size
    cut: np.ndarray = np.zeros(len(boxes_xyxy), bool)
    if x0 > 0:
        cut |= boxes_xyxy[:, 0] <= x0 + border
    if y0 > 0:
        cut |= boxes_xyxy[:, 1] <= y0 + border
    if x1 < width:
        cut |= boxes_xyxy[:, 2] >= x1 - border
    if y1 < height:
        cut |= boxes_xyxy[:, 3] >= y1 - border
    return cut


def merge_parts(found: Detections, cut: np.ndarray) -> Detections:
    """Remove duplicates and merge parts of objects; return the detections, best score first.

    Of whole boxes of a class with an IoU above 0.5, only the one with the best score remains. A box that is
    cut by a tile's border is removed, whatever its score, if it overlaps a remaining whole box of its class
    by at least half of the smaller of the two. Remaining cut boxes of a class that overlap by as much are
    considered parts of one object: a single detection with the best of their scores replaces them, and its
    box contains all of them.

    Args:
        found: detections in pixels of the picture; all but the `MAX_CANDIDATES` best are dropped.
        cut: the mask of the boxes that are cut by a tile's border, one entry per detection.

    Raises:
        UserError: if the library supervision is not installed.
    """
    order = np.argsort(-found.scores, kind="stable")[:MAX_CANDIDATES]
    found, cut = found.take(order), cut[order]
    if len(found) < 2:
        return found
    library = import_supervision("tiling")
    rows = np.concatenate(
        [found.boxes_xyxy, found.scores[:, None], found.labels[:, None].astype(np.float32)], axis=1
    )
    whole, parts = np.flatnonzero(~cut), np.flatnonzero(cut)
    if len(whole):
        whole = whole[library.box_non_max_suppression(rows[whole], SAME_OBJECT)]
    if len(whole) and len(parts):
        inside = library.box_iou_batch(
            found.boxes_xyxy[whole], found.boxes_xyxy[parts], library.OverlapMetric.IOS
        )
        inside[found.labels[whole][:, None] != found.labels[parts][None]] = 0
        parts = parts[inside.max(axis=0) < SAME_OBJECT]
    boxes = found.boxes_xyxy.copy()
    remaining = list(whole)
    if len(parts):
        for group in library.box_non_max_merge(rows[parts], SAME_OBJECT, library.OverlapMetric.IOS):
            members = parts[group]
            best = members[found.scores[members].argmax()]
            boxes[best, :2], boxes[best, 2:] = (
                found.boxes_xyxy[members, :2].min(axis=0),
                found.boxes_xyxy[members, 2:].max(axis=0),
            )
            remaining.append(best)
    return replace(found, boxes_xyxy=boxes).take(np.sort(np.array(remaining, dtype=int)))
