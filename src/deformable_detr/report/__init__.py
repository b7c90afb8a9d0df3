"""The report on a model: its training, its accuracy and what limits it, in one self-contained HTML file."""

from .writing import report_text, write_report

__all__ = ["report_text", "write_report"]
