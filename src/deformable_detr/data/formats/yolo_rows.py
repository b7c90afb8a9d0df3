"""The rows of YOLO's label files: `class cx cy w h`, and the variants that tools write.

class cx cy w h               fractions of the image's width and height
class cx cy w h n             n is a track number (CVAT) or a score; it is not used
class x y x y x y …           three or more points: a segment or an oriented box, taken as its bounding box
class cx cy w h x y v …       a pose: the keypoints are not used. Without visibilities v, the row could also
                              be a segment; kpt_shape in the YAML file then marks it as a pose
"""

from __future__ import annotations

import math

import numpy as np

from ...detections import ClassTable
from ..records import Problem
from .assembly import RawObjects

# Boxes may extend beyond the image, but a row with a number above this is in pixels.
_LARGEST_FRACTION = 2.0
_VISIBILITIES = frozenset({0.0, 1.0, 2.0})
_POINTS_OF_A_POSE = 3  # rows without visibilities look like poses only if all have this many keypoints
_NOTES = {
    "polygon": "{} polygons, the first one here: taken as their bounding boxes",
    "extra-column": "{} rows with a sixth column (track number or score), the first one here: it is not used",
    "pose": "{} rows with keypoints after the box, the first one here: they are not used",
}


class Rows:
    """The rows of label files, collected as columns.

    `keypoints`: True if the file that describes the data set announces keypoints. `places`: file and line of
    each row that is used. `problems`: the problems of the rows read so far. `num_read`: the number of all
    rows, used or not, except blank ones.
    """

    def __init__(self, classes: ClassTable, keypoints: bool) -> None:
        self.places: list[str] = []
        self.problems: list[Problem] = []
        self.num_read = 0
        self._index_of = {category_id: index for index, category_id in enumerate(classes.category_ids)}
        self._keypoints = keypoints
        self._image_index: list[int] = []
        self._labels: list[int] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._polygons = _Polygons()

    def read(self, text: str, called: str, image_index: int, size: tuple[int, int]) -> None:
        """Add the rows of one file.

        Args:
            text: the content of the file.
            called: the name of the file in messages.
            image_index: the position of its image among the images of the split.
            size: (H, W) of the image, in pixels.
        """
        noted: dict[str, list[int]] = {}
        for line, row in enumerate(text.splitlines(), start=1):
            columns = row.split()
            if not columns:
                continue
            self.num_read += 1
            where = f"{called}:{line}"
            try:
                number, *values = [float(column) for column in columns]
            except ValueError:
                self._drop("not-a-number", where, f"{row.strip()!r:.80} is not made of numbers")
                continue
            if number not in self._index_of:
                self._drop("class-out-of-range", where, f"names has no class {columns[0]!r:.20}")
                continue
            form = self._form(values)
            if form is None:
                self._drop("wrong-column-count", where, f"{len(columns)} columns, not 5 (class cx cy w h)")
                continue
            used = values if form == "polygon" else values[:4]
            if max(used) > _LARGEST_FRACTION:
                what = f"{max(used):g} is not a fraction of the image's width or height"
                self._drop("not-a-fraction", where, what)
                continue
            if form == "polygon":
                self._polygons.add(values, where)
            self._image_index.append(image_index)
            self._labels.append(self._index_of[int(number)])
            self._boxes.append(_around(values, size) if form == "polygon" else _from_centre(used, size))
            self.places.append(where)
            noted.setdefault(form, []).append(line)
        for kind, message in _NOTES.items():
            if lines := noted.get(kind):
                self.problems.append(Problem(kind, f"{called}:{lines[0]}", message.format(len(lines))))

    def _form(self, values: list[float]) -> str | None:
        """Return the form of a row from its values after the class: box, extra-column, pose or polygon.

        Return None if the row has none of these forms. If the file that describes the data set announces
        keypoints, each row with at least four values is a box.
        """
        count = len(values)
        if count == 4:
            return "box"
        if count < 4:
            return None
        if self._keypoints:
            return "box"
        if count == 5:
            return "extra-column"
        if (count - 4) % 3 == 0 and _VISIBILITIES.issuperset(values[6::3]):
            return "pose"
        return "polygon" if count % 2 == 0 else None

    def finish(self) -> list[Problem]:
        """Return the problems and notes of all rows, after the last file has been read."""
        return self.problems + self._polygons.problems()

    def objects(self) -> RawObjects:
        count = len(self._boxes)
        return RawObjects(
            image_index=np.array(self._image_index, dtype=np.int64),
            labels=np.array(self._labels, dtype=np.int64),
            boxes_xyxy=np.array(self._boxes, dtype=np.float64).reshape(-1, 4),
            crowd=np.zeros(count, dtype=bool),
            difficult=np.zeros(count, dtype=bool),
            area=np.full(count, np.nan),
            annotation_ids=np.arange(1, count + 1),
        )

    def _drop(self, kind: str, where: str, what: str) -> None:
        self.problems.append(Problem(kind, where, f"{what}: dropped"))


def _from_centre(values: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    cx, cy, w, h = values
    return (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height


def _around(points: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    if not all(map(math.isfinite, points)):  # min and max would depend on the position of the NaN
        return (math.nan,) * 4
    xs, ys = points[0::2], points[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height


class _Polygons:
    """Statistics of the rows that were taken for polygons, to detect that they may be poses.

    Segments differ in their number of points. Two or more rows that all have the same number of points, five
    or more, are probably poses if the first four numbers of each row would form a box around all of its later
    points.
    """

    def __init__(self) -> None:
        self._lengths: set[int] = set()
        self._all_inside = True
        self._count = 0
        self._first = ""

    def add(self, values: list[float], where: str) -> None:
        self._first = self._first or where
        self._count += 1
        self._lengths.add(len(values))
        cx, cy, w, h = values[:4]
        xs, ys = values[4::2], values[5::2]
        self._all_inside &= all(abs(x - cx) <= w / 2 for x in xs) and all(abs(y - cy) <= h / 2 for y in ys)

    def problems(self) -> list[Problem]:
        long_enough = min(self._lengths, default=0) >= 4 + 2 * _POINTS_OF_A_POSE
        if self._count < 2 or len(self._lengths) != 1 or not (self._all_inside and long_enough):
            return []
        message = (
            f"all {self._count} polygons have {min(self._lengths) // 2} points, and the first two would be a "
            "box around the others: if they are boxes with keypoints, add kpt_shape to the YAML file"
        )
        return [Problem("pose-or-polygon", self._first, message)]
