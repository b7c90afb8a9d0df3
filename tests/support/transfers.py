"""Count, on a machine without a GPU, the calls that would make the host wait for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch

# Each makes numbers of a tensor, or brings it to the host.
WAITING = ("cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__", "__index__")


@contextmanager
def counted_transfers() -> Iterator[Counter[str]]:
    """Count the calls in the block of each function in WAITING, and of `to` if it need not wait."""
    counts: Counter[str] = Counter()

    def counted(name: str, original: Any, tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if name != "to" or options.get("non_blocking"):
            counts[name] += 1
        return original(tensor, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in (*WAITING, "to"):
            function = partial(counted, name, getattr(torch.Tensor, name))
            patch.setattr(torch.Tensor, name, lambda *a, _function=function, **o: _function(*a, **o))
        yield counts
