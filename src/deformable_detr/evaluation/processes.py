"""Evaluation in several processes: each measures a part of the images on its own device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed

Item = TypeVar("Item")


@contextmanager
def process_group() -> Iterator[None]:
    """Create a process group for the block if torchrun started several processes and there is none yet."""
    started_as_one_of_many = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started_as_one_of_many or torch.distributed.is_initialized():
        yield
        return
    torch.distributed.init_process_group("gloo")  # only Python objects are exchanged
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def rank_and_count() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gathered(value: Item) -> list[Item]:
    """Return the values of all processes in the order of their ranks; every process must call this function.

    Without a process group, the list contains only `value`.
    """
    _, num_processes = rank_and_count()
    if num_processes == 1:
        return [value]
    values: list[Any] = [None] * num_processes
    torch.distributed.all_gather_object(values, value)
    return values


def own_device(device: str, num_processes: int) -> str:
    if device == "auto" and num_processes > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
