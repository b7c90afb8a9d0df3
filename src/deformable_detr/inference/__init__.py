"""Inference: the detector, its postprocessing, its backends, and traces of its attention."""
