"""The processes that train together under torchrun: who this one is, on which device, and what they exchange.

This is plain `torch.distributed`. Why not Accelerate: docs/decisions/0006-plain-torch-distributed.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..inference.detector import choose_device


@dataclass(frozen=True)
class Processes:
    """This process among those that train together. `rank`: its number; number 0 writes the files."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_gradients(self, model: nn.Module, *, some_unused: bool) -> nn.Module:
        """`model`, wrapped so that its backward pass averages gradients over the processes.

        `some_unused`: parameters may get no gradient in an update.
        """
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=some_unused)

    def sum(self, values: list[float]) -> list[float]:
        """Each value, added up over the processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, device=self.device)
        torch.distributed.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in at least one process."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.world_size > 1:
            torch.distributed.barrier()


def join_processes(device: str) -> Processes:
    """Find out which process this is. Under torchrun, the first call makes the process group, which stays:
    the evaluation and later runs in the same processes use it, too.

    Args:
        device: auto, cpu or cuda. Each process takes the GPU of its local rank.

    Raises:
        UserError: there is no such device here.
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
