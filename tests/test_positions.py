"""Learned positions: as large as what they are added to, where attention sees in both directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, softmax

import dagscale
from dagscale.inits.positions import tables
from dagscale.models.lm import Language
from dagscale.models.vit import ViT

flexible = pytest.importorskip("torch.nn.attention.flex_attention")  # from torch 2.5 on
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler

LENGTH, WIDTH = 8, 32
IDS = torch.randint(11, (64, LENGTH), generator=torch.Generator().manual_seed(0))
EARLIER = torch.ones(LENGTH, LENGTH).tril().bool()

Mix = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(mask: Callable[[Tensor], Tensor]) -> Mix:
    return lambda q, k, v: softmax(mask(q @ k.transpose(-1, -2) / 6), -1) @ v


def fused(**how: object) -> Mix:
    return lambda q, k, v: scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], **how)[:, 0]  # type: ignore[arg-type]


def flex(causal: bool) -> Mix:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        earlier = flexible.create_block_mask(lambda b, h, i, j: i >= j, None, None, LENGTH, LENGTH, device="cpu")
        out = flexible.flex_attention(q[:, None], k[:, None], v[:, None], block_mask=earlier if causal else None)
        assert isinstance(out, Tensor)
        return out[:, 0]

    return mix


def talking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores of four heads, mixed by a matrix before and behind the softmax."""
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, v))
    mix = torch.eye(4) + 0.1
    weights = torch.einsum("hg,bgij->bhij", mix, q @ k.transpose(-1, -2)).softmax(-1)
    return (torch.einsum("hg,bgij->bhij", mix, weights) @ v).transpose(1, 2).flatten(2)


BOTH: dict[str, Mix] = {
    "talking heads": talking,
    "eager": eager(lambda s: s),
    "einsum": lambda q, k, v: torch.einsum("bij,bjc->bic", softmax(torch.einsum("bic,bjc->bij", q, k) / 6, -1), v),
    "last key hidden": eager(lambda s: s.masked_fill(torch.arange(LENGTH) == LENGTH - 1, -1e9)),
    "a band around each": eager(lambda s: s.masked_fill(~(EARLIER.triu(-1) | EARLIER.triu(-1).T), -torch.inf)),
    "fused": fused(),
    "fused, last key hidden": fused(attn_mask=(torch.arange(LENGTH) < LENGTH - 1)[None]),
    "fused, halves apart": fused(attn_mask=torch.block_diag(*[torch.ones(4, 4)] * 2).bool()),
    "flex": flex(False),
}
CAUSAL: dict[str, Mix] = {
    "eager, -inf": eager(lambda s: s.masked_fill(~EARLIER, -torch.inf)),
    "eager, added": eager(lambda s: s + (~EARLIER) * -1e9),
    "eager, where": eager(lambda s: torch.where(EARLIER, s, s.new_tensor(-1e9))),
    "eager, key by query": lambda q, k, v: (
        softmax((k @ q.transpose(-1, -2)).masked_fill(~EARLIER.T, -torch.inf), -2).transpose(-1, -2) @ v
    ),
    "eager, a band": eager(lambda s: s.masked_fill(~EARLIER.triu(-3), -torch.inf)),
    "fused": fused(is_causal=True),
    "fused, mask": fused(attn_mask=EARLIER),
    "fused, numbers": fused(attn_mask=torch.zeros(LENGTH, LENGTH).masked_fill(~EARLIER, -torch.inf)),
    "fused, band": fused(attn_mask=EARLIER.triu(-2)),
    "flex": flex(True),
}


class Encoder(nn.Module):
    """Tokens and positions, attention with a learned bias on its scores, a readout."""

    def __init__(self, mix: Mix = BOTH["eager"], way: str = "lookup") -> None:
        super().__init__()
        self.mix, self.way = mix, way
        self.token, self.place = nn.Embedding(11, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.kind = nn.Embedding(2, WIDTH)
        for table in (self.place, self.kind):
            nn.init.normal_(table.weight, 0.0, 0.02)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 11)

    def forward(self, ids: Tensor) -> Tensor:
        place = self.place(torch.arange(ids.shape[1])) if self.way == "lookup" else self.place.weight
        kind = self.kind(torch.zeros(ids.shape[1], dtype=torch.long))
        h = self.token(ids) + place + kind
        out: Tensor = self.head(h + self.mix(*self.qkv(h).chunk(3, -1)))
        return out


def stds(model: nn.Module, init: str = "moments", inputs: object = IDS, **more: object) -> dict[str, float | None]:
    plan = dagscale.plan(model, inputs, base_lr=1.0, law="none", init=init, optimizer="adam", **more)  # type: ignore[arg-type]
    return {name: p.init_std for name, p in plan.parameters.items()}


@pytest.mark.parametrize("mix", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("way", ["lookup", "weight"])
def test_positions_are_as_large_as_embeddings_where_attention_sees_in_both_directions(mix: Mix, way: str) -> None:
    torch.manual_seed(0)
    found = stds(Encoder(mix, way))
    assert found["place.weight"] == pytest.approx(1.0, rel=0.05)
    assert found["token.weight"] == pytest.approx(1.0, rel=0.05)
    assert found["kind.weight"] is None  # the same row for all


@pytest.mark.parametrize("mix", CAUSAL.values(), ids=CAUSAL)
def test_positions_stay_where_a_mask_tells_places_apart(mix: Mix) -> None:
    torch.manual_seed(0)
    assert stds(Encoder(mix))["place.weight"] is None


@pytest.mark.parametrize("init", ["damped", "small-readout"])
def test_other_measured_inits_do_the_same(init: str) -> None:
    torch.manual_seed(0)
    found = stds(Encoder(), init)
    assert found["place.weight"] == pytest.approx(found["token.weight"], rel=0.05)
    assert stds(Encoder(CAUSAL["fused"]), init)["place.weight"] is None


def test_what_is_kept_is_kept() -> None:
    assert stds(Encoder(), keep=["place*"])["place.weight"] is None


def test_what_reads_the_sum_is_set_for_it() -> None:
    """The sum's second moment is 2 in place of 1, so the next layer's weights are smaller by √2."""
    torch.manual_seed(0)
    model = Encoder()
    found, plain = stds(model), stds(model, keep=["place*"])
    a, b = found["qkv.weight"], plain["qkv.weight"]
    assert a
    assert b
    assert a / b == pytest.approx(2**-0.5, rel=0.06)


class Translator(nn.Module):
    """An encoder that sees in both directions, a causal decoder that looks at it, each with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(11, WIDTH)
        self.source, self.target = (nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH)) for _ in range(2))
        self.core = nn.Transformer(WIDTH, 2, 2, 2, 64, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        seen = self.token(source) + self.source, self.token(target) + self.target
        out: Tensor = self.head(self.core(*seen, tgt_mask=mask, tgt_is_causal=True))
        return out


def test_encoder_and_decoder_are_told_apart() -> None:
    torch.manual_seed(0)
    found = stds(Translator(), inputs=(IDS, IDS.flip(1)))
    assert found["source"] == pytest.approx(1.0, rel=0.05)
    assert found["target"] is None


def test_the_models_of_the_package() -> None:
    images = torch.randn(16, 1, 8, 8)
    vit = ViT(2, shape=(1, 8, 8), classes=10, width=32, heads=2, patch=2)
    (table,) = tables(dagscale.trace(vit, images))
    assert stds(vit, inputs=images)[table] == pytest.approx(1.0, rel=0.05)
    lm = Language(2, width=32)
    ids = torch.randint(256, (8, 64))
    (table,) = tables(dagscale.trace(lm, ids))
    assert stds(lm, inputs=ids)[table] is None


def test_a_table_that_no_attention_reads_stays() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = nn.Linear(6, 6), nn.Parameter(torch.zeros(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) + self.table
            return out

    x = torch.randn(16, 4, 6)
    assert tables(dagscale.trace(Added(), x)) == {"table"}
    assert stds(Added(), inputs=x)["table"] is None


def test_an_init_that_runs_nothing_names_the_tables_that_it_leaves() -> None:
    said = {
        init: [
            note
            for note in dagscale.plan(Encoder(), IDS, base_lr=1.0, law="none", init=init).notes
            if "draws them" in note
        ]
        for init in ("moments", "in-degree", "keep")
    }
    (note,) = said["in-degree"]
    assert "place.weight" in note
    assert "qkv" not in note
    assert not said["moments"]
    assert not said["keep"]


@pytest.mark.parametrize("parts", [1, 2])
def test_tables_are_as_large_as_what_they_are_added_to(parts: int) -> None:
    """Of several that are added up first, the sum is."""

    class Small(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.ParameterList(torch.zeros(LENGTH, WIDTH) for _ in range(parts))
            self.scale = nn.Parameter(torch.full((WIDTH,), 0.1))

        def forward(self, ids: Tensor) -> Tensor:
            h = self.token(ids) * self.scale + sum(self.more)
            out: Tensor = self.head(h + self.mix(*self.qkv(h).chunk(3, -1)))
            return out

    found = stds(Small())
    for k in range(parts):
        assert found[f"more.{k}"] == pytest.approx(0.1 / parts**0.5, rel=0.05)


class Counted(Encoder):
    """Places are looked up by a count of the tokens so far, as RoBERTa's."""

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids) + self.place((ids >= 0).long().cumsum(1) - 1)
        out: Tensor = self.head(h + self.mix(*self.qkv(h).chunk(3, -1)))
        return out


class Scaled(Encoder):
    """The table is multiplied by a constant before it is added."""

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids) + self.place.weight * 0.05
        out: Tensor = self.head(h + self.mix(*self.qkv(h).chunk(3, -1)))
        return out


class Projected(Encoder):
    """Fixed positions are projected by a layer."""

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids) + self.near(torch.eye(LENGTH))
        out: Tensor = self.head(h + self.mix(*self.qkv(h).chunk(3, -1)))
        return out

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Linear(LENGTH, WIDTH)


def test_tables_that_are_looked_up_by_a_signal_scaled_or_a_layers_weight() -> None:
    torch.manual_seed(0)
    assert stds(Counted())["place.weight"] == pytest.approx(1.0, rel=0.1)
    assert stds(Scaled())["place.weight"] == pytest.approx(20.0, rel=0.1)
    assert tables(dagscale.trace(Projected(), IDS)) == set()


def test_biases_of_layers_and_of_scores_are_no_tables() -> None:
    class Scored(Encoder):
        def __init__(self) -> None:
            near = nn.Parameter(torch.zeros(LENGTH, LENGTH))
            super().__init__(eager(lambda s: s + near))
            self.near = near

    assert tables(dagscale.trace(Scored(), IDS)) == {"place.weight", "kind.weight"}
