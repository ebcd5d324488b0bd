"""The space ``vit:DEPTH``: small pre-norm vision transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_model, patches
from dagscale.models.dag import ACTIVATIONS
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import SPACES, Space

POOLS = ("mean", "token")


class Block(nn.Module):
    """``x + Attention(LayerNorm(x))``, then ``x + MLP(LayerNorm(x))``. ``x: (batch, tokens, width)``, as its result."""

    def __init__(self, width: int, heads: int, hidden: int, act: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.down(self.act(self.up(self.norm2(x))))
        return result

    def attention(self, x: Tensor) -> Tensor:
        """Multi-head self-attention, over all tokens."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        mixed: Tensor = self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class ViT(nn.Module):
    """Patches, learned positions, ``depth`` blocks, LayerNorm, one vector an image, a linear readout.

    ``x: (batch, C, H, W)`` → logits ``(batch, classes)``. The pre-norm form of [Dosovitskiy et al. 2021]; no dropout.
    Parameters are named ``patches``, ``position``, ``blocks.0.qkv``, ``readout``.

    Args:
        shape: (C, H, W) of one image.
        width: of the residual stream.
        heads: of attention, each ``width / heads`` wide.
        patch: side of a square patch; by default the one that makes four by four of them, or more where the sides
            are not divisible so.
        ratio: width of the MLP's hidden layer, relative to ``width``.
        act: a name in ``dagscale.models.dag.ACTIVATIONS``.
        pool: the image's vector: ``"mean"`` over the tokens, or that of a class ``"token"``.

    Raises:
        TargetError: if heads do not divide the width, or patches the image.
    """

    def __init__(
        self,
        depth: int,
        *,
        shape: tuple[int, int, int],
        classes: int,
        width: int = 64,
        heads: int = 4,
        patch: int | None = None,
        ratio: int = 4,
        act: str = "gelu",
        pool: str = "mean",
    ) -> None:
        super().__init__()
        channels, high, wide = shape
        patch, tokens = patches(high, wide, patch)
        if width % heads:
            raise TargetError(f"heads={heads} does not divide width={width}; choose a width that is a multiple")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "token" else None
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens + (pool == "token"), width))
        self.blocks = nn.Sequential(*(Block(width, heads, ratio * width, act) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, C, H, W) → logits: (batch, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        logits: Tensor = self.readout(x.mean(1) if self.token is None else x[:, 0])
        return logits


OPTIONS = (
    INPUT,
    CLASSES,
    Option("width", "int", "width of the residual stream", low=1, high=8192),
    Option("heads", "int", "attention heads", low=1, high=8192),
    Option("patch", "int", "side of a patch", low=1, high=4096),
    Option("ratio", "int", "the MLP's hidden width, relative to width", low=1, high=64),
    Option("act", "str", "activation", choices=tuple(ACTIVATIONS)),
    Option("pool", "str", "what the readout reads", choices=POOLS),
)
SPACES.add("vit")(Space(read=image_model(ViT, "vit:4", "a vision transformer"), options=OPTIONS))
