"""The receptive field follows the object's scale: a small network with one deformable convolution.

    python docs/figures/receptive_field.py          writes docs/images/deform_conv_receptive_field.png

The task is made for it: say at each pixel of a disc how large the disc is. Inside a large disc everything
near is white; only who looks as far as the rim can tell. Around a small one other small discs lie close, and
who looks too far sees those. Nothing in the loss speaks of offsets. tests/test_receptive_field.py trains the
same networks.

Letters: N scenes, S their side in pixels. "Reach" of a pixel: the mean distance from it to the nine places
where the kernel reads, in pixels. That of a plain 3x3 kernel is (0 + 4·1 + 4·√2) / 9 = 1.07.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deformable_detr.ops import DeformConv2d

SIDE = 32
LARGE, SMALL = (7.0, 10.0), (1.5, 3.0)  # radii in pixels, least and greatest
SMALL_DISCS = 8  # beside one large disc; fewer where no place is left
GAP = 1.5  # pixels between discs, at least
NOISE = 0.1
PLAIN_REACH = 4 * (1 + math.sqrt(2)) / 9
PICTURE = Path(__file__).parents[1] / "images" / "deform_conv_receptive_field.png"


@dataclass(frozen=True)
class Scenes:
    """`pictures`: (N, 1, S, S), discs of 1 on 0, with noise. `radii`: (N, S, S), of the disc on each pixel, 0
    where there is none. No two discs of a scene have the same."""

    pictures: Tensor
    radii: Tensor

    @property
    def on_large(self) -> Tensor:
        return self.radii >= LARGE[0]

    @property
    def on_small(self) -> Tensor:
        return (self.radii > 0) & (self.radii <= SMALL[1])

    def __getitem__(self, indices: Tensor) -> Scenes:
        return Scenes(self.pictures[indices], self.radii[indices])


def draw_scenes(count: int, generator: torch.Generator) -> Scenes:
    pictures, radii = torch.zeros(2, count, SIDE, SIDE)
    places = _places()
    for picture, radius_map in zip(pictures, radii, strict=True):
        for centre, radius in _discs(generator):
            distance = (places - torch.tensor(centre)).norm(dim=-1)
            picture += (radius - distance + 0.5).clamp(0, 1)  # a rim of one pixel
            radius_map[distance <= radius] = radius
    pictures += NOISE * torch.randn(pictures.shape, generator=generator)
    return Scenes(pictures[:, None], radii)


def _places() -> Tensor:
    """(S, S, 2): (x, y) of each pixel."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([x, y], dim=-1).float()


def _discs(generator: torch.Generator) -> Iterator[tuple[tuple[float, float], float]]:
    """Centres (x, y) and radii of one scene, the large one first."""
    placed: list[tuple[tuple[float, float], float]] = []
    for least, greatest in (LARGE, *(SMALL,) * SMALL_DISCS):
        for size, right, down in torch.rand(50, 3, generator=generator).tolist():
            radius = least + (greatest - least) * size
            room = SIDE - 1 - 2 * radius
            centre = (radius + room * right, radius + room * down)
            if all(math.dist(centre, other) > radius + its + GAP for other, its in placed):
                placed.append((centre, radius))
                yield centre, radius
                break


class SizeNet(nn.Module):
    """Two plain 3x3 convolutions, which see 5x5 pixels; one deformable or plain; log radius at each pixel."""

    def __init__(self, deformable: bool = True, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        # Offsets only (v1): where the kernel reads is then all there is to see.
        self.gather: nn.Module = (
            DeformConv2d(width, width, 3, padding=1, modulated=False)
            if deformable
            else nn.Conv2d(width, width, 3, padding=1)
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1), nn.Flatten(1, 2)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 1, S, S) to log radii (N, S, S)."""
        log_radii: Tensor = self.head(self.gather(self.stem(pictures)))
        return log_radii

    @torch.no_grad()
    def sampling_locations(self, pictures: Tensor) -> Tensor:
        """(N, S, S, 9, 2): (x, y) of where the deformable kernel reads for each pixel."""
        locations: Tensor = self.gather.sampling_locations(self.stem(pictures))[:, :, :, 0]  # type: ignore[operator]
        return locations

    def reach(self, pictures: Tensor) -> Tensor:
        """(N, S, S): mean distance from each pixel to where its kernel reads."""
        steps: Tensor = self.sampling_locations(pictures) - _places()[:, :, None]
        distances: Tensor = steps.norm(dim=-1).mean(dim=-1)
        return distances


def train(seed: int, steps: int, deformable: bool = True) -> SizeNet:
    """A network after `steps` updates on scenes of its own; large and small discs count alike in the loss."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    scenes = draw_scenes(128, generator)
    net = SizeNet(deformable)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        batch = scenes[torch.randint(0, 128, (4,), generator=generator)]
        target = batch.radii.clamp(min=SMALL[0]).log()  # what stands where there is no disc is left out below
        error = F.smooth_l1_loss(net(batch.pictures), target, reduction="none")
        loss = error[batch.on_large].mean() + error[batch.on_small].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def unseen_scenes(count: int = 32) -> Scenes:
    return draw_scenes(count, torch.Generator().manual_seed(2021))


@torch.no_grad()
def mean_errors(net: SizeNet, scenes: Scenes) -> tuple[float, float]:
    """Mean |predicted - true radius| in pixels, on large discs and on small ones."""
    errors = (net(scenes.pictures).exp() - scenes.radii).abs()
    return errors[scenes.on_large].mean().item(), errors[scenes.on_small].mean().item()


def mean_reaches(net: SizeNet, scenes: Scenes) -> tuple[float, float]:
    """Mean reach of the pixels of large discs and of small ones."""
    reach = net.reach(scenes.pictures)
    return reach[scenes.on_large].mean().item(), reach[scenes.on_small].mean().item()


def reach_by_disc(net: SizeNet, scenes: Scenes) -> Tensor:
    """(number of discs, 2): radius, mean reach of its pixels."""
    rows = []
    for radii, reach in zip(scenes.radii, net.reach(scenes.pictures), strict=True):
        rows += [(radius, reach[radii == radius].mean()) for radius in radii.unique() if radius > 0]
    return torch.tensor(rows)


def draw_figure(nets: list[SizeNet], scenes: Scenes, scene: int, path: Path) -> None:
    """Left: one scene, and where the first network reads for a pixel of a large and of a small disc.
    Middle: the reach of every pixel. Right: reach against radius for all discs and all networks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    large, small, ink = "#d1495b", "#00798c", "#333333"
    plt.rcParams.update(
        {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(11, 3.6), width_ratios=(1, 1.16, 1.1), layout="constrained"
    )
    pictures, radii = scenes.pictures[[scene]], scenes.radii[scene]

    left.imshow((1 - 0.55 * pictures[0, 0].clamp(0, 1)).numpy(), cmap="gray", vmin=0, vmax=1)
    locations = nets[0].sampling_locations(pictures)[0]
    sizes = radii.unique()
    for radius, colour, name in (
        (sizes[-1], large, "on a large disc"),
        (sizes[1:-1].median(), small, "on a small disc"),
    ):
        x, y = _places()[radii == radius].mean(0).round().long().tolist()
        points = locations[y, x]
        for point in points.tolist():
            left.plot((x, point[0]), (y, point[1]), color=colour, linewidth=0.8, alpha=0.6, clip_on=False)
        left.scatter(
            *points.T,
            s=26,
            color=colour,
            edgecolor="white",
            linewidth=0.7,
            zorder=3,
            label=name,
            clip_on=False,
        )
        left.scatter(x, y, s=42, marker="+", color=ink, linewidth=1.2, zorder=4)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, handletextpad=0.1)
    left.set(title="Where the kernel reads for two pixels (+)", xticks=[], yticks=[])
    left.set(xlim=(-0.5, SIDE - 0.5), ylim=(SIDE - 0.5, -0.5))
    left.spines[:].set_visible(False)

    image = middle.imshow(nets[0].reach(pictures)[0].numpy(), cmap="magma", vmin=0)
    fine = (torch.arange(8 * SIDE) + 0.5) / 8 - 0.5  # outlines along the pixels' edges, not across them
    covered = (radii > 0).repeat_interleave(8, 0).repeat_interleave(8, 1)
    middle.contour(fine.numpy(), fine.numpy(), covered.numpy(), levels=[0.5], colors="white", linewidths=0.7)
    middle.set(title="Reach of each pixel", xticks=[], yticks=[])
    middle.spines[:].set_visible(False)
    figure.colorbar(image, ax=middle, fraction=0.046, pad=0.03, label="pixels")

    for net, marker in zip(nets, "o^s", strict=True):
        discs = reach_by_disc(net, scenes)
        is_large = discs[:, 0] >= LARGE[0]
        for which, colour in ((is_large, large), (~is_large, small)):
            right.scatter(*discs[which].T.numpy(), s=10, marker=marker, color=colour, alpha=0.4, linewidth=0)
    right.axhline(PLAIN_REACH, color=ink, linewidth=1, linestyle=(0, (4, 3)))
    right.text(LARGE[1], PLAIN_REACH + 0.1, "plain 3x3 kernel", ha="right")
    right.set(title=f"Reach by size of the disc, {len(nets)} seeds", ylim=(0, None), xlim=(0, None))
    right.set(xlabel="radius of the disc (pixels)", ylabel="mean reach on the disc (pixels)")

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    scenes, nets = unseen_scenes(), []
    for seed in range(3):
        net, plain = train(seed, steps=300), train(seed, steps=300, deformable=False)
        large, small = mean_reaches(net, scenes)
        print(
            f"seed {seed}: reach {large:.2f} on large discs, {small:.2f} on small ones, "
            f"ratio {large / small:.2f}"
        )
        for name, errors in (("deformable", mean_errors(net, scenes)), ("plain", mean_errors(plain, scenes))):
            print(f"    error, {name}: {errors[0]:.2f} pixels on large discs, {errors[1]:.2f} on small ones")
        nets.append(net)
    draw_figure(nets, scenes, scene=int(sys.argv[2]) if len(sys.argv) > 2 else 1, path=path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
