"""The optimised replica of the model, which makes the same final predictions; `predict` runs it on a CPU.

`optimise` (build.py) copies the model's parts and replaces those for which there is a faster version; unknown
parts stay unchanged. The structure is still that of `DetectionModel.forward`:

    pixels → backbone → neck          ../convolutions.py and group_norm.py: norms folded into the weights,
                                                        channels_last, group norm in two passes
           → locate                   memory.py         positions are cached for each picture size
           → encoder                  encoder.py        chunks of tokens, from sampling to the last norm
           → queries                  queries.py        caches fixed queries; encodes proposals in chunks
           → decoder → heads          decoder.py        samples before it projects; the last layer predicts

docs/speed.md reports the gain of each replacement. Weights on disk and `detector.model` do not change.
"""

from .runner import Runner

__all__ = ["Runner"]
