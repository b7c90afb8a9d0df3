"""The inspection of a data set: its contents, its problems, and its objects as a recipe's model sees them.

`inspect` (survey.py) reads every split, decodes every picture coarsely and returns a `DataReport` (facts.py):
counts, problems with file and line, object sizes in cells of the feature levels (sizes.py), duplicate
pictures (duplicates.py), and remarks that recommend options (remarks.py). `print_report` shows the report
in 80 columns (terminal.py); `write_inspection` writes it as JSON or as one page with pictures (page.py). The
cost of training is measured in `training/forecast.py`. An inspection does not change the data.
"""

from .facts import ClassCount, DataReport, Forecast, Remark, SplitReport
from .page import check_output, inspection_page, write_inspection
from .survey import DEFAULT_RECIPE, inspect
from .terminal import print_forecast, print_report

__all__ = [
    "DEFAULT_RECIPE",
    "ClassCount",
    "DataReport",
    "Forecast",
    "Remark",
    "SplitReport",
    "check_output",
    "inspect",
    "inspection_page",
    "print_forecast",
    "print_report",
    "write_inspection",
]
