"""Deformable convolution against nested loops and against plain convolution; and the paper's remark that
deformable attention can be deformable convolution (section 4.1), as an equation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torchvision.ops import deform_conv2d

from deformable_detr.errors import UserError
from deformable_detr.ops import DeformConv2d, fused_ms_deform_attn, ms_deform_attn

# Sizes are unequal on purpose: rows and columns, kernel height and width, must not be mixed up unseen.
GEOMETRIES: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": (2, 3)},
    "dilated": {"kernel_size": 3, "padding": (2, 1), "dilation": (2, 1)},
    "3x2 without bias": {"kernel_size": (3, 2), "padding": (0, 1), "bias": False},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "offset groups": {"kernel_size": 3, "padding": 1, "offset_groups": 3},
}


def learned(layer: DeformConv2d, scale: float = 0.4) -> DeformConv2d:
    """`layer` with offsets of a few pixels, some beyond the map, instead of zeros."""
    for parameter in layer.sampling_offsets.parameters():
        nn.init.normal_(parameter, std=scale)
    if layer.modulation is not None:
        for parameter in layer.modulation.parameters():
            nn.init.normal_(parameter, std=scale)
    return layer


def bilinear(picture: Tensor, x: float, y: float) -> float:
    """The value of `picture` (H, W) between its pixels; zero outside."""
    H, W = picture.shape
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < H and 0 <= column < W:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * picture[row, column].item()
    return value


def deform_conv_oracle(layer: DeformConv2d, pixels: Tensor) -> Tensor:
    """Equation 2 of the first paper (1 of the second), tap by tap; offsets and modulations from the layer."""
    offsets = layer.sampling_offsets(pixels)
    B, _, H, W = offsets.shape
    kh, kw = layer.kernel_size
    per_group = layer.in_channels // layer.offset_groups
    output = torch.zeros(B, layer.out_channels, H, W, dtype=pixels.dtype)
    for b, row, column, out in torch.cartesian_prod(*map(torch.arange, output.permute(0, 2, 3, 1).shape)):
        first = out // (layer.out_channels // layer.groups) * (layer.in_channels // layer.groups)
        total = 0.0 if layer.bias is None else layer.bias[out].item()
        for c in range(layer.in_channels // layer.groups):
            channel = int(first) + c
            for i in range(kh):
                for j in range(kw):
                    tap = (channel // per_group * kh + i) * kw + j
                    dy, dx = offsets[b, 2 * tap : 2 * tap + 2, row, column].tolist()
                    y = row.item() * layer.stride[0] - layer.padding[0] + i * layer.dilation[0] + dy
                    x = column.item() * layer.stride[1] - layer.padding[1] + j * layer.dilation[1] + dx
                    factor = 1.0
                    if layer.modulation is not None:
                        factor = 2 * layer.modulation(pixels)[b, tap, row, column].sigmoid().item()
                    total += layer.weight[out, c, i, j].item() * factor * bilinear(pixels[b, channel], x, y)
        output[b, out, row, column] = total
    return output


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_against_nested_loops(geometry: dict[str, Any], modulated: bool) -> None:
    torch.manual_seed(0)
    channels = (6, 2) if geometry.get("offset_groups") == 3 else (4, 2)
    layer = learned(DeformConv2d(*channels, **geometry, modulated=modulated, dtype=torch.float64))
    pixels = torch.randn(1, channels[0], 4, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(pixels), deform_conv_oracle(layer, pixels), rtol=0, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_starts_as_the_plain_convolution(geometry: dict[str, Any], modulated: bool) -> None:
    """Of which it also has the parameters, the very same where it is made from one."""
    torch.manual_seed(0)
    plain_geometry = {key: value for key, value in geometry.items() if key != "offset_groups"}
    plain = nn.Conv2d(6, 4, **plain_geometry, dtype=torch.float64)
    pixels = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    offset_groups = geometry.get("offset_groups", 1)
    layer = DeformConv2d.from_conv(plain, offset_groups=offset_groups, modulated=modulated)
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    torch.testing.assert_close(layer(pixels), plain(pixels), rtol=0, atol=1e-13)
    torch.manual_seed(1)
    fresh = DeformConv2d(6, 4, **geometry, modulated=modulated)
    torch.manual_seed(1)
    assert torch.equal(fresh.weight, nn.Conv2d(6, 4, **plain_geometry).weight)


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
def test_gradients_of_everything(modulated: bool) -> None:
    torch.manual_seed(0)
    layer = learned(DeformConv2d(2, 2, 3, padding=1, modulated=modulated, dtype=torch.float64))
    pixels = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(pixels: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (pixels,))

    assert gradcheck(run, (pixels, *parameters.values()))


def test_offsets_learn_from_the_first_step() -> None:
    """A zero convolution gets gradients: its input is not zero."""
    torch.manual_seed(0)
    layer = DeformConv2d(3, 3, 3, padding=1)
    layer(torch.randn(1, 3, 8, 8)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in layer.parameters())


def test_sampling_locations_are_where_it_reads() -> None:
    """Each output is made of the pixels at its locations, (x, y), and moves with them alone."""
    torch.manual_seed(0)
    layer = DeformConv2d(
        1, 1, (3, 2), stride=2, padding=1, dilation=(1, 2), bias=False, modulated=False, dtype=torch.float64
    )
    learned(layer, scale=0.6)
    pixels = torch.randn(2, 1, 9, 8, dtype=torch.float64)
    locations = layer.sampling_locations(pixels)  # (B, H', W', 1, T, 2)
    output = layer(pixels)
    assert locations.shape == (2, *output.shape[-2:], 1, 6, 2)
    for b, row, column in [(0, 0, 0), (0, 2, 3), (1, 4, 1)]:
        read = [bilinear(pixels[b, 0], x, y) for x, y in locations[b, row, column, 0].tolist()]
        expected = (layer.weight.flatten() * torch.tensor(read, dtype=torch.float64)).sum()
        torch.testing.assert_close(output[b, 0, row, column], expected, rtol=0, atol=1e-12)


def test_bfloat16_is_refused_in_words_and_autocast_works() -> None:
    torch.manual_seed(0)
    layer, pixels = learned(DeformConv2d(3, 4, 3, padding=1)), torch.randn(1, 3, 6, 7)
    with pytest.raises(UserError, match=r"bfloat16 on cpu.*float32.*torch\.autocast"):
        DeformConv2d(3, 4, 3).bfloat16()(pixels.bfloat16())
    exact = layer(pixels)
    for input in (pixels, pixels.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(input)
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.1)
        output.float().sum().backward()
    double = layer.double()
    with torch.autocast("cpu", torch.bfloat16):
        assert double(pixels.double()).dtype == torch.float64


def test_the_layer_in_other_surroundings() -> None:
    """Empty batches, channels last, shapes without numbers, one graph for the compiler."""
    torch.manual_seed(0)
    layer, pixels = learned(DeformConv2d(4, 6, 3, padding=1, stride=2)), torch.randn(2, 4, 6, 7)
    expected = layer(pixels)
    assert layer(pixels[:0]).shape == (0, 6, 3, 4)
    torch.testing.assert_close(layer(pixels.to(memory_format=torch.channels_last)), expected)
    assert DeformConv2d(4, 6, 3, device="meta")(pixels.to("meta")).shape == (2, 6, 4, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels), expected)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match=r"offset_groups \(3\) must divide in_channels \(4\)"):
        DeformConv2d(4, 4, 3, offset_groups=3)
    for options in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        with pytest.raises(ValueError, match="fixed number of zeros"):
            DeformConv2d.from_conv(nn.Conv2d(4, 4, 3, **options))


# ---- Deformable attention as deformable convolution ------------------------------------------------


def attention_as_convolution(
    pixels: Tensor,
    offsets: Tensor,
    modulation: Tensor,
    kernel: Tensor,
    stride: int,
    padding: int,
    dilation: int,
    *,
    fused: bool,
) -> Tensor:
    """Deformable convolution said with deformable attention: one head per tap of the kernel (M = 9), each
    with the whole map as its value (D = C), one level, one point (L = K = 1), and the kernel as W_m of
    equation 1. A query is a place of the output; its reference is the pixel under the kernel's centre.

    pixels (B, C, H, W), offsets (B, 18, H', W'), modulation (B, 9, H', W'), kernel (C', C, 3, 3).
    """
    B, C, H, W = pixels.shape
    rows, columns = offsets.shape[-2:]
    M, Q = 9, rows * columns
    value = pixels.flatten(2).transpose(1, 2)[:, :, None].expand(B, H * W, M, C)
    centre_y = torch.arange(rows, dtype=pixels.dtype) * stride - padding + dilation
    centre_x = torch.arange(columns, dtype=pixels.dtype) * stride - padding + dilation
    y, x = torch.meshgrid(centre_y, centre_x, indexing="ij")
    reference = torch.stack([(x + 0.5) / W, (y + 0.5) / H], dim=-1).view(1, Q, 1, 2).expand(B, Q, 1, 2)
    steps = torch.arange(-1, 2, dtype=pixels.dtype) * dilation
    grid = torch.cartesian_prod(steps, steps).flip(-1)  # (9, 2), (x, y): the taps, row by row
    moved = offsets.view(B, M, 2, Q).permute(0, 3, 1, 2).flip(-1) + grid  # (B, Q, M, 2), pixels
    moved = moved.view(B, Q, M, 1, 1, 2)
    weights = modulation.view(B, M, Q).transpose(1, 2)
    if fused:
        # A softmax over one point is 1, whatever the logit.
        sampled = fused_ms_deform_attn(value, [(H, W)], reference, moved, weights[..., None])
    else:
        locations = reference[:, :, None, :, None] + moved / torch.tensor([W, H], dtype=pixels.dtype)
        sampled = ms_deform_attn(value, [(H, W)], locations, weights[..., None, None])
    projection = kernel.permute(0, 2, 3, 1).flatten(1)  # (C', M·C)
    return (sampled @ projection.T).transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 1)])
@pytest.mark.parametrize("form", ["unfused", "unfused v2", "fused"])
def test_deformable_attention_degenerates_to_deformable_convolution(
    form: str, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    B, C, out, H, W = 2, 5, 4, 7, 10
    rows, columns = ((size + 2 * padding - 2 * dilation - 1) // stride + 1 for size in (H, W))
    pixels = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    kernel = torch.randn(out, C, 3, 3, dtype=torch.float64, requires_grad=True)
    offsets = (3 * torch.randn(B, 18, rows, columns, dtype=torch.float64)).requires_grad_()  # many outside
    modulation = torch.ones(B, 9, rows, columns, dtype=torch.float64)
    if form == "unfused v2":
        modulation = 2 * torch.rand_like(modulation)
    expected = deform_conv2d(
        pixels, offsets, kernel, None, stride, padding, dilation, modulation if form == "unfused v2" else None
    )
    actual = attention_as_convolution(
        pixels, offsets, modulation, kernel, stride, padding, dilation, fused=form == "fused"
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    inputs, direction = (pixels, offsets, kernel), torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(actual, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
