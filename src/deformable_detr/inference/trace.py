"""Traces of a model's attention in a picture, in pixels of the picture (the content of the paper's figure 6).

`Detector.explain` returns an `Explanation`, which `explain/` draws. A `Trace` covers all queries;
explain/missed.py uses it to find out why an object was missed, and `report/` draws queries from it.

Letters: B batch, N detections, Q queries, R rows (chosen queries or tokens), T decoder layers or encoder
layers, M heads, L levels, K points, P places (points of the picture). Points are (x, y) pixels of the
original picture; boxes are xyxy; sizes are (H, W). The preprocessed picture has height h and width w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..boxes import cxcywh_to_xyxy
from ..detections import Detections, require_finite
from ..errors import UserError
from ..extras import import_extra
from ..structures import ImageBatch, Predictions
from ..words import count
from .recording import DenseLayer, LayerRecord, Recording, SampledLayer, record

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from .detector import Detector

NOTEBOOK_DPI = 130


@dataclass(frozen=True)
class SamplingPoints:
    """The points at which R rows (queries or tokens) of deformable attention sampled in each of T layers.

    Each row has K points in each of M heads and L levels.

    Attributes:
        locations: (R, T, M, L, K, 2), (x, y) in pixels of the original picture; some may be outside the
            picture, where the cells of a level count as zeros.
        weights: (R, T, M, L, K), with a sum of one over (L, K).
    """

    locations: np.ndarray
    weights: np.ndarray

    def take(self, rows: np.ndarray) -> SamplingPoints:
        return SamplingPoints(self.locations[rows], self.weights[rows])

    def share_inside(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Return the share of each row's weight inside a box in each layer, (R, T), as a mean over the heads.

        `boxes_xyxy` is one box for all rows, (4,), or one box for each row, (R, 4), in pixels. A point on the
        border of a box is inside.
        """
        low, high = np.split(np.broadcast_to(boxes_xyxy, (len(self.weights), 4)), 2, axis=-1)
        expand = (slice(None), *[None] * (self.locations.ndim - 2))
        inside = ((self.locations >= low[expand]) & (self.locations <= high[expand])).all(-1)
        share: np.ndarray = (self.weights * inside).sum((-2, -1)).mean(-1)
        return share


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of R rows (queries or tokens) of dense attention for each cell of the single level.

    Attributes:
        weights: (R, T, M, H, W), for T layers and M heads, with a sum of one over the H rows and W columns of
            cells, which cover the picture evenly.
        image_size: the height and width of the original picture, in pixels.
    """

    weights: np.ndarray
    image_size: tuple[int, int]

    def take(self, rows: np.ndarray) -> AttentionMaps:
        return replace(self, weights=self.weights[rows])

    def share_inside(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """Return the share of each row's weight inside a box in each layer, (R, T), as a mean over the heads.

        `boxes_xyxy` is one box for all rows, (4,), or one box for each row, (R, 4), in pixels. A cell that
        the box overlaps counts as a whole.
        """
        rows, columns = self.weights.shape[-2:]
        height, width = self.image_size
        x0, y0, x1, y1 = np.broadcast_to(boxes_xyxy, (len(self.weights), 4)).T[:, :, None]
        x, y = np.arange(columns) * (width / columns), np.arange(rows) * (height / rows)
        across = (x < x1) & (x + width / columns > x0)  # (R, W)
        down = (y < y1) & (y + height / rows > y0)  # (R, H)
        share: np.ndarray = np.einsum("rtmhw,rh,rw->rtm", self.weights, down, across).mean(-1)
        return share

    def upsampled(self, row: int, layer: int = -1, head: int | None = None) -> np.ndarray:
        """Return the weights of one row in one layer, interpolated bilinearly to the size of the picture.

        The result has the shape `image_size`. The weights are those of `head`; None means their mean over all
        heads.
        """
        cells = self.weights[row, layer]
        chosen = cells.mean(0) if head is None else cells[head]
        return (
            torch.nn.functional.interpolate(
                torch.from_numpy(chosen)[None, None],
                self.image_size,
                mode="bilinear",
                align_corners=False,
            )[0, 0]
        ).numpy()


Attention = SamplingPoints | AttentionMaps


@dataclass(frozen=True)
class Proposals:
    """The boxes of the first stage from which R queries start.

    Attributes:
        boxes_xyxy: (R, 4), in pixels of the original picture.
        objectness: (R,) in [0, 1].
        levels: (R,), the index of the level of each proposal's memory token.
        centres: (R, 2), the centre (x, y) of the cell of each proposal's memory token, in pixels of the
            original picture.
    """

    boxes_xyxy: np.ndarray
    objectness: np.ndarray
    levels: np.ndarray
    centres: np.ndarray

    def take(self, rows: np.ndarray) -> Proposals:
        return Proposals(self.boxes_xyxy[rows], self.objectness[rows], self.levels[rows], self.centres[rows])


@dataclass(frozen=True)
class QueryTraces:
    """The traces of R object queries in the decoder's T layers.

    Attributes:
        indices: (R,), the indices of the queries in the model's output.
        scores: (R, classes), the scores after the last layer, with 0 for logits that no class uses.
        boxes_xyxy: (R, T, 4), the boxes after each layer, in pixels of the original picture.
        references: for each layer, the points (x, y), (R, 2), or the boxes xyxy, (R, 4), around which the
            layer sampled, in pixels of the original picture. With refinement, a model with one stage has
            points in the first layer and boxes in the others. Empty for DETR, which has no references.
        attention: the attention of the R queries to the memory.
        proposals: the proposals of the queries; None for models with one stage.
    """

    indices: np.ndarray
    scores: np.ndarray
    boxes_xyxy: np.ndarray
    references: tuple[np.ndarray, ...]
    attention: Attention
    proposals: Proposals | None

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, rows: np.ndarray) -> QueryTraces:
        return QueryTraces(
            self.indices[rows],
            self.scores[rows],
            self.boxes_xyxy[rows],
            tuple(layer[rows] for layer in self.references),
            self.attention.take(rows),
            None if self.proposals is None else self.proposals.take(rows),
        )


@dataclass(frozen=True)
class EncoderTraces:
    """The encoder's attention from P places, with one token for each place on each of L levels.

    Attributes:
        places: (P, 2), the requested places (x, y), in pixels of the original picture.
        tokens: (P, L), the indices of the tokens in the memory.
        centres: (P, L, 2), the centres (x, y) of the tokens' cells, in pixels of the original picture.
        attention: the attention of the tokens, with P·L rows; the L rows of a place follow each other.
    """

    places: np.ndarray
    tokens: np.ndarray
    centres: np.ndarray
    attention: Attention


@dataclass(frozen=True, repr=False)
class Explanation:
    """The detections in one picture, and the traces of the model's attention.

    Attributes:
        detections: the N detections, with their picture.
        queries: the traces of the detections' queries, with N rows.
        encoder: the traces from the requested places; None if none were requested.
    """

    detections: Detections
    queries: QueryTraces
    encoder: EncoderTraces | None

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        num_layers = self.queries.boxes_xyxy.shape[1]
        return f"Explanation({self.detections.in_words()}; {count(num_layers, 'decoder layer')})"

    def draw(self, *, layer: int = -1, most: int = 5) -> Figure:
        """Return a figure of the picture with its detections, and of the attention of the best ones.

        If places were requested, the figure also shows the encoder's attention from them.

        Args:
            layer: the layer of the decoder (and of the encoder, for places) whose attention is drawn, from 0;
                -1 means the last one.
            most: the maximum number of detections that get a panel.

        Raises:
            UserError: if matplotlib is not installed.
            IndexError: if attention is drawn and there is no such layer.
        """
        from .trace_drawing import draw

        import_extra("matplotlib", "figures", "draw")
        return draw(self, layer=layer, most=most)

    def _repr_png_(self) -> bytes:
        """Return the figure as a PNG for a notebook."""
        buffer = BytesIO()
        self.draw().savefig(buffer, format="png", dpi=NOTEBOOK_DPI)
        return buffer.getvalue()


@dataclass(frozen=True)
class Trace:
    """The traces of all Q queries of one picture.

    Attributes:
        queries: the traces of the queries, with Q rows.
        encoder: the traces from the requested places; None if none were requested.
        predictions: the predictions of the last layer, for a batch of one image.
    """

    queries: QueryTraces
    encoder: EncoderTraces | None
    predictions: Predictions


def trace_picture(
    detector: Detector, picture: Image.Image, places: Sequence[tuple[float, float]] = ()
) -> Trace:
    """Return the traces of every query of the plain model of `detector` in one picture.

    Args:
        picture: the original RGB picture.
        places: the points (x, y), in pixels of the picture, for which the encoder's attention is traced as
            well.

    Raises:
        UserError: if a place is outside the picture, there are places but the model has no encoder layers, or
            the model's output is not finite.
        TypeError: if the model has attention of a kind that cannot be recorded.
    """
    model, size = detector.model, (picture.height, picture.width)
    height, width = size
    for x, y in places:
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(
                f"the point {x:g},{y:g} is outside the picture, which has {width}x{height} pixels: choose a "
                "point inside."
            )
    if len(places) and not len(model.encoder.layers):
        raise UserError("this model has no encoder layers, so leave the points out.")
    scale = torch.tensor([width, height], dtype=torch.float32)
    requested = torch.tensor(places, dtype=torch.float32).reshape(-1, 2)
    device = next(model.parameters()).device
    pixels = detector.plain.preprocess(picture)
    recording = record(model, ImageBatch.from_images([pixels]).to(device), requested / scale)
    last = recording.output.predictions[-1]
    scores = detector.classification.scores(last.logits.float())[0].cpu().numpy()
    boxes = [_boxes(layer.boxes_cxcywh, size) for layer in recording.output.predictions]
    require_finite(scores, boxes[-1])
    queries = QueryTraces(
        indices=np.arange(len(scores)),
        scores=scores * np.array([name is not None for name in detector.classes.names]),
        boxes_xyxy=np.stack(boxes, axis=1),
        references=_references(recording.decoder, size),
        attention=_attention(recording.decoder, recording, size),
        proposals=_proposals(recording, size),
    )
    encoder = None
    if len(places):
        encoder = EncoderTraces(
            places=requested.numpy(),
            tokens=recording.tokens[0].cpu().numpy(),
            centres=_cell_centres(recording.tokens[0].flatten(), recording, size)[0].reshape(
                len(places), -1, 2
            ),
            attention=_attention(recording.encoder, recording, size),
        )
    return Trace(queries, encoder, last)


def _boxes(boxes_cxcywh: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Convert cxcywh boxes in fractions of a picture, (1, R, 4), to xyxy in its pixels, (R, 4)."""
    height, width = size
    boxes = cxcywh_to_xyxy(boxes_cxcywh[0].float()).cpu() * torch.tensor([width, height, width, height])
    return boxes.numpy()


def _references(layers: Sequence[LayerRecord], size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    height, width = size
    references = []
    for layer in layers:
        if isinstance(layer, SampledLayer):
            is_point = layer.references.shape[-1] == 2
            points = layer.references[0, :, :2].float().cpu() * torch.tensor([width, height])
            references.append(points.numpy() if is_point else _boxes(layer.references, size))
    return tuple(references)


def _attention(layers: Sequence[LayerRecord], recording: Recording, size: tuple[int, int]) -> Attention:
    height, width = size
    dense = [layer.weights for layer in layers if isinstance(layer, DenseLayer)]
    if dense:
        weights = torch.stack([weights[0] for weights in dense], dim=1).cpu()
        return AttentionMaps(weights.unflatten(-1, recording.memory.spatial_shapes[0]).numpy(), size)
    sampled = [layer for layer in layers if isinstance(layer, SampledLayer)]
    ratios = recording.memory.valid_ratios
    locations = torch.stack([layer.of_image(ratios)[0] for layer in sampled], dim=1).cpu()
    weights = torch.stack([layer.weights[0] for layer in sampled], dim=1).cpu()
    return SamplingPoints((locations * torch.tensor([width, height])).numpy(), weights.numpy())


def _proposals(recording: Recording, size: tuple[int, int]) -> Proposals | None:
    queries = recording.queries
    proposals = queries.proposals
    if proposals is None or queries.tokens is None:
        return None
    tokens = queries.tokens[0]
    centres, levels = _cell_centres(tokens, recording, size)
    objectness = proposals.logits[0, tokens, 0].float().sigmoid()
    return Proposals(_boxes(queries.references, size), objectness.cpu().numpy(), levels, centres)


def _cell_centres(
    tokens: Tensor, recording: Recording, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres (x, y) of the cells of R tokens, (R, 2), and the indices of their levels, (R,).

    `tokens` (R,) contains the indices of the tokens in the memory. The centres are in pixels of the original
    picture, whose (H, W) is `size`.
    """
    shapes = np.array(recording.memory.spatial_shapes)
    starts = np.concatenate([[0], shapes.prod(1).cumsum()[:-1]])
    numbers = tokens.cpu().numpy()
    levels = np.searchsorted(starts, numbers, side="right") - 1
    rows, columns = np.divmod(numbers - starts[levels], shapes[levels, 1])
    ratios = recording.memory.valid_ratios[0].cpu().numpy()[levels]
    cells = np.stack([(columns + 0.5) / shapes[levels, 1], (rows + 0.5) / shapes[levels, 0]], axis=-1)
    return (cells / ratios * np.array(size[::-1])).astype(np.float32), levels
