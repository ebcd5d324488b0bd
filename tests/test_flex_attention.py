"""Attention by `flex_attention` is read as attention, whatever device its kernels want."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale

flex = pytest.importorskip("torch.nn.attention.flex_attention")  # from torch 2.5 on
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
LENGTH, WIDTH, HEADS = 8, 16, 4


def mask() -> object:
    return flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, device="cpu")


class Block(nn.Module):
    """Grouped queries, and a learned bias for each head and distance, which a closure adds to the scores."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm, self.q, self.o = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.kv = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.zeros(HEADS, 2 * LENGTH))

    def forward(self, x: Tensor, blocks: object) -> Tensor:
        normed = self.norm(x)
        q = self.q(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.kv(normed).unflatten(-1, (2, HEADS // 2, -1)).permute(2, 0, 3, 1, 4)
        if self.how == "plain":
            i = torch.arange(x.shape[1])
            bias = self.bias[:, i[:, None] - i + LENGTH].masked_fill(i[:, None] < i, -torch.inf)
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            call = torch.compile(flex.flex_attention) if self.how == "compiled" else flex.flex_attention
            bias = self.bias
            mixed = call(
                q, k, v, score_mod=lambda s, b, h, i, j: s + bias[h, i - j + LENGTH], block_mask=blocks,
                enable_gqa=True,
            )  # fmt: skip
        return x + self.o(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """A language model of one block. Its mask is kept, made in the forward, or an input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.embed, self.block, self.head = nn.Embedding(9, WIDTH), Block(how), nn.Linear(WIDTH, 9)
        self.kept = mask() if how in ("kept", "compiled") else None

    def forward(self, tokens: Tensor, blocks: object = None) -> Tensor:
        if self.how == "made":
            blocks = flex.create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, tokens.device)
        return self.head(self.block(self.embed(tokens), self.kept or blocks))  # type: ignore[no-any-return]


TOKENS = torch.arange(2 * LENGTH).reshape(2, LENGTH) % 9
WAYS = ("kept", "made", "given", "compiled")


def inputs(how: str) -> tuple[object, ...]:
    return (TOKENS, mask()) if how == "given" else (TOKENS,)


def graph(how: str, device: str = "cpu") -> object:
    found = dagscale.trace(Model(how).to(device), tuple(t.to(device) if t is TOKENS else t for t in inputs(how)))  # type: ignore[attr-defined]
    layers = [(use.name, use.in_degree, use.readout) for use in found.layers]
    return layers, [(p.name, p.reached) for p in found.parameters]


@pytest.mark.parametrize("how", WAYS)
def test_read_as_plain_attention(how: str) -> None:
    assert graph(how) == graph("plain")


def test_read_on_meta() -> None:
    assert graph("made", "meta") == graph("plain")


@pytest.mark.parametrize("how", ["made", "compiled"])
def test_drawn_as_plain_attention(how: str) -> None:
    def drawn(which: str) -> list[float | None]:
        plan = dagscale.plan(Model(which), TOKENS, base_lr=0.1, law="none", init="moments")
        return [p.init_std or 0.0 for p in plan.parameters.values()]

    assert drawn(how) == pytest.approx(drawn("plain"), rel=1e-4)


def test_its_module_is_as_it_was() -> None:
    before = dict(vars(flex))
    graph("made")
    assert all(vars(flex)[name] is value for name, value in before.items())
    with pytest.raises(NotImplementedError, match="backward on CPU"):  # as its kernels have it
        Model("kept")(TOKENS)
