"""Record a function of tensors as CUDA graphs, one for each shape that occurs again."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
Function = Callable[..., tuple[Tensor, ...]]
Shapes = tuple[Any, ...]

KEPT_GRAPHS = 8  # shapes with a graph; all graphs share one pool of memory, as large as the largest one needs
REMEMBERED_SHAPES = 256  # shapes that have occurred only once


class Replay(ABC):
    """A recorded call. `replay` repeats it on the current values of `inputs` and overwrites `outputs`."""

    inputs: Inputs
    outputs: tuple[Tensor, ...]

    @abstractmethod
    def replay(self) -> None: ...


class CudaReplay(Replay):
    """A CUDA graph. Its tensors have fixed addresses, so nothing is allocated when it is replayed."""

    def __init__(self, function: Function, inputs: Inputs, pool: Any):
        self.inputs = tuple(each.clone() for each in inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up at the first call, outside the graph
            function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # The capture mode "thread_local" allows other threads to use the GPU in the meantime.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.outputs = function(*self.inputs)

    def replay(self) -> None:
        self._graph.replay()


class Graphs:
    """A function that is recorded as a graph for each combination of input shapes that occurs again.

    Recording a graph takes as long as several calls, so inputs whose shapes (and types) occur for the first
    time are passed to `function` itself. The graphs of the most recently used shapes are kept. If a recording
    fails with a RuntimeError, there is a warning, and no further graph is recorded. Only one call runs at a
    time; other threads wait.

    Args:
        function: a function of tensors that returns a tuple of tensors.
        record: creates a graph, as `record(function, inputs)`.
        kept: the maximum number of graphs.
    """

    def __init__(
        self, function: Function, record: Callable[[Function, Inputs], Replay], kept: int = KEPT_GRAPHS
    ):
        self._function, self._record, self._kept = function, record, kept
        self._replays: OrderedDict[Shapes, Replay] = OrderedDict()
        self._seen: OrderedDict[Shapes, None] = OrderedDict()
        self._can_record = True
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the function's result in new tensors, which no later call changes.

        The inputs may be on the CPU if `function` accepts such inputs.
        """
        with self._lock:
            shapes = tuple((tuple(each.shape), each.dtype) for each in inputs)
            replay = self._replay_for(shapes, inputs)
            if replay is None:
                return self._function(*inputs)
            for buffer, given in zip(replay.inputs, inputs, strict=True):
                buffer.copy_(given, non_blocking=True)
            replay.replay()
            return tuple(each.clone() for each in replay.outputs)

    def _replay_for(self, shapes: Shapes, inputs: Inputs) -> Replay | None:
        """Return the graph that replays calls with inputs of these shapes; None means to call the function.

        A graph is recorded when its shapes occur for the second time. The result is None if they occur for
        the first time (or are no longer remembered), or if the recording of any graph has failed, unless a
        graph for these shapes was recorded before.
        """
        if shapes in self._replays:
            self._replays.move_to_end(shapes)
            return self._replays[shapes]
        if not self._can_record:
            return None
        if shapes not in self._seen:
            self._seen[shapes] = None
            if len(self._seen) > REMEMBERED_SHAPES:
                self._seen.popitem(last=False)
            return None
        while len(self._replays) >= self._kept:  # before another one is recorded, to save memory
            self._replays.popitem(last=False)
        try:
            replay = self._record(self._function, inputs)
        except RuntimeError as error:
            self._can_record = False
            warnings.warn(
                "This model cannot be captured as a CUDA graph, so that detection on this GPU is slower: "
                f"{str(error).splitlines()[0]}",
                stacklevel=4,
            )
            return None
        del self._seen[shapes]
        self._replays[shapes] = replay
        return replay
