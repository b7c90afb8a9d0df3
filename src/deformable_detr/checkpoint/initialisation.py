"""Models whose weights are about to be loaded need no random ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def no_random_weights() -> Iterator[None]:
    """Draw no initial weights in this context: whatever is in their memory stays there.

    Constants are set as usual, and the state of the CPU's random generator does not change. Drawing the 40
    million weights of a model takes 0.3 s. PyTorch's meta device, the usual way to avoid that, computes some
    constants in Python, for which it imports its compiler, and that takes a second.
    """
    with torch.random.fork_rng(devices=[]), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    # Methods, and those functions of nn.init that PyTorch passes on before they call a method; these get
    # their arguments by name.
    _DRAWING = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in self._DRAWING:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
