"""A detector behind HTTP: `create_app` for those who bring their own server, `serve` for the rest.

Needs the extra `serve` (FastAPI, uvicorn).
"""

from ..errors import UserError

try:
    import fastapi
    import prometheus_client
    import python_multipart
    import uvicorn  # noqa: F401
except ImportError as error:
    raise UserError(
        f"serve needs {error.name}, which is not installed: pip install 'deformable-detr[serve]'."
    ) from error

from .app import Server, create_app
from .server import serve
from .settings import ServeSettings

__all__ = ["Server", "ServeSettings", "create_app", "serve"]
