"""The names of what a run folder holds. Every room that reads or writes one takes them from here."""

from __future__ import annotations

RUN_CONFIG_FILE = "config.yaml"  # the whole `RunConfig`
METRICS_FILE = "metrics.jsonl"  # losses and evaluations, one row a line
STARTS_FILE = "environment.jsonl"  # machine and versions, one line for each start
STATE_FILE = "training_state.pt"  # what `--resume` continues from
LOCK_FILE = "training.lock"  # only while a run trains; holds the number of its process
CHECKPOINTS = "checkpoints"  # with a checkpoint folder LAST and, once something was evaluated, BEST
LAST, BEST = "last", "best"
REPORT_PAGE = "report.html"
FEATURE_CACHE = "feature_cache"  # only while a run trains
