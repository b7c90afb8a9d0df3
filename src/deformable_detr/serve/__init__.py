"""Serve a detector over HTTP: `create_app` for use with your own ASGI server, `serve` for a complete server.

This package needs the extra `serve` (FastAPI, uvicorn).
"""

from ..extras import import_extra

for _module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    import_extra(_module, "serve", "serve")

from .app import Server, create_app  # noqa: E402
from .server import serve  # noqa: E402
from .settings import ServeSettings  # noqa: E402

__all__ = ["ServeSettings", "Server", "create_app", "serve"]
