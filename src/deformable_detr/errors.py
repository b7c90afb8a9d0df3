"""The package's exceptions that callers may want to catch, each with the exit code of the command line.

A message is one sentence that states the problem, its place and its solution. The command line prints it
without a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .prediction.outputs import PredictionReport


class UserError(ValueError):
    """An error in the user's input or environment, which can be caught as a `ValueError`.

    The message states how to fix it.
    """

    exit_code: ClassVar[int] = 2


class NonFiniteError(ArithmeticError):
    """NaN or infinity in predictions, target boxes, a loss or a gradient; training cannot continue."""

    exit_code: ClassVar[int] = 1


class ExportRefusedError(RuntimeError):
    """A refusal to write an exported model, because its results differ too much from the PyTorch model's."""

    exit_code: ClassVar[int] = 1


class WorkerLostError(RuntimeError):
    """The loss of a process that computed a part of a prediction; it was killed and could not be replaced."""

    exit_code: ClassVar[int] = 1


class TrainingInterruptedError(Exception):
    """An interruption of training by Ctrl-C or SIGTERM. The state is saved; `--resume` continues the run."""

    exit_code: ClassVar[int] = 130


class PredictionInterrupted(KeyboardInterrupt):
    """An interruption of a prediction by Ctrl-C. All finished results are on disk; `report` lists them."""

    exit_code: ClassVar[int] = 130

    def __init__(self, report: PredictionReport):
        super().__init__("stopped")
        self.report = report
