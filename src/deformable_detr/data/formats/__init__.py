"""Readers of data sets in COCO, Pascal VOC and YOLO layout, which is recognised automatically.

`read_split` returns a `Split` (data/records.py), the same for every layout. Broken entries of the files are
dropped or clipped, and reported as a `Problem` with file and line, or annotation id. The objects of an image
that is left out are not reported. The kinds of problems are:

    boxes         zero-size-box, negative-box, box-not-finite, box-outside-image, box-in-fractions (dropped),
                  box-over-border (clipped; reported if the box extends more than 0.1 pixels beyond the image)
    objects       not-a-number, malformed-box, missing-name, wrong-column-count, not-a-fraction,
                  class-out-of-range, malformed-annotation, unknown-category, unknown-image (dropped);
                  duplicate-annotation-id, missing-annotation-id, bad-area, bad-iscrowd (kept, corrected)
    images        missing-image, missing-annotation, unreadable-image, unreadable-annotation,
                  unreadable-labels, too-many-objects, outside-root, malformed-image, duplicate-image-id (left
                  out);
                  duplicate-image (read once), missing-size (taken from the file)
    the rest      malformed-category, duplicate-category-id, class-count, label-without-image, pose-or-polygon
    notes         polygon, pose, extra-column, path-not-found, missing-split, respelt-name: nothing is lost,
                  and `read_split` with `strict` allows them

A split is selected by its name in the data set, but `val` also finds val2017 and valid, and `train` finds
train2017. Input is treated only as data: no path leaves the data set's folder, XML with a document type
declaration is refused, and YAML tags have no effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from ..records import Split
from ..remote_folder import RemoteFolder
from . import coco, voc, yolo
from .splits import in_usual_order, name_to_measure_on, names_meant

NOTES = frozenset({"polygon", "pose", "extra-column", "path-not-found", "missing-split", "respelt-name"})

_SHOWN = 3


@dataclass(frozen=True)
class _Layout:
    present: Callable[[Path], bool]
    splits: Callable[[Path], tuple[str, ...]]
    read: Callable[[Path, str], Split]
    looked_for: str
    hint: Callable[[Path], str]


# In order of preference if a data set has several: COCO states more than the others (sizes, crowds, areas,
# ids).
_LAYOUTS = {
    "coco": _Layout(coco.present, coco.splits, coco.read, coco.LOOKED_FOR, coco.hint),
    "voc": _Layout(voc.present, voc.splits, voc.read, voc.LOOKED_FOR, voc.hint),
    "yolo": _Layout(yolo.present, yolo.splits, yolo.read, yolo.LOOKED_FOR, yolo.hint),
}


def formats_found(root: Path | str) -> tuple[str, ...]:
    """Return the layouts that a data set has among coco, voc and yolo, in this order; empty if none.

    Args:
        root: the data set's folder, or a COCO JSON, YOLO YAML or Darknet *.data file.

    Raises:
        UserError: if `root` does not exist, or a *.data file in it cannot be read.
    """
    place = _place(root)
    return tuple(name for name, layout in _LAYOUTS.items() if layout.present(place))


def detect_format(root: Path | str) -> str:
    """Return the layout that "auto" selects: the first of `formats_found`.

    Raises:
        UserError: if `root` does not exist or is not a data set (the message lists the expected files), or a
            *.data file in it cannot be read.
    """
    found = formats_found(root)
    if not found:
        looked_for = "; ".join(layout.looked_for for layout in _LAYOUTS.values())
        hints = [hint for layout in _LAYOUTS.values() if (hint := layout.hint(_place(root)))]
        raise UserError(f"{root} is not a data set: looked for {looked_for}{_in_brackets(hints)}.")
    return found[0]


def list_splits(root: Path | str, *, format: str = "auto") -> tuple[str, ...]:
    """Return the names of a data set's splits in its own spelling; train, val and test come first.

    Raises:
        UserError: if `root` is not a data set or does not have the layout `format`, if `format` is not auto,
            coco, voc or yolo, or if a file that describes the data set is unusable.
    """
    return in_usual_order(_layout(root, format).splits(_place(root)))


def read_split(
    root: Path | str,
    split: str | None,
    *,
    format: str = "auto",
    strict: bool = False,
    images: RemoteFolder | None = None,
) -> Split:
    """Read one split of a data set.

    Args:
        root: the data set's folder, or a COCO JSON, YOLO YAML or Darknet *.data file.
        split: the split's name (see `list_splits`); None means the split on which training measures: val,
            or test if there is no val.
        format: coco, voc or yolo; auto recognises the layout.
        strict: whether to refuse data with problems (except `NOTES`) instead of dropping broken entries.
        images: the folder behind a URL that holds the pictures, if they are not in the data set (COCO
            only).

    Raises:
        UserError: if there is no such folder, data set or layout; if no split or several splits match
            `split`; if a file is unusable, or no image is left; if `strict` is true and there are problems;
            or if `images` is given for a layout other than COCO.
    """
    splits = list_splits(root, format=format)
    name = _to_measure_on(splits, root) if split is None else _match(split, splits, root)
    if images is None:
        result = _layout(root, format).read(_place(root), name)
    elif (detect_format(root) if format == "auto" else format) == "coco":
        result = coco.read(_place(root), name, images)
    else:
        raise UserError(
            f"pictures behind a URL ({images.url}) need annotations in COCO layout, which states names and "
            f"sizes, and {root} has another layout: convert it to COCO, or copy the pictures to the disk."
        )
    if not result.images:
        lost = [problem for problem in result.problems if problem.kind not in NOTES]
        why = (
            f"the first of {len(lost)} problems is {lost[0].where}: {lost[0].message}"
            if lost
            else ("it lists none")
        )
        raise UserError(f"split {name} of {root} has no image that can be used ({why}).")
    serious = [problem for problem in result.problems if problem.kind not in NOTES]
    if strict and serious:
        shown = "; ".join(f"{problem.where}: {problem.message}" for problem in serious[:_SHOWN])
        count = "1 problem" if len(serious) == 1 else f"{len(serious)} problems"
        more = f"; and {len(serious) - _SHOWN} more" if len(serious) > _SHOWN else ""
        raise UserError(
            f"split {name} of {root} has {count} ({shown}{more}): fix them, or read it "
            "without strict to continue with the rest."
        )
    return result


def _layout(root: Path | str, format: str) -> _Layout:
    if format == "auto":
        return _LAYOUTS[detect_format(root)]
    if format not in _LAYOUTS:
        raise UserError(f"unknown format {format}: choose auto, {', '.join(_LAYOUTS)}.")
    layout = _LAYOUTS[format]
    if not layout.present(_place(root)):
        hint = layout.hint(_place(root))
        raise UserError(
            f"{root} is not a data set in {format} layout: looked for {layout.looked_for}"
            f"{_in_brackets([hint] if hint else [])}."
        )
    return layout


def _in_brackets(hints: Sequence[str]) -> str:
    return f" ({'; '.join(hints)})" if hints else ""


def _place(root: Path | str) -> Path:
    # Absolute, but links are kept, so that messages use the path that the user gave.
    place = Path(os.path.abspath(root))
    if not place.exists():
        raise UserError(f"there is no data set at {root}: check the path.")
    return place


def _to_measure_on(available: tuple[str, ...], root: Path | str) -> str:
    name = name_to_measure_on(available)
    if name is None:
        raise UserError(
            f"{root} has no split to measure on, val or test: there is {', '.join(available) or 'none'}; "
            "name one with --split."
        )
    return name


def _match(wanted: str, available: tuple[str, ...], root: Path | str) -> str:
    matches = names_meant(wanted, available)
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"split {wanted} of {root} could be {' or '.join(matches)}: name one.")
    raise UserError(f"{root} has no split {wanted}: there is {', '.join(available) or 'none'}.")
