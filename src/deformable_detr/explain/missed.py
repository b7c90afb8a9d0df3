"""Find the reason why an object was missed, which is the first stage of the model that lost it.

The stages are checked in the order in which the model works: whether any query attended to the object,
whether any query placed its box on the object, whether a query with such a box predicted the object's class,
whether the score of this query was high enough, and whether the query was neither taken by another object nor
suppressed by a better detection.

Letters: N objects, Q queries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from ..boxes import iou
from ..classification import ClassificationScheme
from ..data.loading import open_annotated
from ..data.records import ImageRecord, Split
from ..evaluation import match_classes
from ..evaluation.matching import assign
from ..inference.detector import Detector
from ..inference.selection import Selection
from ..inference.trace import QueryTraces, Trace, trace_picture

ATTENDED = 0.25  # minimum share of a query's weight in one decoder layer inside the object's box
PLACED = 0.5  # minimum IoU of a query's box with the object's box


class Stage(Enum):
    """The stage of the model at which an object was lost, or FOUND if it was not lost."""

    FOUND = "found"
    NEVER_ATTENDED = "never attended"
    BADLY_PLACED = "badly placed"
    WRONG_CLASS = "wrong class"
    UNDER_THRESHOLD = "under the threshold"
    LOST = "lost"


MEANINGS = {
    Stage.NEVER_ATTENDED: f"no query has {ATTENDED:.0%} of its weight inside the box",
    Stage.BADLY_PLACED: f"attended, but no box has an IoU of {PLACED}",
    Stage.WRONG_CLASS: f"a box has an IoU of {PLACED}, but another class scores higher",
    Stage.UNDER_THRESHOLD: "the right class scores highest, but below the threshold",
    Stage.LOST: "its query was taken by another object, or suppressed by one",
}


@dataclass(frozen=True)
class Claims:
    """The detections of one picture that reach the thresholds, best first, as arrays of equal length.

    Attributes:
        queries: the index of each detection's query.
        labels: the class index of each detection.
        scores: the score of each detection.
        suppressed: the (query, class) pairs that non-maximum suppression removed, each mapped to the index of
            the detection of its class that it overlaps most; empty if the model uses no suppression
            (`model.nms_iou`).
    """

    queries: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    suppressed: dict[tuple[int, int], int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The result for one object: the stage at which it was lost, and the query that passed the most stages.

    Attributes:
        stage: the stage at which the object was lost, or FOUND.
        attention: the largest share of any query's weight, in any decoder layer, inside the object's box; the
            share is a mean over the attention heads.
        iou: the largest IoU of any query's box, after the last layer, with the object's box.
        query: the index of the query that passed the most stages.
        label: the class to which this query gives its highest score.
        score: the score that this query gives to the object's class.
        taken_by: if the stage is LOST, the index (from 0) of the object, among those passed to `verdicts`,
            that is matched to the query's detection or, if that was suppressed, to the detection that it
            overlaps most. None if there is no such object.
    """

    stage: Stage
    attention: float
    iou: float
    query: int
    label: int
    score: float
    taken_by: int | None = None


def claims(
    classification: ClassificationScheme, trace: Trace, selection: Selection, nms_iou: float | None = None
) -> Claims:
    """Return all (query, class) pairs that reach the threshold of the class, however many there are.

    If only one class can be true of a query, as with softmax, only the pair with its best class counts. Pairs
    that non-maximum suppression removes are returned separately, in `Claims.suppressed`.

    Args:
        classification: the conversion of the model's logits to scores.
        trace: the traces of all queries of one picture.
        selection: the threshold of each class.
        nms_iou: the IoU above which suppression removes the pair with the lower score, of two pairs of the
            same class; None means no suppression.
    """
    logits = trace.predictions.logits.float()
    pairs = classification.select(logits, logits.shape[1] * classification.num_classes)
    queries, labels = pairs.queries[0].cpu().numpy(), pairs.labels[0].cpu().numpy()
    scores = trace.queries.scores[queries, labels]  # 0 for unused classes
    above = scores >= selection.thresholds[labels]
    queries, labels, scores = queries[above], labels[above], scores[above]
    if nms_iou is None:
        return Claims(queries, labels, scores)
    boxes = torch.from_numpy(trace.queries.boxes_xyxy[queries, -1]).double()
    retained = batched_nms(
        boxes, torch.from_numpy(scores).double(), torch.from_numpy(labels), nms_iou
    ).numpy()
    overlap = iou(boxes[:, None], boxes[None, retained]).numpy()
    overlap[labels[:, None] != labels[None, retained]] = -1.0
    removed = np.setdiff1d(np.arange(len(queries)), retained)
    suppressed = {(int(queries[i]), int(labels[i])): int(overlap[i].argmax()) for i in removed}
    return Claims(queries[retained], labels[retained], scores[retained], suppressed)


def verdicts(
    queries: QueryTraces, claimed: Claims, boxes_xyxy: np.ndarray, labels: np.ndarray
) -> list[Verdict]:
    """Return a verdict on each of the N objects of a picture, in the order of the objects.

    Args:
        queries: the traces of all Q queries.
        claimed: the queries' detections that reach the thresholds.
        boxes_xyxy: the objects' boxes in pixels, (N, 4).
        labels: the objects' class indices in the model, (N,).
    """
    if not len(labels):
        return []
    objects, predicted = torch.from_numpy(boxes_xyxy), torch.from_numpy(queries.boxes_xyxy[:, -1])
    overlap = iou(objects[:, None].double(), predicted[None].double()).numpy()  # (N, Q)
    fits = np.where(claimed.labels[:, None] == labels, overlap.T[claimed.queries], -1.0)
    taken = {claim: int(number) for claim, number in enumerate(assign(fits, PLACED)) if number >= 0}
    return [
        _verdict(queries, claimed, number, box, int(label), overlap[number], taken)
        for number, (box, label) in enumerate(zip(boxes_xyxy, labels, strict=True))
    ]


def _verdict(
    queries: QueryTraces,
    claimed: Claims,
    number: int,
    box: np.ndarray,
    label: int,
    overlap: np.ndarray,
    taken: dict[int, int],
) -> Verdict:
    attention = queries.attention.share_inside(box).max(-1)  # (Q,), the maximum over the layers
    best_class = queries.scores.argmax(-1)

    def verdict(stage: Stage, query: int, taken_by: int | None = None) -> Verdict:
        return Verdict(
            stage,
            float(attention.max()),
            float(overlap.max()),
            query,
            int(best_class[query]),
            float(queries.scores[query, label]),
            taken_by,
        )

    for claim, object_number in taken.items():
        if object_number == number:
            return verdict(Stage.FOUND, int(claimed.queries[claim]))
    if attention.max() < ATTENDED:
        return verdict(Stage.NEVER_ATTENDED, int(attention.argmax()))
    if overlap.max() < PLACED:
        return verdict(Stage.BADLY_PLACED, int(overlap.argmax()))
    placed = np.flatnonzero(overlap >= PLACED)
    right = placed[best_class[placed] == label]
    if not len(right):
        return verdict(Stage.WRONG_CLASS, int(overlap.argmax()))
    strongest = int(right[queries.scores[right, label].argmax()])
    its_claim = np.flatnonzero((claimed.queries == strongest) & (claimed.labels == label))
    if (strongest, label) in claimed.suppressed:
        return verdict(Stage.LOST, strongest, taken.get(claimed.suppressed[strongest, label]))
    if not len(its_claim):
        return verdict(Stage.UNDER_THRESHOLD, strongest)
    # This object is still free, so the claim must have taken another one that it overlaps more.
    return verdict(Stage.LOST, strongest, taken[int(its_claim[0])])


@dataclass(frozen=True)
class Judged:
    """The objects of one image with their verdicts, without crowd regions and objects of unknown classes.

    Attributes:
        record: the image's annotations.
        numbers: the indices of the objects in the image's record, (N,).
        labels: the objects' class indices in the model, (N,).
        verdicts: one verdict per object.
        queries: the traces of all queries.
    """

    record: ImageRecord
    numbers: np.ndarray
    labels: np.ndarray
    verdicts: tuple[Verdict, ...]
    queries: QueryTraces


@dataclass(frozen=True)
class MissedReport:
    """The verdicts on the objects of many images.

    Attributes:
        selection: the minimum score of each class.
        images: the number of images.
        stages: the number of objects that ended at each stage, including FOUND.
        per_class: the number of objects of each class, by name, that ended at each stage.
        unknown: the number of objects of classes that the model does not have.
        rows: one row per missed object, as JSON values.
    """

    selection: Selection
    images: int
    stages: Counter[Stage]
    per_class: dict[str, Counter[Stage]]
    unknown: int
    rows: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "threshold": self.selection.common,
            "thresholds": self.selection.by_class,
            "thresholds_from": self.selection.reason,
            "images": self.images,
            "objects": sum(self.stages.values()),
            "objects_of_unknown_classes": self.unknown,
            "stages": {stage.value: self.stages[stage] for stage in Stage},
            "per_class": {
                name: {stage.value: counts[stage] for stage in Stage}
                for name, counts in self.per_class.items()
            },
            "missed": list(self.rows),
        }


def missed_objects(
    detector: Detector, split: Split, selection: Selection, images: Sequence[ImageRecord] | None = None
) -> Iterator[Judged]:
    """Yield the verdicts on the objects of each image, for all images of a split or only for `images`.

    Crowd regions and objects of classes that the model does not have are left out.

    Raises:
        UserError: if an image cannot be read or does not have its annotated size, the model and the data have
            no class in common, the detector comes from an exported file, or the model's output is not finite.
    """
    to_model = {
        split.classes.category_ids.index(category_id): label
        for label, category_id in match_classes(detector.classes, split.classes, split.source).items()
    }
    for record in split.images if images is None else images:
        picture = open_annotated(record, split.source, detector.data.max_pixels)
        trace = trace_picture(detector, picture)
        known = np.array([label in to_model for label in record.labels], dtype=bool)
        numbers = np.flatnonzero(known & ~record.crowd)
        labels = np.array([to_model[label] for label in record.labels[numbers]], dtype=np.int64)
        claimed = claims(detector.classification, trace, selection, detector.config.nms_iou)
        judged = verdicts(trace.queries, claimed, record.boxes_xyxy[numbers], labels)
        yield Judged(record, numbers, labels, tuple(judged), trace.queries)


class Tally:
    """A counter of the verdicts on judged images, which creates a `MissedReport`."""

    def __init__(self, detector: Detector, selection: Selection):
        self.classes, self.selection = detector.classes, selection
        self.images = self.unknown = 0
        self.stages: Counter[Stage] = Counter()
        self.per_class: dict[str, Counter[Stage]] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, judged: Judged) -> None:
        self.images += 1
        self.unknown += judged.record.num_objects - len(judged.numbers)
        for number, label, verdict in zip(judged.numbers, judged.labels, judged.verdicts, strict=True):
            name = self.classes.name(label)
            self.stages[verdict.stage] += 1
            self.per_class.setdefault(name, Counter())[verdict.stage] += 1
            if verdict.stage is not Stage.FOUND:
                self.rows.append(self._row(judged, int(number), name, verdict))

    def _row(self, judged: Judged, number: int, name: str, verdict: Verdict) -> dict[str, Any]:
        record = judged.record
        taken_by = None
        if verdict.taken_by is not None:
            taken_by = int(record.annotation_ids[judged.numbers[verdict.taken_by]])
        return {
            "stage": verdict.stage.value,
            "image_id": record.image_id,
            "file_name": record.file_name,
            "annotation_id": int(record.annotation_ids[number]),
            "category": name,
            "box_xyxy": [round(float(value), 2) for value in record.boxes_xyxy[number]],
            "attention_inside": round(verdict.attention, 4),
            "best_iou": round(verdict.iou, 4),
            "query": verdict.query,
            "class_on_top": self.classes.name(verdict.label),
            "score": round(verdict.score, 4),
            "taken_by_annotation": taken_by,
        }

    def report(self) -> MissedReport:
        return MissedReport(
            self.selection,
            self.images,
            self.stages,
            dict(sorted(self.per_class.items())),
            self.unknown,
            tuple(self.rows),
        )
