"""Names of splits and their meaning: `train2017`, `Train` and `training` are the split to train on.

The data set's names are kept everywhere and interpreted only here, so that training, inspection and reports
agree on them.
"""

from __future__ import annotations

from collections.abc import Sequence

_SYNONYMS = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "eval": "val",
    "testing": "test",
}
_USUAL = ("train", "val", "test")


def meaning(name: str) -> str:
    """Return the plain name of a split: in lower case, without a number at the end, with synonyms replaced.

    Hyphens, underscores and spaces before the number are removed, too. For example, train2017 becomes train,
    and Valid, val_2 and dev become val. A name that is only a number stays as it is.
    """
    plain = name.lower().rstrip("0123456789").rstrip("-_ ") or name
    return _SYNONYMS.get(plain, plain)


def is_usual(name: str) -> bool:
    """Return True if the plain name of a split is train, val or test."""
    return meaning(name) in _USUAL


def is_training(name: str) -> bool:
    """Return True if a split's name means that it is for training, such as train2017, but not trainval."""
    return meaning(name) == "train"


def is_measured(name: str) -> bool:
    """Return True if a split's name means that it is for measuring results.

    The plain name of such a split begins with val or test: val2017, valid, dev, test and test-dev.
    """
    return meaning(name).startswith(("val", "test"))


def training_name(names: Sequence[str]) -> str | None:
    """Return the split to train on among the `names` of a data set's splits; None if there is none.

    If several names mean train, the first one is returned. If a data set has only one split, its name does
    not matter (default, all, …), unless it means val or test.
    """
    only = names[0] if len(names) == 1 and not is_measured(names[0]) else None
    return next(filter(is_training, names), only)


def name_to_measure_on(names: Sequence[str]) -> str | None:
    """Return the split to measure on: val, or test if there is no val; None if there is neither.

    If several names mean val or test, the first one is returned.
    """
    ordered = [name for kind in ("val", "test") for name in names if meaning(name).startswith(kind)]
    return next(iter(ordered), None)


def in_usual_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names with train, val and test first, then the others sorted."""

    def rank(name: str) -> tuple[int, str]:
        plain = meaning(name)
        return (_USUAL.index(plain) if plain in _USUAL else len(_USUAL), name)

    return tuple(sorted(names, key=rank))


def names_meant(wanted: str, names: Sequence[str]) -> list[str]:
    """Return the splits that `wanted` may refer to: the one of this name, or else all with the same meaning.

    If there is none, but `wanted` means train, the result of `training_name` is the only one. The list is
    empty if no split matches.
    """
    if wanted in names:
        return [wanted]
    found = [name for name in names if meaning(name) == meaning(wanted)]
    only = training_name(names) if is_training(wanted) and not found else None
    return found if only is None else [only]
