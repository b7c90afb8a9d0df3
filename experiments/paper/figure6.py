"""Figure 6: where the encoder and the decoder look for objects, as pictures and as numbers.

    python -m experiments.paper figure6 MODEL IMAGE… --output runs/paper [--threshold 0.4] [--most 2]

According to the paper, its figure shows that the encoder's points for a position on an object are on that
object, and that the decoder's points cover the whole object. `figure6.json` states how much of the attention
weight is inside a detection's box, layer by layer, and the box's share of the picture, which chance would
give.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.explain import draw
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.loading import load
from deformable_detr.inference.pictures import Picture
from deformable_detr.inference.trace import Explanation

from .one_picture import add_picture_arguments, pictures_of, write_figures

CAPTION = (
    "Sampling points of the last layer, all heads and levels together, coloured by attention weight. Around "
    "a detection: of the decoder, with the boxes after each layer. Around a cross: of the encoder, from the "
    "tokens at the detections' centres, a panel for each level that the token may be of."
)


@dataclass(frozen=True)
class Looks:
    """The fraction of one detection's attention weight that is inside its box, by layer. `area` is the box's
    share of the picture. `encoder` is measured from the tokens at the box's centre, as the mean over
    levels."""

    name: str
    score: float
    box_xyxy: tuple[float, ...]
    area: float
    decoder: tuple[float, ...]
    encoder: tuple[float, ...]


def add_arguments(parser: Parser) -> None:
    add_picture_arguments(parser, most=2)


def run(arguments: Namespace) -> None:
    images = pictures_of(arguments)
    detector = load(arguments.model, arguments.device)
    figures, entries, all_looks = [], [], []
    for image in images:
        explanation = explain_centres(detector, image, arguments.threshold, arguments.most)
        figures.append(draw(explanation, most=arguments.most))
        looks = looks_of(explanation)
        all_looks += looks
        entries.append({"image": str(image), "detections": [_rounded(each) for each in looks]})
        for each in looks:
            print(
                f"{image.name}: {each.name} {each.score:.2f}, box {each.area:.1%} of the picture, of the "
                f"weight inside: encoder {each.encoder[-1]:.0%}, decoder {each.decoder[-1]:.0%}"
            )
    print(CAPTION)
    mean = {
        "detections": len(all_looks),
        "area_share": round(fmean(each.area for each in all_looks), 4),
        "decoder_weight_inside": round(fmean(each.decoder[-1] for each in all_looks), 4),
        "encoder_weight_inside": round(fmean(each.encoder[-1] for each in all_looks), 4),
    }
    write_figures("figure6", arguments, figures, entries, mean)


def explain_centres(detector: Detector, image: Picture, threshold: float, most: int) -> Explanation:
    """Explain the best detections, and where the encoder looks from their centres.

    Raises:
        UserError: if nothing is detected, or for the reasons that `Detector.explain` documents.
    """
    found = detector.explain(image, threshold, max_detections=most).detections
    if not len(found):
        raise UserError(f"nothing is detected in {image} above {threshold}: lower --threshold.")
    height, width = found.image_size
    centres = (found.boxes_xyxy[:, :2] + found.boxes_xyxy[:, 2:]) / 2
    at = [(float(x), float(y)) for x, y in np.clip(centres.round(), 0, [width, height])]
    return detector.explain(image, threshold, max_detections=most, at=at)


def looks_of(explanation: Explanation) -> list[Looks]:
    """Return the `Looks` of each detection, in order; `explanation` comes from `explain_centres`."""
    detections, encoder = explanation.detections, explanation.encoder
    assert encoder is not None
    boxes = detections.boxes_xyxy
    num_levels = encoder.tokens.shape[1]
    decoder = explanation.queries.attention.share_inside(boxes)  # (N, T)
    of_encoder = encoder.attention.share_inside(boxes.repeat(num_levels, 0))
    of_encoder = of_encoder.reshape(len(boxes), num_levels, -1).mean(1)
    height, width = detections.image_size
    low, high = np.clip(boxes[:, :2], 0, [width, height]), np.clip(boxes[:, 2:], 0, [width, height])
    areas = (high - low).prod(-1) / (height * width)
    return [
        Looks(
            name=str(detections.names[row]),
            score=float(detections.scores[row]),
            box_xyxy=tuple(boxes[row].tolist()),
            area=float(areas[row]),
            decoder=tuple(decoder[row].tolist()),
            encoder=tuple(of_encoder[row].tolist()),
        )
        for row in range(len(boxes))
    ]


def _rounded(each: Looks) -> dict[str, Any]:
    return {
        "name": each.name,
        "score": round(each.score, 4),
        "box_xyxy": [round(value, 1) for value in each.box_xyxy],
        "area_share": round(each.area, 4),
        "decoder_weight_inside": [round(value, 4) for value in each.decoder],
        "encoder_weight_inside": [round(value, 4) for value in each.encoder],
    }
