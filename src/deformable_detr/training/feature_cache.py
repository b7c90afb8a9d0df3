"""Features of a backbone that does not learn, computed once and used in every epoch.

If the backbone is frozen and the pixels of an image are the same in each epoch, then so are its feature maps:
epochs after the first train neck, encoder and decoder alone. The maps are those of the padded batch in
which an image was met (padding reaches into them), so they are kept by image *and* padded size: gradients are
the same with and without the cache. In memory up to a bound, then in files up to another one; what fits in
neither is computed again each time.

Letters: B batch, C channels, H, W the sizes of a feature map.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ..data.loading import SampleKey, Samples
from ..errors import UserError
from ..files import writing
from ..models.backbone import Backbone
from ..structures import FeatureBatch, ImageBatch, Target

PlaceKey = tuple[int, int, int]  # (index of the image, height and width of the padded batch)


@dataclass(frozen=True)
class Bounds:
    """Bytes of features in memory and in files, of this process."""

    memory: int
    files: int


class FeatureCache:
    """`cache[keys]`: like `collate([samples[key] for key in keys])`, with the backbone's maps for pixels.

    `samples` must give the same pixels in each epoch. `folder` is this process's own: emptied now, removed by
    `close`. `computing`: the context in which the backbone computes (autocast).

    Attributes:
        num_computed, num_recalled: images that went through the backbone, and that did not have to.

    Raises:
        UserError: the backbone is not the same function in every update.
    """

    def __init__(
        self,
        samples: Samples,
        backbone: Backbone,
        device: torch.device,
        folder: Path,
        bounds: Bounds,
        computing: Callable[[], AbstractContextManager[None]],
    ):
        _require_fixed(backbone)
        self.samples, self.backbone, self.device = samples, backbone, device
        self.folder, self.bounds, self.computing = folder, bounds, computing
        self.memory: dict[PlaceKey, list[Tensor]] = {}
        self.files: dict[PlaceKey, Path] = {}
        self.memory_bytes = self.file_bytes = 0
        self.targets: dict[int, Target] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.num_computed = self.num_recalled = 0
        self.num_left_out = 0
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self.files.clear()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def __getitem__(self, keys: Sequence[SampleKey]) -> tuple[FeatureBatch, tuple[Target, ...]]:
        indices = [index for _, index in keys]
        batch = self._recalled(indices)
        if batch is None:
            batch = self._computed(keys)
            self.num_computed += len(indices)
        else:
            self.num_recalled += len(indices)
        return batch, tuple(self.targets[index] for index in indices)

    def _recalled(self, indices: Sequence[int]) -> FeatureBatch | None:
        if not all(index in self.sizes for index in indices):
            return None
        sizes = [self.sizes[index] for index in indices]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        remembered = [self._maps_of((index, height, width)) for index in indices]
        images = [maps for maps in remembered if maps is not None]
        if len(images) < len(indices):
            return None
        mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
        for row, (h, w) in zip(mask, sizes, strict=True):
            row[:h, :w] = False
        # Stacked with the channels last, which is how a backbone in that layout gives its maps.
        levels = [torch.stack(level).permute(0, 3, 1, 2) for level in zip(*images, strict=True)]
        return FeatureBatch(tuple(levels), mask).to(self.device)

    def _maps_of(self, place: PlaceKey) -> list[Tensor] | None:
        if place in self.memory:
            return self.memory[place]
        if place in self.files:
            tensors = load_file(self.files[place])
            return [tensors[str(level)] for level in range(len(tensors))]
        return None

    def _computed(self, keys: Sequence[SampleKey]) -> FeatureBatch:
        pixels, targets = zip(*(self.samples[key] for key in keys), strict=True)
        images = ImageBatch.from_images(pixels).to(self.device)
        was_training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad(), self.computing():
            levels = tuple(self.backbone(images.pixels))
        self.backbone.train(was_training)
        height, width = images.mask.shape[1:]
        for row, (_, index) in enumerate(keys):
            self.targets[index] = targets[row]
            self.sizes[index] = (pixels[row].shape[1], pixels[row].shape[2])
            self._keep((index, height, width), [level[row] for level in levels])
        return FeatureBatch(levels, images.mask)

    def _keep(self, place: PlaceKey, maps: Sequence[Tensor]) -> None:
        if place in self.memory or place in self.files:
            return
        num_bytes = sum(level.numel() * level.element_size() for level in maps)
        in_memory = self.memory_bytes + num_bytes <= self.bounds.memory
        if not in_memory and self.file_bytes + num_bytes > self.bounds.files:
            self.num_left_out += 1
            return
        # (H, W, C), copied: a view would keep the whole batch.
        own = [level.permute(1, 2, 0).to("cpu", copy=True).contiguous() for level in maps]
        if in_memory:
            self.memory[place] = own
            self.memory_bytes += num_bytes
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "-".join(map(str, place))
        with writing(path):
            save_file({str(level): tensor for level, tensor in enumerate(own)}, path)
        self.files[place] = path
        self.file_bytes += num_bytes

    def describe(self) -> str:
        """One sentence on how many images are remembered, and what can be done about the others."""
        sentence = (
            f"feature cache: {len(self.memory)} images in memory ({self.memory_bytes / 1e9:.2f} GB), "
            f"{len(self.files)} in files ({self.file_bytes / 1e9:.2f} GB)"
        )
        if self.num_left_out:
            sentence += (
                f"; {self.num_left_out} did not fit and are computed each time: raise "
                "--train.cache_memory_gb or --train.cache_disk_gb"
            )
        places = len(self.memory) + len(self.files) + self.num_left_out
        if places > len(self.sizes):
            sentence += (
                "; images of several sizes are padded to different ones: --train.batch_size 1 with "
                "--train.accumulate keeps each image once"
            )
        return sentence


def _require_fixed(backbone: nn.Module) -> None:
    learning = sum(parameter.requires_grad for parameter in backbone.parameters())
    if learning:
        raise UserError(
            f"train.cache_features needs a backbone that does not learn, {learning} of its tensors do: set "
            "--model.backbone.trainable_layers 0."
        )
    for name, module in backbone.named_modules():
        drops = isinstance(module, _DropoutNd) or type(module).__name__ == "DropPath"
        if isinstance(module, _BatchNorm) or drops:
            raise UserError(
                f"train.cache_features needs a backbone that does the same in every update; its part {name} "
                f"({type(module).__name__}) does not: leave the option out."
            )
