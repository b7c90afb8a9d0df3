"""Group norm in channels_last with the accuracy of the usual memory format.

Letters: B batch; C channels; H, W height and width of a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...models.neck import GroupNorm


def norm_groups_in_two_passes(neck: nn.Module) -> None:
    for name, module in list(neck.named_modules()):
        if type(module) is GroupNorm:
            neck.set_submodule(name, _TwoPassGroupNorm(module))


class _TwoPassGroupNorm(nn.Module):
    """Group norm of a map (B, C, H, W): first the mean, then the variance of the deviations from it.

    PyTorch's group norm in channels_last adds up x and x² one pixel after the other, and computes the
    variance as E[x²] - E[x]². On a map that is 60 % uniform, its error is 2e-4, even if the mean is
    subtracted first. The error of this class is 1e-6, like that of PyTorch's group norm in its usual memory
    format.

    If a map hardly varies, the norm magnifies the rounding error of the mean, by up to 1/√ε = 316. Therefore
    the mean of the deviations, which equals this error, is subtracted too.
    """

    def __init__(self, norm: GroupNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(B, H * W, C)
        centred = tokens - self._of_groups(tokens)
        scale = (self._of_groups(centred.square()) + self.norm.eps).rsqrt() * self.norm.weight
        shift = self.norm.bias - self._of_groups(centred) * scale
        normalised: Tensor = torch.addcmul(shift, centred, scale)
        return normalised.view(B, H, W, C).permute(0, 3, 1, 2)

    def _of_groups(self, tokens: Tensor) -> Tensor:
        """Return the mean of each channel's group over all `tokens` (B, H·W, C) of an image, (B, 1, C)."""
        groups = tokens.mean(1, keepdim=True).unflatten(-1, (self.norm.num_groups, -1))
        means: Tensor = groups.mean(-1, keepdim=True).expand_as(groups).flatten(2)
        return means
