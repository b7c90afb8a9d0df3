"""The optimised replica that `predict` runs on a CPU: the same function, rebuilt from the plain model.

`optimise` (build.py) copies the model's parts and replaces those for which there is a faster version; unknown
parts stay unchanged. The structure is still that of `DetectionModel.forward`:

    pixels → backbone → neck          convolutions.py   norms folded into the weights, channels_last
           → locate                   memory.py         positions are cached for each picture size
           → encoder                  encoder.py        chunks of tokens, from sampling to the last norm
           → queries                  queries.py        fixed ones are cached; proposals are encoded in chunks
           → decoder → heads          decoder.py        samples first, then projects; the last layer predicts

docs/speed.md reports the gain of each replacement. Weights on disk and `detector.model` do not change.
"""

from .runner import Runner

__all__ = ["Runner"]
