"""The model as `predict` runs it on a GPU, where launching 1,600 kernels takes longer than they take.

`optimise` (build.py) rebuilds the plain model: norms folded into the convolutions, channels_last, weights of
backbone, neck and encoder in the chosen type. `Graphs` (graphs.py) replays the whole forward pass as one CUDA
graph for each shape that comes again. `Runner` (runner.py) keeps both as long as the plain model stays as it
is. docs/gpu.md has the measurements.
"""

from .runner import Runner

__all__ = ["Runner"]
