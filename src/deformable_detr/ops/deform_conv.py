"""Deformable convolution (Dai et al. 2017; modulated: Zhu et al. 2019), as used in the paper's Table 3.

An ordinary kernel reads its input on a fixed grid. Here, each tap of the kernel is displaced by an offset
that a small convolution predicts at every position, and in the modulated form (v2) its value is weighted as
well. Section 4.1 of the paper states the relation: deformable attention with one head per tap, one point, and
the kernel as output projection is deformable convolution (tests/ops/test_deform_conv.py tests this equation).

Letters: B batch, C channels, H, W input map, H', W' output map, G offset groups, T = kh·kw taps of a kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError


class DeformConv2d(nn.Conv2d):
    """A convolution that learns where to read: forward maps (B, C, H, W) to (B, C', H', W').

    `weight` and `bias` have the names, shapes and initial values of a plain convolution. `sampling_offsets`
    and, if modulated, `modulation` are further convolutions of the same geometry. Both start at zero, and the
    modulation is 2·sigmoid, so the layer starts as the plain convolution and can use its trained kernel. (The
    second paper uses sigmoid, which starts every tap at one half. As the factor 2 can be part of the kernel,
    both can express the same functions.) torchvision's operator does the arithmetic.

    Attributes:
        sampling_offsets: computes (B, G·T·2, H', W'): (dy, dx) per group and tap, in pixels of the input map.
        modulation: computes (B, G·T, H', W'), before 2·sigmoid; None if not modulated.
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
        """Create the layer with the arguments of `nn.Conv2d` and two further ones.

        Args:
            offset_groups: G; each of the G groups of input channels has separate offsets.
            modulated: v2 (offsets and modulation); otherwise v1 (offsets only).

        Raises:
            ValueError: `groups` or `offset_groups` do not divide the channels.
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
        """Make `conv` deformable, with the same parameters and, until it is trained, the same output.

        Raises:
            ValueError: `conv` does not pad with a fixed number of zeros, which torchvision requires.
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

        Under autocast, the two small convolutions run in the narrow dtype, and the sampling runs in float32.

        Raises:
            UserError: torchvision's operator does not support the dtype (bfloat16) outside autocast.
        """
        offsets = self.sampling_offsets(input)
        modulation = None if self.modulation is None else 2 * self.modulation(input).sigmoid()
        device = input.device.type
        # "meta" has no autocast, and torch raises when asked about it.
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self._convolve(input, offsets, modulation)
        real = torch.float64 if input.dtype == torch.float64 else torch.float32
        with torch.autocast(device, enabled=False):  # torchvision has autocast on some devices, not on CPUs
            output = self._convolve(
                input.to(real), offsets.to(real), None if modulation is None else modulation.to(real)
            )
        # Like any convolution under autocast, which does not change float64.
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
        """Return where each output reads, (B, H', W', G, T, 2), as (x, y) in pixels of `input`.

        (0, 0) is the centre of the first pixel.
        """
        offsets = self.sampling_offsets(input)
        offsets = offsets.unflatten(1, (self.offset_groups, -1, 2)).permute(0, 4, 5, 1, 2, 3).flip(-1)

        def along(axis: int, size: int) -> tuple[Tensor, Tensor]:
            """Return the position of the kernel's first tap for each output, and all taps relative to it."""
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
