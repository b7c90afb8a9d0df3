"""EfficientNet-Lite0 without its classifier, the backbone of the lite recipe.

Sources: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019);
the lite variant has no squeeze-and-excitation and uses ReLU6. Its blocks are those of Sandler et al.,
"MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018). The layers have the names and shapes of
timm's `tf_efficientnet_lite0`, so that its weights fit. The network is written out here because timm imports
torchvision, and torchvision PyTorch's compiler (docs/decisions/0010).

Letters: B is the number of pictures, C a number of channels; H and W are the height and width of an input, h
and w those of an output.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import FrozenBatchNorm2d

STEM_WIDTH = 32
# of each stage of blocks: output channels, number of blocks, kernel, stride, expansion of the channels inside
STAGES = (
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)
LAST_OF_STRIDE = (0, 1, 2, 4, 6)  # the stages whose outputs are the maps of strides 2, 4, 8, 16 and 32
TO_STRIDE_32 = 5  # the stage whose first block goes from stride 16 to 32
NORM_EPS = 1e-3


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: (B, C, H, W) to (B, C', h, w).

    h and w are H and W divided by the stride, rounded up. As many zeros are added as the outputs need; if
    their number is odd, the extra zero is at the end. The kernel must not be dilated or smaller than the
    stride.
    """

    def forward(self, features: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(features.shape[2:], self.kernel_size, self.stride, strict=True):
            total = (size - 1) // stride * stride + kernel - size
            padding = [total // 2, total - total // 2, *padding]  # F.pad takes the last axis first
        return super().forward(F.pad(features, padding))


class DepthwiseSeparable(nn.Module):
    """A depthwise and a 1x1 convolution: (B, C, H, W) to (B, width, H, W)."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(channels, kernel, 1, 1)
        self.bn1 = FrozenBatchNorm2d(channels, NORM_EPS)
        self.conv_pw = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = FrozenBatchNorm2d(width, NORM_EPS)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        features = self.act(self.bn1(self.conv_dw(features)))
        output: Tensor = self.bn2(self.conv_pw(features))
        return output


class InvertedResidual(nn.Module):
    """Convolutions of 1x1, depthwise, and 1x1: (B, C, H, W) to (B, width, h, w).

    Between the first and the last, there are `expansion` · C channels. h and w are H and W divided by
    `stride`, rounded up. If the output has the shape of the input, the input is added to it.
    """

    def __init__(
        self, channels: int, width: int, kernel: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv_pw = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(inner, NORM_EPS)
        self.conv_dw = _depthwise(inner, kernel, stride, dilation)
        self.bn2 = FrozenBatchNorm2d(inner, NORM_EPS)
        self.conv_pwl = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(width, NORM_EPS)
        self.act = nn.ReLU6(inplace=True)
        self.has_shortcut = channels == width and stride == 1

    def forward(self, features: Tensor) -> Tensor:
        result = self.act(self.bn1(self.conv_pw(features)))
        result = self.act(self.bn2(self.conv_dw(result)))
        result = self.bn3(self.conv_pwl(result))
        output: Tensor = result + features if self.has_shortcut else result
        return output


def _block(channels: int, width: int, kernel: int, stride: int, dilation: int, expansion: int) -> nn.Module:
    if expansion == 1:
        return DepthwiseSeparable(channels, width, kernel)
    return InvertedResidual(channels, width, kernel, stride, dilation, expansion)


def _depthwise(channels: int, kernel: int, stride: int, dilation: int) -> nn.Conv2d:
    if stride > 1:
        return Conv2dSame(channels, channels, kernel, stride, groups=channels, bias=False)
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, 1, padding, dilation, channels, bias=False)


class EfficientNetLite0(nn.Module):
    """Pixels (B, 3, H, W) to five feature maps of strides 2 to 32, with random weights at first.

    With `dilation`, the last map has stride 16, and the blocks after the omitted stride are dilated by 2.
    """

    channels = tuple(STAGES[number][0] for number in LAST_OF_STRIDE)

    def __init__(self, dilation: bool) -> None:
        super().__init__()
        self.conv_stem = Conv2dSame(3, STEM_WIDTH, 3, stride=2, bias=False)
        self.bn1 = FrozenBatchNorm2d(STEM_WIDTH, NORM_EPS)
        self.act = nn.ReLU6(inplace=True)
        self.strides = (2, 4, 8, 16, 16 if dilation else 32)
        self.blocks = nn.Sequential()
        # timm's builder draws two layers for a check. Drawing them too keeps the weights that a seed gives.
        for _ in range(2):
            nn.Conv2d(8, 8, 1)
        channels, rate = STEM_WIDTH, 1
        for number, (width, depth, kernel, stride, expansion) in enumerate(STAGES):
            loses_its_stride = dilation and number == TO_STRIDE_32
            stage = nn.Sequential()
            for index in range(depth):
                step = stride if index == 0 and not loses_its_stride else 1
                stage.append(_block(channels, width, kernel, step, rate, expansion))
                channels = width
                if loses_its_stride:
                    rate = 2
            self.blocks.append(stage)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                fan_out = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.act(self.bn1(self.conv_stem(pixels)))
        maps = []
        for number, stage in enumerate(self.blocks):
            features = stage(features)
            if number in LAST_OF_STRIDE:
                maps.append(features)
        return maps

    def freeze(self, num_maps: int) -> None:
        """Freeze the layers that compute the first `num_maps` maps (1 to 5)."""
        last = LAST_OF_STRIDE[num_maps - 1]
        for layer in (self.conv_stem, *self.blocks[: last + 1]):
            layer.requires_grad_(False)
