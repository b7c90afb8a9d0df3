"""Prediction on pictures, videos, cameras and JSON lines.

sources.py    finds the files, folders, patterns and cameras that a user names
finding.py    detects objects in a whole picture, or in its tiles (tiling.py)
pictures.py   image files; separate threads read the next pictures and draw the finished ones
videos.py     videos, frame by frame (frames.py reads and writes frames, tracking.py numbers objects)
outputs.py    names and files of the results
command.py    `predict`, which combines the modules above
lines.py      `predict MODEL -`, which reads and writes JSON lines
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
