"""The report on a model's training, accuracy and limits, as one self-contained HTML file."""

from .writing import report_text, write_report

__all__ = ["report_text", "write_report"]
