"""The findings of a step, which are written to disk after each finding."""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import STEPS

Facts = dict[str, Any]
LINES_OF_TRACEBACK = 14


class Report:
    """The findings of one step. Each is a dictionary with `name`, `ok`, `seconds` and its results."""

    def __init__(self, letter: str, work: Path, output: Path, seconds: float) -> None:
        self.path = work / "steps" / f"{letter}.json"
        self.work, self.output = work, output
        self.started = time.perf_counter()
        self.seconds = seconds
        self.findings: list[Facts] = []
        self.content: Facts = {"step": letter, "title": STEPS[letter].title, "finished": False}
        self.save()

    @property
    def ok(self) -> bool:
        return all(finding["ok"] for finding in self.findings)

    def time_left(self) -> float:
        return self.seconds - (time.perf_counter() - self.started)

    def find(self, name: str, body: Callable[[Facts], None], *, needs_seconds: float = 0.0) -> Facts:
        """Call `body` to fill in a finding, and return the finding. An error of `body` is recorded in the
        finding and not raised, so that the next findings can follow. A `TimeoutError` marks the finding as
        skipped. If less than `needs_seconds` of the step's time is left, `body` is not called."""
        finding: Facts = {"name": name, "ok": True}
        self.findings.append(finding)
        started = time.perf_counter()
        if self.time_left() < needs_seconds:
            finding["skipped"] = "no time was left"
        else:
            try:
                body(finding)
            except TimeoutError as error:
                finding["skipped"] = str(error) or "it was not done in time"
            except Exception as error:
                finding["ok"] = False
                finding["error"] = f"{type(error).__name__}: {error}"[:2000]
                finding["traceback"] = traceback.format_exc().strip().splitlines()[-LINES_OF_TRACEBACK:]
        finding["seconds"] = round(time.perf_counter() - started, 3)
        self.save()
        return finding

    def finish(self) -> None:
        self.content["finished"] = True
        self.save()

    def save(self) -> None:
        seconds = round(time.perf_counter() - self.started, 1)
        write_json(self.path, {**self.content, "seconds": seconds, "findings": self.findings})
        merge(self.work, self.output)


@dataclass(frozen=True)
class Job:
    """One step of one check: where it runs, and where its findings are written. `work` is a folder for files
    that are not needed afterwards, and `output` the folder for the results."""

    device: torch.device
    quick: bool
    seed: int
    work: Path
    output: Path
    report: Report
    sweep: bool = False

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def data(self) -> Path:
        """The drawn data set (jobs.py)."""
        return self.work / "data"


def limit(finding: Facts, value: float, bound: float, name: str = "relative_error") -> None:
    """Record `value` under `name`. The finding fails if the value exceeds `bound` or is NaN."""
    finding[name], finding[f"{name}_bound"] = value, bound
    if not value <= bound:  # NaN never passes
        finding["ok"] = False
        finding.setdefault("error_text", f"{name} is {value:.3g}, more than {bound:.3g}")


def require(finding: Facts, condition: bool, problem: str) -> None:
    """Fail the finding with `problem` unless `condition` holds."""
    if not condition:
        finding["ok"] = False
        finding.setdefault("error_text", problem)


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    """Return ‖found − right‖ / ‖right‖ in float64, or ‖found − right‖ if `right` is zero."""
    found, right = found.detach().double().cpu(), right.detach().double().cpu()
    difference = float((found - right).norm())
    size = float(right.norm())
    return difference / size if size > 0 else difference


def write_json(path: Path, content: Any) -> None:
    """Write JSON completely or not at all.

    Steps that run in parallel write the same merged file, so each process writes its own draft first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def _plain(content: Any) -> Any:
    """Return the content as JSON values: numbers with six significant digits, NaN and infinity as strings."""
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else str(content)
    return content


def merge(work: Path, output: Path) -> Facts:
    """Write the machine and all findings so far to `results.json`, and return them.

    They are in one file because OUT may contain only eight files.
    """
    merged: Facts = {"machine": _read(work / "machine.json"), "steps": {}}
    for path in sorted((work / "steps").glob("?.json")):
        merged["steps"][path.stem] = _read(path)
    write_json(output / "results.json", merged)
    return merged


def _read(path: Path) -> Facts:
    content: Facts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content
