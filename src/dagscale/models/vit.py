"""The space ``vit:DEPTH``: small pre-norm vision transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape, read_depth
from dagscale.models.dag import ACTIVATIONS
from dagscale.models.targets import CLASSES, INPUT, SPACES, Option, Setting, Space

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
        patch = default_patch(high, wide) if patch is None else patch
        if high % patch or wide % patch:
            fits = default_patch(high, wide)
            raise TargetError(f"patch={patch} does not divide images of {high}×{wide}; write patch={fits}")
        if width % heads:
            raise TargetError(f"heads={heads} does not divide width={width}; choose a width that is a multiple")
        tokens = (high // patch) * (wide // patch) + (pool == "token")
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "token" else None
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
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


def default_patch(high: int, wide: int) -> int:
    """The largest side that divides both and is at most a quarter of either, at least 1."""
    return max((p for p in range(1, min(high, wide) // 4 + 1) if gcd(high, wide) % p == 0), default=1)


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    depth = read_depth(code, "vit:4")
    shape = image_shape(setting, "a vision transformer")
    return partial(ViT, depth, shape=shape, classes=setting.classes, **options)


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
SPACES.add("vit")(Space(read=_read, options=OPTIONS))
