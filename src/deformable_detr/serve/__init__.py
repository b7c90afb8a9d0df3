"""A detector behind HTTP: `create_app` for those who bring their own server, `serve` for the rest.

Needs the extra `serve` (FastAPI, uvicorn).
"""

from importlib.util import find_spec

from ..errors import UserError

for _module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    if find_spec(_module) is None:
        raise UserError(
            f"serve needs {_module}, which is not installed: pip install 'deformable-detr[serve]'."
        )

from .app import Server, create_app  # noqa: E402
from .server import serve  # noqa: E402
from .settings import ServeSettings  # noqa: E402

__all__ = ["ServeSettings", "Server", "create_app", "serve"]
