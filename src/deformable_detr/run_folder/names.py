"""The names of the files in a run folder, for all packages that read or write them."""

from __future__ import annotations

RUN_CONFIG_FILE = "config.yaml"  # the whole `RunConfig`
METRICS_FILE = "metrics.jsonl"  # losses and evaluations, one row per line
STARTS_FILE = "environment.jsonl"  # machine and versions, one line for each start
STATE_FILE = "training_state.pt"  # the state from which `--resume` continues
LOCK_FILE = "training.lock"  # exists only during training; contains the number of the process
PREDICTION_LOCK_FILE = "predict.lock"  # the lock of a process that writes tables of predictions
CHECKPOINTS = "checkpoints"  # contains the checkpoint folders LAST and, after the first evaluation, BEST
LAST, BEST = "last", "best"
REPORT_PAGE = "report.html"
FEATURE_CACHE = "feature_cache"  # exists only during training
