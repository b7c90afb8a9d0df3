"""The model as `predict` runs it on a CPU: the same function, rebuilt from the plain model to be fast.

`optimise` (build.py) copies the model's parts and exchanges those that gain by it; whatever it does not know
stays as it is. The skeleton, `DetectionModel.forward`, remains the one there is:

    pixels → backbone → neck          convolutions.py   norms folded into the weights, channels_last
           → locate                   memory.py         positions kept for each picture size
           → encoder                  encoder.py        chunks of tokens, from sampling to the last norm
           → queries                  queries.py        fixed ones kept; proposals: heads where they count
           → decoder → heads          decoder.py        samples first, then projects; the last layer predicts

What each exchange gains is measured in docs/speed.md. Weights on disk and `detector.model` do not change.
"""

from .runner import Runner

__all__ = ["Runner"]
