"""Self-contained HTML pages, built from Jinja2 templates, tables, charts, and pictures as data URLs.

`report/`, `inspection/` and `explain/` determine a page's content, and this package its appearance. Every
string is escaped unless it is Markup, and no template is built from strings, because classes and files may
have any names.
"""

from .charts import Axis, Bar, Line, Mark, axis_for, line_chart, sparkline, unit_axis, whole_axis
from .pictures import data_url
from .tables import Cell, Table, TableRow
from .templates import render, template_text

__all__ = [
    "Axis",
    "Bar",
    "Cell",
    "Line",
    "Mark",
    "Table",
    "TableRow",
    "axis_for",
    "data_url",
    "line_chart",
    "render",
    "sparkline",
    "template_text",
    "unit_axis",
    "whole_axis",
]
