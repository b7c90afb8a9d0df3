"""Routes: further passes through the decoder that only training has (specification §12.5).

A model has few objects to learn from, and each teaches one query. A route gives it more: queries that may
share an object, or queries made from the objects themselves. `DetectionModel.forward` knows nothing of
routes, and a route's own parameters are in the training state only: saved models contain nothing of them.

route.py                what a route is
no_self_attention.py    queries that do not see each other may share an object (DAC-DETR)
instructed.py           learned tokens tell the queries that they may (Mr. DETR)
denoising.py            queries made from objects with noise (DINO)
build.py                the routes of a configuration
"""

from .build import build_routes
from .route import Route

__all__ = ["Route", "build_routes"]
