"""Every exception that callers may want to catch, with the exit code of the command line.

A message is one sentence that states the problem, its place and its solution. The command line prints it
without a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .prediction.outputs import PredictionReport


class UserError(ValueError):
    """The user's input is wrong. The message states how to fix it. It can be caught as a `ValueError`."""

    exit_code: ClassVar[int] = 2


class NonFiniteError(ArithmeticError):
    """A model's outputs or a loss are NaN or infinite, so training cannot continue."""

    exit_code: ClassVar[int] = 1


class ExportRefusedError(RuntimeError):
    """The exported model's results differ too much from the PyTorch model's. Nothing was written."""

    exit_code: ClassVar[int] = 1


class WorkerLostError(RuntimeError):
    """A process that computes a part of a prediction was killed, and nothing has replaced it."""

    exit_code: ClassVar[int] = 1


class TrainingInterruptedError(Exception):
    """Training was interrupted by Ctrl-C or SIGTERM. Its state was saved, so `--resume` continues it."""

    exit_code: ClassVar[int] = 130


class PredictionInterrupted(KeyboardInterrupt):
    """Ctrl-C stopped a prediction. All finished results are complete on disk; `report` lists them."""

    exit_code: ClassVar[int] = 130

    def __init__(self, report: PredictionReport):
        super().__init__("stopped")
        self.report = report
