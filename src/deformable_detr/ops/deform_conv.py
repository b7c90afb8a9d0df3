"""Deformable convolution (Dai et al. 2017; modulated: Zhu et al. 2019), as used in the paper's Table 3.

An ordinary kernel reads its input on a fixed grid. Here, each tap of the kernel is displaced by an offset
that a small convolution predicts at every position, and in the modulated form (v2) its value is weighted as
well. Section 4.1 of the paper relates the two operators: deformable attention with one head per tap, one
point and the kernel as its output projection is a deformable convolution (tested by
tests/ops/test_deform_conv.py).

Letters: B batch; C, H and W channels, height and width of the input map, C', H' and W' those of the output
map; G offset groups; T = kh·kw taps of a kernel of height kh and width kw.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError


class DeformConv2d(nn.Conv2d):
    """A convolution that learns where to sample its input. `forward` maps (B, C, H, W) to (B, C', H', W').

    Each of the T taps (entries) of the kernel is displaced by an offset, which is computed at every position.
    There are two forms: deformable convolution (v1, Dai et al. 2017) learns only the offsets, and modulated
    deformable convolution (v2, Zhu et al. 2019) also learns a weight for each tap. The channels of the input
    form G groups of equal size (`offset_groups`), each with separate offsets and weights.

    `weight` and `bias` have the names, shapes and initial values of a plain convolution. `sampling_offsets`
    and, if modulated, `modulation` are further convolutions of the same geometry. Both start at zero, and the
    modulation is 2·sigmoid, so the layer starts as the plain convolution and can use its trained kernel. (The
    paper of v2 uses sigmoid, so every tap starts at one half. Because the factor 2 can be part of the kernel,
    both forms can express the same functions.) torchvision's operator does the arithmetic.

    Attributes:
        sampling_offsets: the convolution that computes the offsets (dy, dx) of each group and tap in pixels
            of the input map, (B, G·T·2, H', W').
        modulation: the convolution that computes the argument of 2·sigmoid, (B, G·T, H', W'); None if the
            layer is not modulated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        offset_groups: int = 1,
        modulated: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        """Create the layer. The arguments that are not listed here are those of `nn.Conv2d`.

        Args:
            offset_groups: the number G of groups of input channels; each group has separate offsets.
            modulated: use v2 (offsets and modulation) instead of v1 (offsets only).

        Raises:
            ValueError: if `groups` does not divide both numbers of channels, or `offset_groups` is not a
                positive divisor of `in_channels`.
        """
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
        )
        if offset_groups < 1 or in_channels % offset_groups:
            raise ValueError(f"offset_groups ({offset_groups}) must divide in_channels ({in_channels})")
        self.offset_groups = offset_groups
        taps = self.kernel_size[0] * self.kernel_size[1]

        def same_geometry(channels: int) -> nn.Conv2d:
            convolution = nn.Conv2d(
                in_channels, channels, kernel_size, stride, padding, dilation, device=device, dtype=dtype
            )
            nn.init.zeros_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            return convolution

        self.sampling_offsets = same_geometry(2 * offset_groups * taps)
        self.modulation = same_geometry(offset_groups * taps) if modulated else None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, *, offset_groups: int = 1, modulated: bool = True) -> DeformConv2d:
        """Return a deformable layer with the parameters of `conv` and, until it is trained, the same output.

        Both layers share the weight and the bias. `offset_groups` and `modulated` are as in `DeformConv2d`.

        Raises:
            ValueError: if `conv` does not pad with a fixed number of zeros, which torchvision requires, or
                `offset_groups` is not a positive divisor of its input channels.
        """
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(
                f"deformable convolution can only pad with a fixed number of zeros, unlike {conv}"
            )
        deformable = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            (conv.stride[0], conv.stride[1]),
            (conv.padding[0], conv.padding[1]),
            (conv.dilation[0], conv.dilation[1]),
            conv.groups,
            conv.bias is not None,
            offset_groups=offset_groups,
            modulated=modulated,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        deformable.weight, deformable.bias = conv.weight, conv.bias
        return deformable

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W').

        Under autocast, the convolutions that compute offsets and modulation run in autocast's dtype, and the
        sampling runs in float32. The output has autocast's dtype. With a float64 input, the sampling and the
        output are in float64.

        Raises:
            UserError: if torchvision's operator does not support the input's dtype on its device and autocast
                is off, for example for bfloat16.
        """
        offsets = self.sampling_offsets(input)
        modulation = None if self.modulation is None else 2 * self.modulation(input).sigmoid()
        device = input.device.type
        # The device "meta" has no autocast, and torch raises an error if its state is queried.
        if input.is_meta or not torch.is_autocast_enabled(device):
            return self._convolve(input, offsets, modulation)
        real = torch.float64 if input.dtype == torch.float64 else torch.float32
        with torch.autocast(device, enabled=False):  # torchvision has autocast on some devices, not on CPUs
            output = self._convolve(
                input.to(real), offsets.to(real), None if modulation is None else modulation.to(real)
            )
        # As with any convolution under autocast, the output has autocast's dtype unless the input is float64.
        return output if real == torch.float64 else output.to(torch.get_autocast_dtype(device))

    def _convolve(self, input: Tensor, offsets: Tensor, modulation: Tensor | None) -> Tensor:
        from torchvision.ops import deform_conv2d  # takes a second to import, and everything imports `ops`

        try:
            output: Tensor = deform_conv2d(
                input,
                offsets,
                self.weight,
                self.bias,
                self.stride,
                self.padding,
                self.dilation,
                modulation,
            )
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
            raise UserError(
                "DeformConv2d: torchvision's deform_conv2d does not support "
                f"{str(input.dtype).removeprefix('torch.')} on {input.device.type}: keep the model in "
                "float32 and run it under torch.autocast, which computes this layer in float32."
            ) from error
        return output

    @torch.no_grad()
    def sampling_locations(self, input: Tensor) -> Tensor:
        """Return the locations (x, y) that each output reads, (B, H', W', G, T, 2), in pixels of `input`.

        (0, 0) is the centre of the first pixel. G is the number of offset groups, and T the number of the
        kernel's taps, which are sorted row by row.
        """
        offsets = self.sampling_offsets(input)
        offsets = offsets.unflatten(1, (self.offset_groups, -1, 2)).permute(0, 4, 5, 1, 2, 3).flip(-1)

        def along(axis: int, size: int) -> tuple[Tensor, Tensor]:
            """Return the first tap's position for each of `size` outputs, and the taps' distances from it.

            Both are in pixels along an axis (0: height, 1: width), without the learned offsets.
            """
            start = torch.arange(size, device=input.device) * self.stride[axis] - int(self.padding[axis])
            return start, torch.arange(self.kernel_size[axis], device=input.device) * self.dilation[axis]

        (rows, down), (columns, right) = along(0, offsets.shape[1]), along(1, offsets.shape[2])
        y = rows[:, None, None, None] + down[:, None]  # (H', 1, kh, 1)
        x = columns[None, :, None, None] + right  # (1, W', 1, kw)
        grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1).flatten(2, 3)  # (H', W', T, 2)
        result: Tensor = grid[:, :, None] + offsets
        return result

    def extra_repr(self) -> str:
        inherited: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{inherited}, offset_groups={self.offset_groups}"
