"""Routes: further passes through the decoder, which are used only in training (specification §12.5).

An image has few objects, and in the model's own pass, only one query learns to predict each. A route adds
examples: queries that may share an object, or queries built from the objects themselves.
`DetectionModel.forward` does not use routes, and a route's own parameters are only in the training state:
saved models do not contain them.

route.py                the base class of routes
no_self_attention.py    queries that do not see each other may share an object (DAC-DETR)
instructed.py           learned tokens allow queries to share an object (Mr. DETR)
denoising.py            queries built from objects with noise (DINO)
build.py                the routes of a configuration
"""

from .build import build_routes
from .route import Route

__all__ = ["Route", "build_routes"]
