"""ResNets and ResNeXts without their classifiers (specification §2.1).

Sources: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016); Xie et al., "Aggregated
Residual Transformations for Deep Neural Networks" (CVPR 2017). The layers of blocks have the names and shapes
of torchvision's, so that its weights fit; as there, a bottleneck has its stride in the 3x3 convolution. The
networks are written out here because torchvision imports PyTorch's compiler, which takes about half as long
as importing PyTorch itself (docs/decisions/0010).

Letters: B is the number of pictures, C a number of channels; H and W are the height and width of a block's
input, h and w those of its output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

STAGE_WIDTHS = (64, 128, 256, 512)
NUM_IMAGENET_CLASSES = 1000


class FrozenBatchNorm2d(nn.Module):
    """Batch norm of maps (B, C, H, W) whose statistics, weights and biases are constants."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return features * scale[:, None, None] + shift[:, None, None]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them: (B, C, H, W) to (B, width, h, w).

    h and w are H and W divided by `stride`, rounded up.
    """

    expansion = 1  # the number of output channels divided by `width`

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        result = self.relu(self.bn1(self.conv1(features)))
        result = self.bn2(self.conv2(result))
        result += self.downsample(features)
        output: Tensor = self.relu(result)
        return output


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1 and a shortcut around them: (B, C, H, W) to (B, 4 · width, h, w).

    h and w are H and W divided by `stride`, rounded up. The 3x3 convolution has `stride`, `dilation` and
    `groups` groups (more than one in ResNeXts), each of `group_width` channels for every 64 of `width`.
    """

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        dilation: int = 1,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        super().__init__()
        inner, outer = groups * (width * group_width // 64), self.expansion * width
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, dilation, dilation, groups, bias=False)
        self.bn2 = FrozenBatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels, outer, stride)

    def forward(self, features: Tensor) -> Tensor:
        result = self.relu(self.bn1(self.conv1(features)))
        result = self.relu(self.bn2(self.conv2(result)))
        result = self.bn3(self.conv3(result))
        result += self.downsample(features)
        output: Tensor = self.relu(result)
        return output


def _shortcut(channels: int, outer: int, stride: int) -> nn.Module:
    if channels == outer and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, outer, 1, stride, bias=False), FrozenBatchNorm2d(outer))


BlockBuilder = Callable[..., BasicBlock | Bottleneck]
_RESNEXT_32X8D = partial(Bottleneck, groups=32, group_width=8)
_RESNEXT_64X4D = partial(Bottleneck, groups=64, group_width=4)
# the block and how many of it the four stages have
ARCHITECTURES: dict[str, tuple[BlockBuilder, tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnext101_32x8d": (_RESNEXT_32X8D, (3, 4, 23, 3)),
    "resnext101_64x4d": (_RESNEXT_64X4D, (3, 4, 23, 3)),
}


def resnet_layers(name: str, dilation: bool) -> tuple[nn.Sequential, nn.ModuleList, tuple[int, ...]]:
    """Build the stem and the four stages of one of the ARCHITECTURES, with random weights.

    Args:
        name: the name of the architecture.
        dilation: whether the last stage has stride 1 and dilates its 3x3 convolutions by 2, all but the
            first. This needs bottlenecks.

    Returns:
        The stem, which maps pixels (B, 3, H, W) to (B, 64, h, w) with a stride of 4; the stages, of which the
        first has a stride of 1 and the others 2; and the number of output channels of each stage.
    """
    block, depths = ARCHITECTURES[name]
    stem = nn.Sequential(
        nn.Conv2d(3, STAGE_WIDTHS[0], 7, stride=2, padding=3, bias=False),
        FrozenBatchNorm2d(STAGE_WIDTHS[0]),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    stages = nn.ModuleList()
    channels = [STAGE_WIDTHS[0]]
    for number, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
        dilated = dilation and number == 3
        first = block(channels[-1], width, 1 if number == 0 or dilated else 2)
        channels.append(first.expansion * width)
        options = {"dilation": 2} if dilated else {}
        others = [block(channels[-1], width, 1, **options) for _ in range(depth - 1)]
        stages.append(nn.Sequential(first, *others))
    # torchvision's networks draw a classifier too. Dropping it keeps the weights that a seed gives.
    nn.Linear(channels[-1], NUM_IMAGENET_CLASSES)
    for layer in (*stem.modules(), *stages.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return stem, stages, tuple(channels[1:])
