"""Pictures that are in a data set twice: the same picture, whatever its file name, size or compression.

The fingerprint of a picture is its grey thumbnail of 16 x 17 means; its perceptual hash is the sign of the
difference of neighbours, 256 bits (Krawetz's difference hash, at twice its usual width). Two pictures are the
same where all of these hold:

- their sides have the same ratio, to 3 %;
- at most 20 of the 256 bits differ;
- the thumbnails differ by at most 5 % of their contrast (mean absolute difference by standard deviation).

The hash alone is not enough: frames of a drone that are seconds apart come as close as 18 bits. Measured on
the 500 photographs, microscope and aerial pictures of data/: re-encoding as JPEG of quality 30 and 50,
halving and quartering the sides moves a picture by at most 17 bits, and nineteen times out of twenty by less
than 5 % of its contrast; the closest two different ones, neighbouring frames, are 25 bits and 5.9 % apart.
Mirrored, cropped or recoloured copies are not found; what is merely similar is not flagged. Own lines, not
the package imagehash: it would bring PyWavelets along for a hash of 64 bits that is no judge by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THUMBNAIL = (16, 17)
MOST_BITS = 20
MOST_CONTRAST = 0.05
MOST_ASPECT = 0.03


@dataclass(frozen=True)
class Fingerprint:
    """A picture of a split. `thumbnail`: THUMBNAIL grey float32. `aspect`: width by height."""

    split: str
    file_name: str
    thumbnail: np.ndarray
    aspect: float


@dataclass(frozen=True)
class DuplicateGroup:
    """Entries that are the same picture, as (split, file name). `bits`: the largest distance of one of them
    to another that it was found by, of 256."""

    members: tuple[tuple[str, str], ...]
    bits: int

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(split for split, _ in self.members))

    def to_dict(self) -> dict[str, Any]:
        files = [{"split": split, "file_name": name} for split, name in self.members]
        return {"bits": self.bits, "files": files}


def find_duplicates(prints: Sequence[Fingerprint]) -> tuple[DuplicateGroup, ...]:
    """Groups of two and more, those over several splits first."""
    if len(prints) < 2:
        return ()
    thumbnails = np.stack([each.thumbnail for each in prints])
    flat = thumbnails.reshape(len(prints), -1)
    means, contrasts = flat.mean(axis=1), flat.std(axis=1)
    aspects = np.log([each.aspect for each in prints])
    hashes = np.packbits(thumbnails[:, :, 1:] > thumbnails[:, :, :-1], axis=None).reshape(len(prints), -1)

    # Pictures whose thumbnails are close have close means: only neighbours in that order are compared.
    order = np.argsort(means, kind="stable")
    means, contrasts, aspects = means[order], contrasts[order], aspects[order]
    flat, hashes = flat[order], hashes[order]
    parent = list(range(len(prints)))
    bits = [0] * len(prints)

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    # 16 means of 255 grey levels round to half a level: what flat pictures may differ by.
    reach = MOST_CONTRAST * contrasts + 0.5 * (contrasts > 0)
    ends = np.searchsorted(means, means + reach, side="right")
    for first in range(len(prints)):
        others = np.arange(first + 1, ends[first])
        others = others[np.abs(aspects[others] - aspects[first]) <= MOST_ASPECT]
        distance = _BITS[hashes[others] ^ hashes[first]].sum(axis=1)
        near = distance <= MOST_BITS
        others, distance = others[near], distance[near]
        difference = np.abs(flat[others] - flat[first]).mean(axis=1)
        same = difference <= MOST_CONTRAST * np.minimum(contrasts[others], contrasts[first])
        for other, apart in zip(others[same].tolist(), distance[same].tolist(), strict=True):
            a, b = sorted((root(first), root(other)))
            parent[b] = a
            bits[a] = max(bits[a], bits[b], int(apart))

    groups: dict[int, list[int]] = {}
    for index in range(len(prints)):
        groups.setdefault(root(index), []).append(int(order[index]))
    found = [
        DuplicateGroup(tuple((prints[i].split, prints[i].file_name) for i in sorted(members)), bits[key])
        for key, members in groups.items()
        if len(members) > 1
    ]
    return tuple(sorted(found, key=lambda group: (-len(group.splits), group.members)))


_BITS = np.array([value.bit_count() for value in range(256)], dtype=np.int64)
