"""Shared by all tests: one tiny data set, and one thread. Tests only read the data."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.tiny import write_tiny_data

# No test is timed: the machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts background jobs (`make test &`) with SIGINT ignored, and programs inherit that: those that
# tests interrupt would never notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model's kernels are too short to share: threads would only wait for each other, and for the
    other programs of a busy machine. Tests of the number of threads set it themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Print as the last line how many tests were skipped, and what each of them lacked."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:  # the processes of pytest-xdist have none
        skipped = [report.longrepr for report in reporter.stats.get("skipped", [])]
        reasons = Counter(reason.removeprefix("Skipped: ") for _file, _line, reason in skipped)
        listed = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common())
        reporter.write_line(f"skipped: {listed or 'nothing'}")
    return result
