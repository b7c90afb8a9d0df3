"""Prediction on pictures, videos and cameras, with annotated media and `predictions.json`, or on JSON lines.

sources.py    finds the files, folders, patterns and cameras that a user names
finding.py    turns a picture into detections: as a whole, or (tiling.py) in tiles
pictures.py   image files; separate threads read the next pictures and draw the finished ones
videos.py     frames, one after the other (frames.py reads and writes them, tracking.py numbers objects)
outputs.py    names and files of the results
command.py    `predict`, composed of these
lines.py      `predict MODEL -`
terminal.py   the terminal's output
"""

from .command import predict
from .lines import answer_lines, answer_stdin
from .outputs import (
    PREDICTION_REPORT_FILE,
    PREDICTIONS_FILE,
    PredictionReport,
)
from .terminal import print_report, terminal_progress
from .tiling import Tiling, predict_tiled
from .videos import FrameDetections, predict_frames

__all__ = [
    "PREDICTIONS_FILE",
    "PREDICTION_REPORT_FILE",
    "FrameDetections",
    "PredictionReport",
    "Tiling",
    "answer_lines",
    "answer_stdin",
    "predict",
    "predict_frames",
    "predict_tiled",
    "print_report",
    "terminal_progress",
]
