"""The features of a frozen backbone, computed once and used in every epoch.

If the backbone is frozen and the pixels of an image are the same in each epoch, its feature maps are the same
too, so the epochs after the first one run only the neck, the encoder and the decoder. The maps depend on the
padding of the batch, so they are stored by image *and* padded size. Gradients are the same with and without
the cache.

Maps are stored in memory up to a limit, then in files up to another limit; other maps are computed each time.

Letters: C channels, H and W height and width of a feature map.
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

MapsKey = tuple[int, int, int]  # (index of the image, height and width of the padded batch)


@dataclass(frozen=True)
class CacheLimits:
    """The maximum number of bytes of features that this process stores in memory and in files."""

    memory: int
    files: int


class FeatureCache:
    """A source of batches with the backbone's maps instead of pixels.

    `cache[keys]` returns a `FeatureBatch` and the targets of its images. Apart from the maps, this equals
    `collate([samples[key] for key in keys])`.

    Args:
        samples: the images, whose pixels must be the same in each epoch.
        backbone: the frozen backbone.
        device: the device of the backbone and of the batches.
        folder: a folder for this process only. It is removed when the cache is created, and by `close`.
        limits: the maximum size of the stored features.
        computing: a function that returns the context in which the backbone computes (autocast).

    Attributes:
        num_computed: the number of times that the features of an image were computed.
        num_recalled: the number of times that the stored features of an image were used.
        num_left_out: the number of times that the features of an image did not fit into the limits.

    Raises:
        UserError: if the backbone has parameters that learn, or contains a layer whose results differ between
            updates. `cache[keys]` raises it if a picture cannot be read or does not have its annotated size,
            or features cannot be written.
    """

    def __init__(
        self,
        samples: Samples,
        backbone: Backbone,
        device: torch.device,
        folder: Path,
        limits: CacheLimits,
        computing: Callable[[], AbstractContextManager[None]],
    ):
        _require_fixed(backbone)
        self.samples, self.backbone, self.device = samples, backbone, device
        self.folder, self.limits, self.computing = folder, limits, computing
        self.memory: dict[MapsKey, list[Tensor]] = {}
        self.files: dict[MapsKey, Path] = {}
        self.memory_bytes = self.file_bytes = 0
        self.targets: dict[int, Target] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.num_computed = self.num_recalled = 0
        self.num_left_out = 0
        self.close()

    def close(self) -> None:
        """Remove the files of stored features and their folder; features in memory are kept."""
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
        # Stacked with the channels last, the layout in which the backbone returns its maps.
        levels = [torch.stack(level).permute(0, 3, 1, 2) for level in zip(*images, strict=True)]
        return FeatureBatch(tuple(levels), mask).to(self.device)

    def _maps_of(self, key: MapsKey) -> list[Tensor] | None:
        if key in self.memory:
            return self.memory[key]
        if key in self.files:
            tensors = load_file(self.files[key])
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
            self._store((index, height, width), [level[row] for level in levels])
        return FeatureBatch(levels, images.mask)

    def _store(self, key: MapsKey, maps: Sequence[Tensor]) -> None:
        if key in self.memory or key in self.files:
            return
        num_bytes = sum(level.numel() * level.element_size() for level in maps)
        in_memory = self.memory_bytes + num_bytes <= self.limits.memory
        if not in_memory and self.file_bytes + num_bytes > self.limits.files:
            self.num_left_out += 1
            return
        # (H, W, C), copied: a view would keep the whole batch.
        own = [level.permute(1, 2, 0).to("cpu", copy=True).contiguous() for level in maps]
        if in_memory:
            self.memory[key] = own
            self.memory_bytes += num_bytes
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "-".join(map(str, key))
        with writing(path):
            save_file({str(level): tensor for level, tensor in enumerate(own)}, path)
        self.files[key] = path
        self.file_bytes += num_bytes

    def describe(self) -> str:
        """Return a sentence that states how many images are stored in memory and in files.

        If some did not fit, or were stored for several padded sizes, the sentence says which settings help.
        """
        sentence = (
            f"feature cache: {len(self.memory)} images in memory ({self.memory_bytes / 1e9:.2f} GB), "
            f"{len(self.files)} in files ({self.file_bytes / 1e9:.2f} GB)"
        )
        if self.num_left_out:
            sentence += (
                f"; {self.num_left_out} did not fit and are computed each time: raise "
                "--train.cache_memory_gb or --train.cache_disk_gb"
            )
        num_entries = len(self.memory) + len(self.files) + self.num_left_out
        if num_entries > len(self.sizes):
            sentence += (
                "; images are padded to different sizes: with --train.batching single, each image is "
                "stored once"
            )
        return sentence


def _require_fixed(backbone: nn.Module) -> None:
    learning = sum(parameter.requires_grad for parameter in backbone.parameters())
    if learning:
        raise UserError(
            f"train.cache_features needs a frozen backbone, but {learning} of its tensors are trained: set "
            "--model.backbone.trainable_layers 0."
        )
    for name, module in backbone.named_modules():
        drops = isinstance(module, _DropoutNd) or type(module).__name__ == "DropPath"
        if isinstance(module, _BatchNorm) or drops:
            raise UserError(
                f"train.cache_features needs a backbone that computes the same in every update; its part "
                f"{name} ({type(module).__name__}) does not: leave the option out."
            )
