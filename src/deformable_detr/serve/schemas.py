"""Schemas of the server's answers, which FastAPI also describes in its OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from ..detections import Detections
from .refusals import MEANINGS, Kind
from .uploads import Upload


class Box(BaseModel):
    """One detected object."""

    box_xyxy: tuple[float, float, float, float] = Field(
        description="x0, y0, x1, y1 in pixels of the picture."
    )
    score: float = Field(ge=0, le=1)
    label: int = Field(ge=0, description="The index of the class in `/v1/model`.")
    category_id: int = Field(description="The id of the class in the data set.")
    name: str = Field(description="The name of the class.")


class Found(BaseModel):
    """The detections in one picture, best first."""

    file_name: str | None = Field(description="The name that was sent; null for base64.")
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    detections: list[Box]

    @classmethod
    def of(cls, upload: Upload, detections: Detections) -> Found:
        height, width = detections.image_size
        return cls(
            file_name=upload.file_name,
            width=width,
            height=height,
            detections=[
                Box(
                    box_xyxy=(x0, y0, x1, y1),
                    score=round(float(score), 6),
                    label=int(label),
                    category_id=int(category_id),
                    name=name,
                )
                for (x0, y0, x1, y1), score, label, category_id, name in zip(
                    detections.boxes_xyxy.astype(float).round(3).tolist(),
                    detections.scores,
                    detections.labels,
                    detections.category_ids,
                    detections.names,
                    strict=True,
                )
            ],
        )


class DetectAnswer(BaseModel):
    """The detections in each picture, in the order in which the pictures were sent."""

    model: str
    thresholds_from: str = Field(
        description="The source of the minimum scores: the request, or the choice saved in the model."
    )
    results: list[Found]


class PackedAttention(BaseModel):
    """Attention as little-endian 16-bit integers in base64."""

    layers: int
    locations: str = Field(
        description="(detections, layers, heads, levels, points, 2): x and y as (fraction of the picture + "
        "0.5) / 2 · 65535; empty if attention is dense."
    )
    weights: str = Field(
        description="(detections, layers, heads, levels, points): weight / `most` · 65535; the weights of a "
        "head sum to one."
    )


class ExplainedDetection(BaseModel):
    """One detected object and the boxes of its query. Coordinates are in pixels of the picture."""

    name: str
    score: float
    query: int
    boxes: list[list[float]] = Field(description="x0, y0, x1, y1 after each decoder layer.")
    references: list[list[float]] = Field(description="x, y around which each layer looked; empty in DETR.")
    proposal: list[float] | None = Field(description="In two-stage models, the box that the query came from.")


class ExplainAnswer(BaseModel):
    """Explanations of where the model looked, one for each detection that is explained."""

    total: int = Field(description="The number of all detections. Only the best of them may be explained.")
    image_size: tuple[int, int] = Field(description="Height and width.")
    threshold: float | None = Field(description="The minimum score; null if it differs between classes.")
    thresholds: str = Field(description="The minimum scores in words, and their source.")
    heads: int
    levels: int
    points: int = Field(description="The sampling points per level, or the cells if attention is dense.")
    grid: list[int] | None = Field(description="The rows and columns of the cells of dense attention.")
    most: float = Field(description="The largest weight.")
    colours: list[str] = Field(description="The colours of weights from 0 to `most`.")
    decoder: PackedAttention
    detections: list[ExplainedDetection]


class Limits(BaseModel):
    """Limits above which a request is refused."""

    max_body_bytes: int
    max_pixels: int
    max_pictures: int
    max_detections: int
    timeout_s: float


class ModelAnswer(BaseModel):
    """The model that is served."""

    name: str
    recipe: str
    version: str
    classes: list[str | None] = Field(
        description="The names by label; null for a label that is never predicted."
    )
    thresholds: list[float] = Field(
        description="The minimum score by label, in a request without `threshold`."
    )
    thresholds_from: str = Field(description="The source of the thresholds, in words.")
    can_explain: bool
    limits: Limits


class Status(BaseModel):
    """The state of the server: `ok` or `ready`."""

    status: str


class ErrorDetail(BaseModel):
    """The reason for an error: `kind` is for programs, `message` for people."""

    kind: Kind
    message: str


class ErrorAnswer(BaseModel):
    """The answer to a request that gets no result."""

    error: ErrorDetail


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return FastAPI's `responses` argument for HTTP error statuses, all of which are keys of `MEANINGS`."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        described[status] = {"model": ErrorAnswer, "description": MEANINGS[status]}
        if status in (429, 503):
            header = {"description": "Seconds until the next attempt.", "schema": {"type": "integer"}}
            described[status]["headers"] = {"Retry-After": header}
    return described
