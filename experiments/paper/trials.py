"""Trials in addition to the queue, for docs/paper.md: why does the small scale disagree with the paper, and
does the reduction cause DETR's slowness?

    python experiments/paper/trials.py near_points deformable_detr_r50_own_level --seed 1
    python experiments/paper/trials.py identity_bifpn deformable_detr_r50_bifpn --seed 1
    python experiments/paper/trials.py group_norm detr_r50 --epochs 60 --evaluate-every 3
    python experiments/paper/trials.py double_rate detr_r50 --epochs 60 --evaluate-every 3
    python experiments/paper/trials.py half_rate detr_r50 --epochs 60 --evaluate-every 3

near_points: a head's K sampling points start 1/K to 1 cell from the reference, not 1 to K cells.
identity_bifpn: the convolutions of a BiFPN start as the identity; its activations and norms stay.
group_norm: DETR's features are normalised after their projection, as Deformable DETR's are.
double_rate, half_rate: the learning rate is doubled or halved; twice DETR's rate is Deformable DETR's.

Everything else is as in a run of queue.yaml on its drawn pictures, which `paper queue` has drawn into OUTPUT.
A stopped trial can be continued. Each run writes one JSON file like those of the queue.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from deformable_detr.config import RunConfig, override
from deformable_detr.files import write_json
from deformable_detr.models.attention import DeformableAttention
from deformable_detr.models.neck import Fusion
from experiments.paper.queue import ROWS, QueuedRun, result_of

DATA = "shapes"


def near_points(config: RunConfig) -> RunConfig:
    published = DeformableAttention.reset_parameters

    def reset_parameters(self: DeformableAttention) -> None:
        published(self)
        with torch.no_grad():
            self.sampling_offsets.bias.div_(self.num_points)

    setattr(DeformableAttention, "reset_parameters", reset_parameters)  # noqa: B010 - for this process
    return config


def identity_bifpn(config: RunConfig) -> RunConfig:
    published = Fusion.__init__

    def start(self: Fusion, dim: int, num_inputs: int) -> None:
        published(self, dim, num_inputs)
        _, depthwise, pointwise, _ = self.convolution
        assert isinstance(depthwise, nn.Conv2d)
        assert isinstance(pointwise, nn.Conv2d)
        with torch.no_grad():
            depthwise.weight.zero_()
            depthwise.weight[:, :, 1, 1] = 1
            pointwise.weight.copy_(torch.eye(dim)[:, :, None, None])
            assert pointwise.bias is not None
            pointwise.bias.zero_()

    setattr(Fusion, "__init__", start)  # noqa: B010 - for this process
    return config


def group_norm(config: RunConfig) -> RunConfig:
    return override(config, {"model.neck": "channel_mapper"})


def double_rate(config: RunConfig) -> RunConfig:
    return _at_rate(config, 2)


def half_rate(config: RunConfig) -> RunConfig:
    return _at_rate(config, 0.5)


def _at_rate(config: RunConfig, times: float) -> RunConfig:
    train = config.train
    return replace(config, train=replace(train, lr=times * train.lr, lr_backbone=times * train.lr_backbone))


TRIALS: dict[str, Callable[[RunConfig], RunConfig]] = {
    each.__name__: each for each in (near_points, identity_bifpn, group_norm, double_rate, half_rate)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--evaluate-every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/paper"), help="where `paper queue` drew its pictures"
    )
    parser.add_argument("--results", type=Path, default=Path("experiments/results/paper/trials"))
    arguments = parser.parse_args()
    data = arguments.output / "data" / DATA
    if not data.is_dir():
        parser.error(f"{data} is missing: `paper queue` draws it; name its --output.")
    trial, row, seed = arguments.trial, ROWS[arguments.row], arguments.seed
    run = QueuedRun(row, DATA, arguments.epochs, seed, arguments.evaluate_every)
    name = f"{trial}-{row.name}-{run.epochs}ep-seed{seed}"
    folder = arguments.output / "trials" / name
    row.train(data, TRIALS[trial](run.config), folder, "cpu")
    command = (
        f"python experiments/paper/trials.py {trial} {row.name} --epochs {run.epochs} "
        f"--evaluate-every {run.evaluate_every} --seed {seed}"
    )
    result = result_of(run, folder, command)
    path = arguments.results / f"{name}.json"
    write_json(path, {"trial": trial, **result})
    print(f"{100 * result['AP']:.1f} AP: {path}")


if __name__ == "__main__":
    main()
