"""The model as `predict` runs it on a GPU, where launching 1,600 kernels takes longer than executing them.

`optimise` (build.py) rebuilds the plain model: it folds norms into the convolutions, stores the convolutions'
weights in the fastest layout, and converts the weights of backbone, neck and encoder to the chosen type.
`Graphs` (graphs.py) replays the whole forward pass as one CUDA graph for each shape that occurs again.
`Runner` (runner.py) keeps the rebuilt model and the graphs as long as the plain model is unchanged.
docs/gpu.md reports the measurements.
"""

from .runner import Runner

__all__ = ["Runner"]
