"""What is in a data set, what is broken in it, and what a recipe's model will make of it.

`inspect` (survey.py) reads every split, decodes every picture coarsely and returns a `DataReport` (facts.py):
counts, problems with file and line, object sizes in cells of the feature levels (sizes.py), pictures that are
there twice (duplicates.py), and remarks: what follows, with the option that helps (remarks.py).
`print_report` shows it in 80 columns (terminal.py); `write_inspection` writes JSON, or one page with pictures
(page.py). What training will cost is measured above, in `forecast.py`. Nothing of the data is changed.
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
