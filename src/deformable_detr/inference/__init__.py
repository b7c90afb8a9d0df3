"""The detector that users hold, and what it is made of: postprocessing, traces, engines."""
