"""Prometheus metrics of a server, in a separate registry so that servers in one process do not share them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from .. import __version__

PREFIX = "deformable_detr"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counters, gauges and histograms of one server."""

    def __init__(self, model: str, queue_size: int):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests", "Requests answered", ("route", "status"), registry=registry
        )
        self.errors = Counter(f"{PREFIX}_errors", "Requests that got no result", ("kind",), registry=registry)
        self.pictures = Counter(f"{PREFIX}_pictures", "Pictures that the model computed", registry=registry)
        self.queue = Gauge(
            f"{PREFIX}_queue_pictures", "Pictures accepted and not yet answered", registry=registry
        )
        self.held = Gauge(f"{PREFIX}_held_bytes", "Bytes of request bodies held now", registry=registry)
        self.ready = Gauge(f"{PREFIX}_ready", "1 if the server accepts requests, else 0", registry=registry)
        self.batches = Histogram(
            f"{PREFIX}_batch_pictures",
            "Pictures computed together",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 32),
            registry=registry,
        )
        self.request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From the first byte of a request to its answer",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            f"{PREFIX}_stage_seconds",
            "Of a picture: decode and resize, wait for the model; of a batch: model",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        limit = Gauge(
            f"{PREFIX}_queue_limit_pictures",
            "The number of pictures beyond which requests are refused",
            registry=registry,
        )
        limit.set(queue_size)
        info = Gauge(
            f"{PREFIX}_info",
            "The model and the version of the package",
            ("model", "version"),
            registry=registry,
        )
        info.labels(model, __version__).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
