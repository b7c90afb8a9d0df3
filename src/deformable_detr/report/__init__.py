"""The report: what was trained, how good it is, and what limits it, in one HTML file that loads nothing."""

from .writing import report_text, write_report

__all__ = ["report_text", "write_report"]
