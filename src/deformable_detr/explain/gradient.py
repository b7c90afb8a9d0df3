"""The gradients of a detection's numbers with respect to the picture (paper, figure 5).

The numbers are the centre x and y, the width, the height and the class score of a detection. For each
number, the derivative with respect to every pixel that the model sees is reduced to its norm over the three
colours.

Letters: N detections; h, w the height and width of the picture as the model sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..detections import Detections
from ..inference.detector import Detector
from ..inference.pictures import Picture, read_picture
from ..inference.trace import Explanation
from ..inference.trace_drawing import BOX_COLOUR, LUMA, draw_box, grid, title, zoom
from ..structures import ImageBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TERMS = ("x", "y", "width", "height", "score")
BRIGHTEST = 0.998  # norms at or above this quantile of their panel get the last colour


@dataclass(frozen=True)
class Gradients:
    """The gradient norms of N detections.

    Attributes:
        norms: the norms for x, y, width, height and score, per unit of the normalised pixel values,
            (N, 5, h, w), for a picture that the model sees with height h and width w. The first four numbers
            are fractions of the picture, and the score is a probability.
        detections: the N detections.
    """

    norms: np.ndarray
    detections: Detections


def gradients(
    detector: Detector, image: Picture, threshold: float | None = None, *, max_detections: int = 4
) -> Gradients:
    """Compute the gradient norms of the best detections in a picture, with five backward passes for each.

    A two-stage model passes no gradient through the proposals' boxes, and a model with refinement passes none
    from layer to layer (paper, appendix A.4). The gradients of these models' boxes are therefore those of the
    last layer's correction only. The arguments are those of `Detector.explain`.

    Raises:
        UserError: if the picture cannot be read, an option is out of range, the detector comes from an
            exported file, or the model's output is not finite.
    """
    picture = read_picture(image, detector.data.max_pixels)
    explanation = detector.explain(picture, threshold, max_detections=max_detections)
    pixels = detector.plain.preprocess(picture)
    norms = [_norms(detector, pixels, explanation, row) for row in range(len(explanation))]
    shape = (0, len(TERMS), *pixels.shape[1:])
    return Gradients(
        np.stack(norms) if norms else np.zeros(shape, np.float32),
        explanation.detections,
    )


def _norms(detector: Detector, pixels: Tensor, explanation: Explanation, row: int) -> np.ndarray:
    """Return the gradient norms of the detection `row`, (5, h, w), for preprocessed `pixels` (3, h, w)."""
    query, label = int(explanation.queries.indices[row]), int(explanation.detections.labels[row])
    pixels = pixels.to(next(detector.model.parameters()).device).requires_grad_()
    terms = terms_of(detector, pixels, query, label)
    norms = []
    for number, term in enumerate(terms):
        (gradient,) = torch.autograd.grad(term, pixels, retain_graph=number + 1 < len(terms))
        norms.append(gradient.norm(dim=0).cpu().numpy())
    return np.stack(norms)


def terms_of(detector: Detector, pixels: Tensor, query: int, label: int) -> Tensor:
    """Return x, y, width, height and score of one query, (5,), as a function of the pixels (3, h, w).

    The result is differentiable with respect to the pixels, which are a preprocessed picture of height h and
    width w. The box is in fractions of the picture, and x and y are its centre. The score is the probability
    of the class with the index `label`.
    """
    model = detector.model
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            last = model(ImageBatch.from_images([pixels])).predictions[-1]
            score = detector.classification.scores(last.logits.float())[0, query, label]
            terms: Tensor = torch.cat([last.boxes_cxcywh[0, query], score[None]])
    finally:
        model.train(was_training)
    return terms


def draw_gradients(result: Gradients) -> Figure:
    """Return a figure with five panels in a row for each detection, one for each of TERMS.

    Each panel has a separate colour scale. Without detections, there is one row of pictures without
    gradients. `result.detections` must contain their picture.
    """
    detections = result.detections
    assert detections.image is not None
    height, width = detections.image_size
    figure, panels = grid(max(1, len(detections)) * len(TERMS), (height, width), columns=len(TERMS))
    dark = 0.35 * (detections.image @ LUMA)
    for number, panel in enumerate(panels):
        row, term = divmod(number, len(TERMS))
        panel.imshow(dark, extent=(0, width, height, 0), aspect="auto", cmap="gray", vmin=0, vmax=255)
        title(panel, TERMS[term], "")
        if row < len(detections):
            norms = result.norms[row, term]
            brightest = max(float(np.quantile(norms, BRIGHTEST)), float(np.finfo(np.float32).tiny))
            strength = np.clip(norms / brightest, 0, 1)
            panel.imshow(
                strength,
                extent=(0, width, height, 0),
                aspect="auto",
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=np.sqrt(strength),
                interpolation="bilinear",
            )
            draw_box(panel, detections.boxes_xyxy[row], BOX_COLOUR, 0.6)
            zoom(panel, detections.boxes_xyxy[row], detections.image_size)
            if term == 0:
                title(panel, f"{detections.names[row]} {detections.scores[row]:.2f}: x", "")
    return figure
