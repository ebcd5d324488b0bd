"""The networks of the known files of runs, built as they were trained, so that laws can read their graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from dagscale.models.resnet import STAGES, BasicBlock, check_depth, convolution

STEM = 16
"""Channels of the residual networks' stem, whatever their width: only the stages are widened."""

VOCABULARY = 1024
"""Of the decoders built here. Theirs was larger; no law or rule that is scored here looks at it."""


class WideResNet(nn.Module):
    """ResNet-20/32/44/56 for CIFAR with widened stages and projection shortcuts, post-activation.

    ``x: (batch, 3, 32, 32)`` → ``(batch, 10)``. It differs from ``resnet:20?width=32`` in its stem, which keeps its 16
    channels, so that the first block has a projection too where the width is above 1.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        check_depth(depth)
        self.stem = nn.Sequential(*convolution(3, STEM, 3, 1, "batch"), nn.ReLU())
        self.stages, channels = nn.Sequential(), STEM
        for stage in range(STAGES):
            blocks = nn.Sequential()
            for block in range((depth - 2) // (2 * STAGES)):
                made = STEM * 2**stage * width
                blocks.append(BasicBlock(channels, made, 2 if stage and not block else 1, "relu", "batch"))
                channels = made
            self.stages.append(blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.readout = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.pool(self.stages(self.stem(x))))
        return logits


class DecoderBlock(nn.Module):
    """Pre-norm causal attention and a gated feed-forward, each beside a skip. ``x: (batch, tokens, hidden)``."""

    def __init__(self, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.q, self.k, self.v, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(hidden, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norm2(x)
        z: Tensor = x + self.down(silu(self.gate(y)) * self.up(y))
        return z


class Decoder(nn.Module):
    """Token ids ``(batch, tokens)`` → logits ``(batch, tokens, vocabulary)``; positions are left out."""

    def __init__(self, layers: int, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.blocks = nn.Sequential(*(DecoderBlock(hidden, heads, inner) for _ in range(layers)))
        self.norm = nn.RMSNorm(hidden)
        self.readout = nn.Linear(hidden, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.norm(self.blocks(self.embedding(tokens))))
        return logits


def build_residual(network: str) -> tuple[nn.Module, Tensor]:
    """``20x2``: depth 20, stages twice as wide. On meta: nothing is trained."""
    depth, width = map(int, network.split("x"))
    with torch.device("meta"):
        return WideResNet(depth, width), torch.zeros(2, 3, 32, 32)


def build_decoder(network: str) -> tuple[nn.Module, Tensor]:
    """``7x960x15x9368``: layers, hidden size, heads, inner size of the feed-forward. On meta."""
    with torch.device("meta"):
        return Decoder(*map(int, network.split("x"))), torch.zeros(1, 16, dtype=torch.long)


def build_target(network: str) -> tuple[Any, Any]:
    """A TARGET of the command line, as ``resnet:20?width=32&input=3x32x32``."""
    from dagscale.models.targets import load

    return load(network)
