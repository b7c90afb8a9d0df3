"""The two reasons that the paper gives for DETR's slowness (sections 1, 3 and 4.1), measured.

*Cost.* One attention layer of an encoder runs on square feature maps: multiply-adds, memory that training
keeps, and time are measured against the number of tokens. Dense attention is quadratic, deformable attention
linear. Dense attention is measured twice: as defined, with its matrix of weights, and in PyTorch's fused
kernel, which keeps no matrix and so reduces the memory but not the number of operations.

*Start.* At initialisation dense attention weighs all N keys nearly equally, 1/N, so a key's gradient shrinks
as maps grow. Deformable attention has few keys per query at any map size, so its gradients do not shrink.

    python -m experiments.paper complexity --output runs/paper

Letters: N tokens, C channels, M heads, K points.
"""

from __future__ import annotations

import math
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deformable_detr.cli.options import Parser
from deformable_detr.errors import UserError
from deformable_detr.files import write_json
from deformable_detr.models.attention import DeformableAttention, DenseAttention, MemoryAttention
from deformable_detr.models.encoder import token_centres
from deformable_detr.models.position import SinePosition
from deformable_detr.structures import FeatureMemory
from deformable_detr.system.environment import environment
from experiments.commands import add_output
from experiments.saved_memory import kept_bytes

from .flops import count_multiply_adds
from .pictures import COLOURS, new_figure, save_figure

C, M, K = 256, 8, 4
SIDES = (16, 24, 32, 48, 64)
QUERIES = 16  # queries whose gradients are measured


@dataclass(frozen=True)
class Kind:
    """One way to compute attention."""

    label: str
    build: Callable[[], MemoryAttention]
    kernel: Callable[[], AbstractContextManager[Any]]


KINDS = {
    "dense": Kind("dense", lambda: DenseAttention(C, M, dropout=0.0), lambda: sdpa_kernel(SDPBackend.MATH)),
    "dense_fused": Kind("dense, fused kernel", lambda: DenseAttention(C, M, dropout=0.0), nullcontext),
    "deformable": Kind(
        "deformable", lambda: DeformableAttention(C, M, num_levels=1, num_points=K), nullcontext
    ),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one layer on one picture's map of `tokens` tokens. `seconds` is the fastest of several
    forward and backward passes; `kept_bytes` is the memory that the forward pass keeps for the backward
    pass."""

    attention: str
    tokens: int
    multiply_adds: int
    kept_bytes: int
    seconds: float


@dataclass(frozen=True)
class Start:
    """Statistics of one layer as initialised. `entropy` is that of a query's weights as a fraction of
    ln(keys), 1 if all are equal. `largest_weight` is the mean over queries and heads. `gradient_per_key` is
    the norm of the gradient of one channel of a query's output with respect to a token, averaged over the
    tokens on which it depends."""

    attention: str
    tokens: int
    keys: int
    entropy: float
    largest_weight: float
    gradient_per_key: float


def add_arguments(parser: Parser) -> None:
    add_output(parser, "figures and JSON")
    parser.option(
        "--sides", int, list(SIDES), "Sides of square feature maps, in tokens.", shown="N", many=True
    )
    parser.option("--repeat", int, 5, "How often each layer is timed.")


def run(arguments: Namespace) -> None:
    if min(arguments.sides) < 2 or len(set(arguments.sides)) < 2 or arguments.repeat < 1:
        raise UserError("--sides needs two different sides of at least 2 tokens, and --repeat at least 1.")
    sides, output = sorted(set(arguments.sides)), Path(arguments.output)
    costs = measure_costs(sides, arguments.repeat)
    starts = measure_starts(sides)
    command = ["python", "-m", "experiments.paper", "complexity", "--output", arguments.output]
    command += ["--sides", *map(str, sides), "--repeat", str(arguments.repeat)]
    content = {
        "layer": {"channels": C, "heads": M, "points": K, "levels": 1},
        "command": shlex.join(command),
        "environment": environment("cpu"),
        "exponents": exponents(costs),
        "costs": [asdict(cost) for cost in costs],
        "starts": [asdict(start) for start in starts],
    }
    write_json(output / "complexity.json", content)
    for name, figure in (("complexity", _draw_costs(costs)), ("attention_start", _draw_starts(starts))):
        print("written: {}, {}".format(*save_figure(figure, output / name)))


# ---- Cost ------------------------------------------------------------------------------------------


def measure_costs(sides: Sequence[int], repeat: int) -> list[Cost]:
    """Measure the cost of each kind of attention on each map."""
    return [_measure_cost(name, side, repeat) for name in KINDS for side in sides]


def _measure_cost(name: str, side: int, repeat: int) -> Cost:
    kind = KINDS[name]
    attention = kind.build()
    memory = random_memory(side)
    references = token_centres(memory)

    def forward() -> Tensor:
        result: Tensor = attention(memory.tokens, memory.positions, references, memory)
        return result

    with kind.kernel():
        kept = kept_bytes(forward)
        seconds = []
        for _ in range(repeat):
            start = time.perf_counter()
            forward().sum().backward()
            seconds.append(time.perf_counter() - start)
    return Cost(name, side * side, multiply_adds(name, side), kept, min(seconds))


def multiply_adds(name: str, side: int) -> int:
    """Count the multiply-adds of the forward pass on a square map."""
    with torch.device("meta"):
        attention, memory = KINDS[name].build().requires_grad_(False), random_memory(side)
        references = token_centres(memory)
    return count_multiply_adds(lambda: attention(memory.tokens, memory.positions, references, memory))


def exponents(costs: Sequence[Cost]) -> dict[str, dict[str, float]]:
    """Return each cost's log-log slope between the two largest maps: 1 is linear, 2 quadratic."""
    slopes: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(cost.attention for cost in costs):
        before, last = sorted((c for c in costs if c.attention == name), key=lambda c: c.tokens)[-2:]
        growth = math.log(last.tokens / before.tokens)
        slopes[name] = {
            quantity: round(math.log(getattr(last, quantity) / getattr(before, quantity)) / growth, 2)
            for quantity in ("multiply_adds", "kept_bytes", "seconds")
        }
    return slopes


def random_memory(side: int) -> FeatureMemory:
    """Return random tokens of one picture on a square map without padding, distributed as after a layer norm,
    with sine positions."""
    torch.manual_seed(0)
    mask = torch.zeros(1, side, side, dtype=torch.bool)
    (positions,) = SinePosition(C, half_pixel=True)([mask])
    return FeatureMemory(
        tokens=torch.randn(1, side * side, C, requires_grad=True),
        positions=positions.flatten(2).transpose(1, 2),
        mask=mask.flatten(1),
        spatial_shapes=((side, side),),
        valid_ratios=torch.ones(1, 1, 2),
    )


# ---- Start -----------------------------------------------------------------------------------------


def measure_starts(sides: Sequence[int]) -> list[Start]:
    """Measure dense and deformable attention as initialised, on each map."""
    return [_measure_start(name, side) for name in ("dense", "deformable") for side in sides]


def _measure_start(name: str, side: int) -> Start:
    torch.manual_seed(1)
    attention, memory = KINDS[name].build(), random_memory(side)
    weights = _weights(attention, memory)  # (rows, keys)
    keys = weights.shape[-1]
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean() / math.log(keys)
    return Start(
        name,
        side * side,
        keys,
        round(float(entropy), 5),
        float(weights.amax(-1).mean()),
        _gradient_per_key(attention, memory),
    )


@torch.no_grad()
def _weights(attention: MemoryAttention, memory: FeatureMemory) -> Tensor:
    """Return the softmax weights of some queries, (rows, keys), with a row for each query and head."""
    chosen = _chosen_queries(memory)
    query = (memory.tokens + memory.positions)[:, chosen]
    if isinstance(attention, DeformableAttention):
        sampled: Tensor = attention.attention_weights(query).view(-1, K).softmax(-1)
        return sampled
    assert isinstance(attention, DenseAttention)
    keys = memory.tokens + memory.positions
    _, weights = attention.attention(query, keys, memory.tokens, average_attn_weights=False)
    result: Tensor = weights.flatten(0, 2)
    return result


def _gradient_per_key(attention: MemoryAttention, memory: FeatureMemory) -> float:
    """Return `Start.gradient_per_key`. The gradient flows through values and keys, and the query is held
    fixed."""
    references = token_centres(memory)
    fixed = memory.tokens.detach()
    norms = []
    for query in _chosen_queries(memory).tolist():
        row = slice(query, query + 1)
        output = attention(fixed[:, row], memory.positions[:, row], references[:, row], memory)
        (gradient,) = torch.autograd.grad(output[0, 0, 0], memory.tokens)
        reached = gradient[0].norm(dim=-1)
        norms.append(float(reached[reached > 0].mean()))
    return sum(norms) / len(norms)


def _chosen_queries(memory: FeatureMemory) -> Tensor:
    """Return indices of queries that are spread evenly over the map."""
    tokens = memory.tokens.shape[1]
    return torch.linspace(0, tokens - 1, min(QUERIES, tokens)).long()


# ---- Pictures --------------------------------------------------------------------------------------


def _draw_costs(costs: Sequence[Cost]) -> Any:
    panels = (
        ("multiply_adds", 1e-9, "multiply-adds (G)"),
        ("kept_bytes", 1e-6, "kept for backward (MB)"),
        ("seconds", 1, "forward + backward (s)"),
    )
    figure = new_figure(columns=len(panels))
    for axes, (quantity, unit, label) in zip(figure.axes, panels, strict=True):
        for colour, (name, kind) in zip(COLOURS, KINDS.items(), strict=False):
            own = [cost for cost in costs if cost.attention == name]
            tokens, values = [c.tokens for c in own], [getattr(c, quantity) * unit for c in own]
            style = "o--" if name == "dense_fused" else "o-"
            axes.loglog(tokens, values, style, color=colour, markersize=3, linewidth=1.2, label=kind.label)
        _name_axes(axes, [cost.tokens for cost in costs], label)
    figure.axes[0].legend(fontsize=7, frameon=False)
    return figure


def _draw_starts(starts: Sequence[Start]) -> Any:
    figure = new_figure(columns=2)
    weight_axes, gradient_axes = figure.axes
    for colour, name in zip(COLOURS[::2], ("dense", "deformable"), strict=False):
        own = [start for start in starts if start.attention == name]
        tokens = [start.tokens for start in own]
        for axes, values in (
            (weight_axes, [start.largest_weight for start in own]),
            (gradient_axes, [start.gradient_per_key for start in own]),
        ):
            axes.loglog(tokens, values, "o-", color=colour, markersize=3, linewidth=1.2, label=name)
    tokens = sorted({start.tokens for start in starts})
    weight_axes.loglog(tokens, [1 / each for each in tokens], ":", color="0.4", linewidth=1, label="1/N")
    for axes, label in ((weight_axes, "largest weight at the start"), (gradient_axes, "gradient per key")):
        _name_axes(axes, tokens, label)
    weight_axes.legend(fontsize=7, frameon=False)
    return figure


def _name_axes(axes: Any, tokens: Sequence[int], label: str) -> None:
    ticks = sorted(set(tokens))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("tokens (N)", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
