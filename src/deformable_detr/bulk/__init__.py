"""Prediction on millions of pictures, which writes tables instead of drawings.

Each picture is in the tables exactly once.

The list of pictures is cut into shards. A shard becomes one part, a Parquet file, which is written whole or
not at all. A run that was stopped writes the missing parts when it is started again. The shard decides which
pictures are computed together, so that rows do not depend on the engine or on the number of workers.

sources.py    lists the pictures of the sources that a user names
plan.py       the stored list and settings of a run, and the names of its parts
job.py        everything on which the rows of a picture depend
reading.py    reads pictures from disks, tables and URLs, and notices when a source has disappeared
worker.py     turns a shard into a part
table.py      the columns of a part
local.py      the engine for this machine
ray_engine.py the engine for a Ray cluster
command.py    `predict --format parquet`, which combines the modules above
results.py    reads the parts of a run
terminal.py   the output on the terminal

The libraries come with the extra [scale] and are imported when they are used (libraries.py).
"""

from .command import Engine, TablesReport, predict_tables
from .results import Result, read_results
from .terminal import print_report, tables_progress

__all__ = [
    "Engine",
    "Result",
    "TablesReport",
    "predict_tables",
    "print_report",
    "read_results",
    "tables_progress",
]
