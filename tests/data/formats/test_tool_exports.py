"""What annotation tools export is read as it is, whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.formats import NOTES, detect_format, list_splits, read_split
from tests.support.tool_exports import CAT_XYXY, DOG_XYXY, EXPORTS

# VOC and FiftyOne: a size that is not stated is read from the file, and said to be.
EXPECTED_KINDS = NOTES | {"missing-size", "bad-iscrowd"}


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_exports_are_read_whole(export: Callable[[Path], None], tmp_path: Path) -> None:
    export(tmp_path)
    layout, splits = EXPORTS[export]
    assert detect_format(tmp_path) == layout
    assert list_splits(tmp_path) == splits
    split = read_split(tmp_path, "train")
    assert split.classes.names == ("cat", "dog")
    assert {problem.kind for problem in split.problems} <= EXPECTED_KINDS
    assert sorted(image.path.name for image in split.images) == ["a.jpg", "b c.jpg"]
    assert (split.num_listed_images, split.num_listed_objects, split.num_objects) == (2, 4, 4)
    for image in split.images:
        assert image.size == (48, 64)
        np.testing.assert_allclose(image.boxes_xyxy, [CAT_XYXY, DOG_XYXY], atol=1e-3)
        assert image.labels.tolist() == [0, 1]
