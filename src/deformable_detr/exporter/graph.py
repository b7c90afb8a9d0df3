"""The model as it is exported: the plain model's copy, its parts exchanged where torch.export or a foreign
engine cannot follow them.

The skeleton stays `DetectionModel.forward`, and the function stays the same. What is exchanged:

    backbone        frozen norms folded into the convolutions; timm's "same" padding without branches
    attention       sampled by standard operators (sampling.py), unless the package's own is to stay
    proposals       heads computed where they count
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inference.cpu.convolutions import fold_norms
from ..models import DetectionModel, copy_on_same_memory
from ..models.attention import DeformableAttention
from ..models.queries import BestProposals, ProposalQueries
from ..structures import ImageBatch
from .sampling import GatherAttention, GridSampleAttention

OPERATORS = {"grid_sample": GridSampleAttention, "gather": GatherAttention}
# B, H, W of the traced batch. Odd ones: a size that equals another one by chance would be fixed.
EXAMPLE = (3, 230, 298)


class Graph(nn.Module):
    """pixels (B, 3, H, W) float32, mask (B, H, W) bool, True = padding → logits (B, Q, classes) and
    boxes_cxcywh (B, Q, 4) of the last decoder layer."""

    def __init__(self, model: DetectionModel, operator: str):
        super().__init__()
        self.model = copy_on_same_memory(model).eval()
        fold_norms(self.model.backbone)
        for name, part in list(self.model.named_modules()):
            if type(part).__name__ == "Conv2dSame":  # timm's, known by its name: timm need not be imported
                self.model.set_submodule(name, SamePaddedConvolution(part))
            elif type(part) is DeformableAttention and operator in OPERATORS:
                self.model.set_submodule(name, OPERATORS[operator](part))
            elif type(part) is ProposalQueries:
                self.model.set_submodule(name, BestProposals(part))

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        last = self.model(ImageBatch(pixels, mask)).predictions[-1]
        return last.logits, last.boxes_cxcywh


class SamePaddedConvolution(nn.Module):
    """TensorFlow's "same": as many zeros as make ceil(size / stride) outputs, the odd one at the end. timm
    asks whether that number is positive, which would fix the parity of the picture's sides; for kernels that
    are not smaller than their stride it always is."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution
        self.spans = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
        ]
        assert all(span >= step for span, step in zip(self.spans, convolution.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        of = self.convolution
        padding: list[int] = []
        for size, span, stride in zip(x.shape[2:], self.spans, of.stride, strict=True):
            total = ((size + stride - 1) // stride - 1) * stride + span - size
            padding = [total // 2, total - total // 2, *padding]  # the last axis comes first
        output: Tensor = F.conv2d(F.pad(x, padding), of.weight, of.bias, of.stride, 0, of.dilation, of.groups)
        return output


def traced(model: DetectionModel, operator: str) -> torch.export.ExportedProgram:
    """The program of pixels and mask, for any batch, height and width."""
    B, H, W = EXAMPLE
    pixels, mask = torch.zeros(B, 3, H, W), torch.zeros(B, H, W, dtype=torch.bool)
    free = torch.export.Dim.DYNAMIC  # an error where any of them would be fixed, unlike Dim.AUTO
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which no engine knows
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                Graph(model, operator),
                (pixels, mask),
                dynamic_shapes=({0: free, 2: free, 3: free}, {0: free, 1: free, 2: free}),
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
