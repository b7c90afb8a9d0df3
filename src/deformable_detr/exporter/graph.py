"""A copy of the model for export, without parts that torch.export or other engines do not support.

The copy uses `DetectionModel.forward` unchanged and computes the same function. The replacements are:

    backbone        frozen norms are folded into the convolutions; "same" padding has short sizes
    attention       sampling uses standard operators (sampling.py), unless the package's own was requested
    proposals       boxes are computed only for the proposals that are used, whose number is fixed

Tracing spends most of its time on the sizes of tensors, which are expressions of the picture's height and
width. Therefore these expressions are kept short: (height - 1) // 8 + 1 instead of nested quotients, and a
number of queries that does not depend on the picture.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..inference.convolutions import fold_norms, pads_by_size
from ..models import DetectionModel, copy_on_same_memory
from ..models.attention import DeformableAttention
from ..models.queries import BestProposals, chooses_proposals
from ..structures import ImageBatch
from .sampling import GatherAttention, GridSampleAttention, OnnxGridSampleAttention

OPERATORS = {
    "grid_sample": GridSampleAttention,
    "onnx_grid_sample": OnnxGridSampleAttention,
    "gather": GatherAttention,
}
# The batch size, height and width of the traced batch. They are unusual, because a size that equals another
# one by chance would be fixed.
EXAMPLE = (3, 230, 298)


class Graph(nn.Module):
    """The exported function.

    It maps the pixels (B, 3, H, W) float32 and the mask (B, H, W) bool, True = padding, of B pictures, padded
    to height H and width W, to logits (B, Q, number of logits) and boxes_cxcywh (B, Q, 4) of the Q queries
    after the last decoder layer. `operator` is that of `traced`.
    """

    def __init__(self, model: DetectionModel, operator: str):
        super().__init__()
        self.model = copy_on_same_memory(model).eval()
        fold_norms(self.model.backbone)
        queries = self.model.queries
        self.model.queries = FixedNumberOfProposals(queries) if chooses_proposals(queries) else queries
        for name, part in list(self.model.named_modules()):
            if pads_by_size(part):
                self.model.set_submodule(name, SamePaddedConvolution(part))
            elif type(part) is DeformableAttention and operator in OPERATORS:
                self.model.set_submodule(name, OPERATORS[operator](part))

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        last = self.model(ImageBatch(pixels, mask)).predictions[-1]
        return last.logits, last.boxes_cxcywh


class FixedNumberOfProposals(BestProposals):
    """`BestProposals` with a fixed number of queries; engines refuse pictures with fewer tokens than that."""

    def num_best(self, num_tokens: int) -> int:
        return self.plain.num_queries


class SamePaddedConvolution(nn.Module):
    """A convolution with TensorFlow's "same" padding.

    This padding adds as many zeros as ceil(size / stride) outputs need; if their number is odd, the extra
    zero is at the end. timm's class tests whether the number is positive, and tracing this test would fix the
    parity of the picture's sides. The test is not needed, because no kernel here is smaller than its stride.

    Here the end gets more zeros than that, so that their total number is the kernel's span,
    (kernel - 1) * dilation + 1, minus one. No output reads the additional zeros, and the size of the output
    becomes (size - 1) // stride + 1, which PyTorch simplifies if it is nested.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.convolution = convolution
        self.spans = [
            (kernel - 1) * dilation + 1
            for kernel, dilation in zip(convolution.kernel_size, convolution.dilation, strict=True)
        ]
        assert all(span >= step for span, step in zip(self.spans, convolution.stride, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.convolution
        padding: list[int] = []
        for size, span, stride in zip(x.shape[2:], self.spans, conv.stride, strict=True):
            before = ((size - 1) // stride * stride + span - size) // 2
            padding = [before, span - 1 - before, *padding]  # F.pad takes the last axis first
        output: Tensor = F.conv2d(
            F.pad(x, padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups
        )
        return output


def traced(model: DetectionModel, operator: str) -> torch.export.ExportedProgram:
    """Return the traced `Graph` of a model, which accepts any batch size, height and width.

    An exception is a two-stage model, whose pictures must have at least as many tokens as it has queries.
    `operator` is the way in which deformable attention samples: a key of `OPERATORS`, or `native` for the
    package's own operator.
    """
    B, H, W = EXAMPLE
    pixels, mask = torch.zeros(B, 3, H, W), torch.zeros(B, H, W, dtype=torch.bool)
    free = torch.export.Dim.DYNAMIC  # unlike Dim.AUTO, it raises an error if a size would be fixed
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which no engine has
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
