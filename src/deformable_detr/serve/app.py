"""The ASGI application that serves a detector over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..inference.detector import Detector
from ..pages import template_text
from .bodies import body_schema, pictures_of
from .engine import Engine, State
from .gate import Gate, is_protocol
from .inference_protocol import add_inference_protocol
from .metrics import CONTENT_TYPE, Metrics
from .refusals import Kind, Refusal
from .schemas import (
    DetectAnswer,
    ExplainAnswer,
    Found,
    Limits,
    ModelAnswer,
    Status,
    errors,
)
from .settings import ServeSettings

log = logging.getLogger(__name__)

DESCRIPTION = "Find objects in pictures, and show where the model looked for them."
OF_THE_GATE = (400, 401, 403, 408, 413, 415, 422, 429, 500, 503, 504)
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Threshold = Annotated[
    float | None,
    Query(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The minimum score. Default: the model's own, one for each class (`/v1/model`).",
    ),
]
ClassFilter = Annotated[
    list[str] | None,
    Query(alias="classes", max_length=1000, description="Find only this class; repeat it for several."),
]


def create_app(
    detector: Detector,
    settings: ServeSettings | None = None,
    *,
    on_failure: Callable[[], None] | None = None,
) -> Server:
    """Return an ASGI application that serves a detector: `uvicorn.run(create_app(detector))`.

    The model is warmed up in the background after the ASGI server has started the application. Until this is
    finished, requests that need the model are refused with 503; health checks and pages are answered.

    Args:
        detector: the detector to serve.
        settings: the limits and the token; None means the defaults, without a token.
        on_failure: a function that is called if the model cannot be warmed up, or None. The exception is
            logged in either case.
    """
    settings = settings or ServeSettings()
    metrics = Metrics(settings.name, settings.queue_size)
    return Server(Engine(detector, settings, metrics), on_failure)


class Server(Gate):
    """The complete application.

    The engine computes, FastAPI's application `api` handles the routes, and the gate guards both.
    """

    def __init__(self, engine: Engine, on_failure: Callable[[], None] | None):
        self.api = _api(engine, on_failure)
        super().__init__(self.api, engine)


def _api(engine: Engine, on_failure: Callable[[], None] | None) -> FastAPI:
    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warm(engine, on_failure))
        yield
        warming.cancel()
        await engine.close()

    api = FastAPI(
        title="deformable-detr serve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's own page loads its assets from the internet
        redoc_url=None,
        lifespan=life,
    )
    _add_handlers(api, engine)
    _add_files(api)
    _add_model(api, engine)
    _add_status(api, engine)
    add_inference_protocol(api, engine)
    return api


def _add_model(api: FastAPI, engine: Engine) -> None:
    settings, most = engine.settings, engine.settings.max_detections
    known_only = [Depends(_check_parameters)]
    limit = Query(min(100, most), ge=1, le=most, description="The maximum number of detections per picture.")

    @api.post(
        "/v1/detect",
        response_model=DetectAnswer,
        responses=errors(*OF_THE_GATE),
        openapi_extra={"requestBody": body_schema(settings.max_pictures)},
        dependencies=known_only,
        tags=["model"],
        summary="Find objects in one or several pictures",
    )
    async def detect(
        request: Request,
        threshold: Threshold = None,
        max_detections: int = limit,
        classes: ClassFilter = None,
    ) -> DetectAnswer:
        _check_classes(classes or [], engine.detector)
        selection = engine.detector.selection(threshold, classes or None)
        uploads = await pictures_of(await request.body(), request.headers, engine, settings.max_pictures)
        found = await engine.detect(uploads, selection, max_detections)
        return DetectAnswer(
            model=settings.name,
            thresholds_from=selection.reason,
            results=[Found.of(upload, each) for upload, each in zip(uploads, found, strict=True)],
        )

    @api.post(
        "/v1/explain",
        response_model=ExplainAnswer,
        responses=errors(*OF_THE_GATE, 501),
        openapi_extra={"requestBody": body_schema(1)},
        dependencies=known_only,
        tags=["model"],
        summary="Show where the model looked in one picture",
    )
    async def explain_(
        request: Request,
        threshold: Threshold = None,
        max_detections: int = limit,
    ) -> JSONResponse:
        (upload,) = await pictures_of(await request.body(), request.headers, engine, 1)
        return JSONResponse(await engine.explain(upload, threshold, max_detections))


async def _warm(engine: Engine, on_failure: Callable[[], None] | None) -> None:
    try:
        await engine.run()
    except Exception:
        log.exception("the model could not be warmed up")
        if on_failure is not None:
            on_failure()


async def _check_parameters(request: Request) -> None:
    """Refuse unknown parameters, so that a misspelt one is not silently replaced by its default."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            raise Refusal(
                Kind.INVALID,
                f"there is no parameter {name[:100]!r}: {request.scope['route'].path} takes {takes}.",
            )


def _check_classes(names: list[str], detector: Detector) -> None:
    known = {name for name in detector.classes.names if name is not None}
    for name in names:
        if name not in known:
            raise Refusal(Kind.INVALID, f"classes: there is no class {name[:100]!r}; /v1/model lists them.")


# ---------------------------------------------------------------------- status, metrics and static files


def _add_status(api: FastAPI, engine: Engine) -> None:
    settings = engine.settings

    @api.get(
        "/v1/model",
        responses=errors(401, 403, 422),
        dependencies=[Depends(_check_parameters)],
        tags=["model"],
        summary="List the classes and the limits",
    )
    async def model() -> ModelAnswer:
        detector = engine.detector
        usual = detector.selection()
        return ModelAnswer(
            name=settings.name,
            recipe=detector.recipe,
            version=__version__,
            classes=list(detector.classes.names),
            thresholds=[round(score, 6) for score in usual.thresholds.tolist()],
            thresholds_from=usual.reason,
            can_explain=engine.can_explain,
            limits=Limits(
                max_body_bytes=settings.max_body_bytes,
                max_pixels=engine.max_pixels,
                max_pictures=settings.max_pictures,
                max_detections=settings.max_detections,
                timeout_s=settings.timeout_s,
            ),
        )

    @api.get("/healthz", tags=["operation"], summary="Check that the process is alive")
    async def healthz() -> Status:
        return Status(status="ok")

    @api.get(
        "/readyz",
        responses=errors(503),
        tags=["operation"],
        summary="Check that requests are accepted: the model is warm, and the server is not stopping",
    )
    async def readyz() -> Status:
        engine.check_open()
        return Status(status=State.READY.value)

    @api.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401, 403)},
        response_class=Response,
        tags=["operation"],
        summary="Return the metrics for Prometheus",
    )
    async def metrics() -> Response:
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE)


def _add_files(api: FastAPI) -> None:
    """Add the pages and their assets.

    The files are read once, when the application is created, so that no path in a request reaches the disk.
    """
    static_files = files(__package__) / "static"
    own = ("index.html", "docs.html", "app.js", "docs.js", "style.css")
    found = {name: (static_files / name).read_text(encoding="utf-8") for name in own}
    found |= {name: template_text(name) for name in ("attention.js", "look.css", "stage.css")}
    texts = {name: (text, _TYPES[name[name.rindex(".") :]]) for name, text in found.items()}

    def respond(name: str) -> Response:
        text, kind = texts[name]
        return Response(text, media_type=kind, headers={"Cache-Control": "no-cache"})

    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        return respond("index.html")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return respond("docs.html")

    @api.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in texts:
            raise HTTPException(404)
        return respond(name)


def _add_handlers(api: FastAPI, engine: Engine) -> None:
    """Add exception handlers, which answer refusals and the framework's errors in the same form."""

    def answer(request: Request, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
        engine.metrics.errors.labels(refusal.kind.value).inc()
        response = refusal.response(as_text=is_protocol(request.scope))
        response.headers.update(headers or {})
        return response

    async def of_refusal(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return answer(request, error)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            refusal = Refusal(Kind.METHOD, f"this path takes {allowed}, not {request.method[:20]}.")
            return answer(request, refusal, error.headers)
        assert error.status_code == 404, error
        refusal = Refusal(Kind.NOT_FOUND, "there is nothing here: /docs lists all addresses.")
        return answer(request, refusal)

    async def of_parameters(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return answer(request, Refusal(Kind.INVALID, f"{where}: {first['msg']}."))

    async def of_bug(request: Request, _: Exception) -> Response:
        # The framework raises the exception again after this answer, and the gate logs and counts it.
        bug = Refusal(Kind.INTERNAL, "this is a bug of the server: its log says where.")
        return bug.response(as_text=is_protocol(request.scope))

    api.add_exception_handler(Refusal, of_refusal)
    api.add_exception_handler(HTTPException, of_http)
    api.add_exception_handler(RequestValidationError, of_parameters)
    api.add_exception_handler(Exception, of_bug)
