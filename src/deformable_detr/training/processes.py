"""The processes that train together under torchrun: their ranks and devices, and their communication.

This is plain `torch.distributed`; docs/decisions/0006-plain-torch-distributed.md explains why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..inference.devices import choose_device

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The rank and device of this process, and the number of processes; rank 0 writes the files."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_gradients(self, model: nn.Module, *, some_unused: bool) -> nn.Module:
        """Wrap `model` so that its backward pass averages gradients over the processes.

        If there is only one process, `model` itself is returned.

        Args:
            some_unused: True if some parameters may get no gradient in an update.
        """
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=some_unused)

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum of each value over the processes, all of which must call this method."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, device=self.device)
        torch.distributed.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    def any(self, flag: bool) -> bool:
        """Return True if `flag` is True in at least one process; all of them must call this method."""
        return self.sum([float(flag)])[0] > 0

    def from_first(self, compute: Callable[[], Result]) -> Result:
        """Return, in every process, what `compute` returns in the first one; the others do not call it.

        Therefore only the machine of the first process needs the run folder, and all processes use the same
        contents of it.

        Raises:
            UserError: in every process, if `compute` raises it in the first one. Any other exception is
                raised only there.
        """
        if self.world_size == 1:
            return compute()
        shared: list[Any] = [None, None]
        if self.is_first:
            try:
                shared[0] = compute()
            except UserError as error:
                shared[1] = error
        torch.distributed.broadcast_object_list(shared)
        result, problem = shared
        if problem is not None:
            raise problem
        return result  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.world_size > 1:
            torch.distributed.barrier()


def join_processes(device: str) -> Processes:
    """Return this process's place among the processes that train together.

    Under torchrun, the first call creates the process group. The group is not destroyed, because the
    evaluation and later runs in the same processes use it too.

    Args:
        device: auto, cpu or cuda. Each process uses the GPU of its local rank.

    Raises:
        UserError: if `device` has another value, or if this machine has no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"training runs on auto, cpu or cuda, not on {device}: choose the GPU with CUDA_VISIBLE_DEVICES."
        )
    chosen = choose_device(device)
    started_as_one_of_many = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started_as_one_of_many and not _has_process_group():
        return Processes(0, 1, chosen)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    if not _has_process_group():
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), chosen)


def _has_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
