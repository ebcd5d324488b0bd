"""The space ``lm:DEPTH``: small decoder-only language models, with norms or without, with tied ends or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from dagscale.errors import TargetError
from dagscale.models.by_depth import read_depth
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import EXAMPLES, SPACES, Setting, Space

VOCABULARY, CONTEXT = 256, 64
"""Bytes, and how many of them an example has, where nobody says it."""

CHANNELS = 16
"""Of one attention head, where nobody says how many heads there are."""

STD = 0.02
"""Standard deviation of every matrix at the start [Radford et al. 2019]."""

NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "none": lambda width: nn.Identity()}


class Block(nn.Module):
    """``x + Attention(norm(x))``, then ``x + MLP(norm(x))``; a token sees itself and earlier ones.

    ``x: (batch, tokens, width)``, as its result.
    """

    def __init__(self, width: int, heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = NORMS[norm](width), NORMS[norm](width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.o(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(gelu(self.up(self.norm2(x))))
        return out


class Language(nn.Module):
    """A decoder that predicts the next token: embeddings, learned positions, ``depth`` blocks, a norm, a readout.

    ``tokens: (batch, length)`` → logits ``(batch, length, vocabulary)``. The pre-norm form and the init of GPT-2
    [Radford et al. 2019, Sec. 2.3]: matrices are N(0, 0.02²), those that end a residual branch divided by √(2 depth).
    Parameters are named ``token``, ``place``, ``blocks.0.q``, ``blocks.0.down``, ``head``.

    Args:
        width: of the residual stream.
        vocabulary: how many tokens there are.
        context: the longest length.
        heads: of attention, each ``width / heads`` wide; by default as many as make them 16 wide, or one.
        norm: before each branch and the readout: ``"layer"`` or ``"none"``.
        tied: whether the readout's weights are the embedding's.

    Raises:
        TargetError: if heads do not divide the width.
    """

    def __init__(
        self,
        depth: int,
        *,
        width: int = 64,
        vocabulary: int = VOCABULARY,
        context: int = CONTEXT,
        heads: int | None = None,
        norm: str = "layer",
        tied: bool = False,
    ) -> None:
        super().__init__()
        heads = (width // CHANNELS if width % CHANNELS == 0 else 1) if heads is None else heads
        if width % heads:
            raise TargetError(f"heads={heads} does not divide width={width}; choose a width that is a multiple")
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm) for _ in range(depth)))
        self.norm, self.head = NORMS[norm](width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.token.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                ends = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, STD / (sqrt(2 * depth) if ends else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, length) → logits: (batch, length, vocabulary)."""
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1], device=tokens.device))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], tuple[nn.Module, Tensor]]:
    depth = read_depth(code, "lm:4")
    if setting.given and not setting.tokens and len(setting.shape) != 1:
        shape = "x".join(map(str, setting.shape))
        raise TargetError(f"a language model takes token ids, not inputs of shape {shape}: name text, as text:PATH")
    vocabulary = setting.classes if "classes" in setting.given else VOCABULARY
    make = partial(Language, depth, vocabulary=vocabulary, context=setting.shape[0], **options)

    def build() -> tuple[nn.Module, Tensor]:
        return make(), torch.randint(vocabulary, (EXAMPLES, setting.shape[0]))

    return build


OPTIONS = (
    INPUT,
    CLASSES,
    Option("width", "int", "width of the residual stream", low=1, high=8192),
    Option("heads", "int", "attention heads", low=1, high=8192),
    Option("norm", "str", "normalisation before each branch", choices=tuple(NORMS)),
    Option("tied", "bool", "whether the readout's weights are the embedding's"),
)
SPACES.add("lm")(Space(read=_read, options=OPTIONS, shape=(CONTEXT,), tokens=True))
