"""Random flips and crops of images, a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def padding(side: int) -> int:
    """Of the random crop: 4 for the benchmark's 32, in proportion for others."""
    return max(1, side // 8)


class Augment(nn.Module):
    """In train mode a random horizontal flip and a random crop of each zero-padded image; else nothing.

    ``(batch, channels, H, W)`` → the same shape, made on the images' device. It draws from ``generator``, on the CPU,
    by default torch's global one: the same numbers on every device.
    """

    def __init__(self, kinds: tuple[str, ...], pad: int) -> None:
        super().__init__()
        self.kinds, self.pad = kinds, pad

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if not self.training:
            return x
        n, _, height, width = x.shape
        if "flip" in self.kinds:
            flipped = (torch.rand(n, generator=generator) < 0.5).to(x.device)[:, None, None, None]
            x = torch.where(flipped, x.flip(3), x)
        if "crop" in self.kinds:
            padded = nn.functional.pad(x, (self.pad,) * 4)
            down, right = (torch.randint(2 * self.pad + 1, (n, 1), generator=generator).to(x.device) for _ in range(2))
            rows = (down + torch.arange(height, device=x.device))[:, None, :, None]
            columns = (right + torch.arange(width, device=x.device))[:, None, None, :]
            images = torch.arange(n, device=x.device)[:, None, None, None]
            channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
            x = padded[images, channels, rows, columns]
        return x
