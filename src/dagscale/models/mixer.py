"""The space ``mixer:DEPTH``: small MLP-Mixers, which mix the patches of an image by layers of weights."""

from __future__ import annotations

from torch import Tensor, nn

from dagscale.models.by_depth import image_model, patches
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import SPACES, Space


class Block(nn.Module):
    """``x + MLP(LayerNorm(x))`` over the tokens of each channel, then over the channels of each token.

    ``x: (batch, tokens, width)``, as its result.
    """

    def __init__(self, tokens: int, width: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mixed = nn.Linear(tokens, width // 2 or 1), nn.Linear(width // 2 or 1, tokens)
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixed(self.act(self.mix(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        out: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return out


class Mixer(nn.Module):
    """Patches, ``depth`` blocks, LayerNorm, the mean over the tokens, a linear readout [Tolstikhin et al. 2021].

    ``x: (batch, C, H, W)`` → logits ``(batch, classes)``. The hidden layer over the tokens is ``width / 2`` wide, as in
    the paper's sizes. Parameters are named ``patches``, ``blocks.0.mix``, ``blocks.0.down``, ``readout``.

    Args:
        shape: (C, H, W) of one image.
        width: channels of each token.
        patch: side of a square patch; by default the one that makes four by four of them, or more where the sides
            are not divisible so.
        ratio: width of the hidden layer over the channels, relative to ``width``.

    Raises:
        TargetError: if patches do not divide the image.
    """

    def __init__(
        self,
        depth: int,
        *,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 64,
        patch: int | None = None,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        channels, high, wide = shape
        patch, tokens = patches(high, wide, patch)
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(Block(tokens, width, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, C, H, W) → logits: (batch, classes)."""
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.readout(self.norm(x).mean(1))
        return logits


OPTIONS = (
    INPUT,
    CLASSES,
    Option("width", "int", "channels of each token", low=1, high=8192),
    Option("patch", "int", "side of a patch", low=1, high=4096),
    Option("ratio", "int", "the hidden width over the channels, relative to width", low=1, high=64),
)
SPACES.add("mixer")(Space(read=image_model(Mixer, "mixer:4", "an MLP-Mixer"), options=OPTIONS))
