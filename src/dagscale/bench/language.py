"""A small language model and bytes to train it on, for demonstrations: nothing is downloaded."""

from __future__ import annotations

import argparse
import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

HEAD = 16
"""Channels of an attention head; wider models have more heads."""


class Block(nn.Module):
    """A pre-norm transformer block: causal attention, then a feed-forward layer, each added to the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, tokens, width), as its result."""
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return out


class Language(nn.Module):
    """A transformer that predicts the next of 256 bytes."""

    def __init__(self, blocks: int, width: int, length: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, length) → logits: (batch, length, 256)."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def text(length: int = 32) -> tuple[Tensor, Tensor]:
    """Windows of the source of Python's ``argparse``, as bytes, and the bytes that follow each: both (n, length)."""
    stream = torch.tensor(list(inspect.getsource(argparse).encode()))
    windows = stream[: len(stream) // (length + 1) * (length + 1)].view(-1, length + 1)
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def loss(logits: Tensor, following: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte, in nats."""
    return cross_entropy(logits.flatten(0, 1), following.flatten())
