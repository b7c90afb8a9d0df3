"""Where the small scale disagrees with the paper: is it how layers start? Two trials for docs/paper.md.

    python benchmarks/paper/starts.py near_points deformable_detr_r50_own_level --seed 1
    python benchmarks/paper/starts.py identity_bifpn deformable_detr_r50_bifpn --seed 1

near_points: a head's K sampling points start 1/K to 1 cell from the reference, not 1 to K cells.
identity_bifpn: the convolutions of a BiFPN start as the identity: at first it only mixes levels.

Everything else is as in a run of queue.yaml: six epochs on its drawn pictures, which `paper queue` has drawn
into OUTPUT. A stopped trial goes on. Writes one JSON a run, like those of the queue.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from deformable_detr.files import write_text
from deformable_detr.models.attention import DeformableAttention
from deformable_detr.models.neck import Fusion
from deformable_detr.paper.queue import ROWS, QueuedRun, result_of

DATA, EPOCHS = "shapes", 6


def near_points() -> None:
    published = DeformableAttention.reset_parameters

    def reset_parameters(self: DeformableAttention) -> None:
        published(self)
        with torch.no_grad():
            self.sampling_offsets.bias.div_(self.num_points)

    DeformableAttention.reset_parameters = reset_parameters


def identity_bifpn() -> None:
    published = Fusion.__init__

    def start(self: Fusion, dim: int, num_inputs: int) -> None:
        published(self, dim, num_inputs)
        _, depthwise, pointwise, _ = self.convolution
        with torch.no_grad():
            depthwise.weight.zero_()
            depthwise.weight[:, :, 1, 1] = 1
            pointwise.weight.copy_(torch.eye(dim)[:, :, None, None])
            pointwise.bias.zero_()

    Fusion.__init__ = start


TRIALS: dict[str, Callable[[], None]] = {"near_points": near_points, "identity_bifpn": identity_bifpn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trial", choices=TRIALS)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/paper"), help="where `paper queue` drew its pictures"
    )
    parser.add_argument("--results", type=Path, default=Path("benchmarks/paper/results/starts"))
    arguments = parser.parse_args()
    data = arguments.output / "data" / DATA
    if not data.is_dir():
        parser.error(f"{data} is missing: `paper queue` draws it; name its --output.")
    TRIALS[arguments.trial]()  # for this process
    row = ROWS[arguments.row]
    run = QueuedRun(row, DATA, EPOCHS, arguments.seed, evaluate_every=1)
    folder = arguments.output / arguments.trial / f"{row.name}-seed{arguments.seed}"
    row.train(data, run.config, folder, "cpu")
    command = f"python benchmarks/paper/starts.py {arguments.trial} {row.name} --seed {arguments.seed}"
    result = result_of(run, folder, command)
    path = arguments.results / f"{arguments.trial}-{row.name}-seed{arguments.seed}.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"{100 * result['AP']:.1f} AP: {path}")


if __name__ == "__main__":
    main()
