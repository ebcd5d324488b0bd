"""Embeddings that the model multiplies by a number, as the √width of the first Transformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.graph.roles import lookup_factors
from dagscale.scaling.lookups import lookup_scaling

WORDS = 50
IDS = torch.randint(0, WORDS, (16, 8), generator=torch.Generator().manual_seed(0))

WAYS: dict[str, Callable[[Tensor, Language], Tensor]] = {
    "number": lambda x, model: x * math.sqrt(model.width),
    "number on the left": lambda x, model: math.sqrt(model.width) * x,
    "tensor": lambda x, model: x * torch.tensor(model.width**0.5, dtype=x.dtype),
    "buffer": lambda x, model: x * model.root.to(x.dtype),
    "buffer on the left": lambda x, model: model.root * x,
    "division": lambda x, model: x / model.width**-0.5,
    "in place": lambda x, model: x.mul_(model.width**0.5),
    "twice": lambda x, model: 2 * (x * (model.width**0.5 / 2)),
    "integer": lambda x, model: x * torch.tensor(int(model.width**0.5)),
    "buffer of another type": lambda x, model: (x.to(torch.float64) * model.root.to(torch.float64)).to(x.dtype),
    "then dropout": lambda x, model: nn.functional.dropout(x * model.width**0.5, 0.1, model.training),
}


class Language(nn.Module):
    """Looks up, multiplies, adds one residual block, and reads out."""

    root: Tensor

    def __init__(self, width: int, way: Callable[[Tensor, Language], Tensor], tied: bool = False) -> None:
        super().__init__()
        self.width, self.way = width, way
        self.embed = nn.Embedding(WORDS, width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, WORDS, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.register_buffer("root", torch.tensor(width**0.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.way(self.embed(ids), self)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(self.last(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_number_is_read_however_it_is_written(way: Callable[[Tensor, Language], Tensor]) -> None:
    graph = dagscale.trace(Language(64, way), IDS)
    assert lookup_factors(graph) == {"embed.weight": pytest.approx(8.0)}
    assert lookup_factors(dagscale.Graph.from_json(graph.to_json())) == lookup_factors(graph)


@pytest.mark.parametrize(
    "way",
    [
        lambda x, model: x,
        lambda x, model: 1 / x,  # no multiple of it
        lambda x, model: x * x.detach().abs().max().item(),  # made of the signal, though a number of Python's
        lambda x, model: x * torch.rand(1),
        lambda x, model: x * torch.bernoulli(torch.full_like(x, 0.5)) / 0.5,  # dropout by hand
        lambda x, model: x * x.detach().abs().mean(),  # made of the signal
        lambda x, model: (x + 1).relu() * 8,  # of something else than what was looked up
    ],
)
def test_what_is_no_number_is_none(way: Callable[[Tensor, Language], Tensor]) -> None:
    assert lookup_factors(dagscale.trace(Language(64, way), IDS)) == {}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("way", ["number", "buffer"])
def test_the_stream_begins_at_its_size_behind_the_number(way: str, tied: bool) -> None:
    torch.manual_seed(0)
    model = Language(64, WAYS[way], tied)
    plan = dagscale.plan(model, IDS, base_lr=0.1, law="none", init="moments", optimizer="adamw")
    plan.init_(model)
    with torch.no_grad():
        looked_up = WAYS[way](model.embed(IDS), model)
    assert looked_up.square().mean().item() == pytest.approx(1, rel=0.1)


def test_a_buffer_that_the_forward_writes_to_is_no_number() -> None:
    def way(x: Tensor, model: Language) -> Tensor:
        model.root.fill_(2.0)
        return x * model.root

    assert lookup_factors(dagscale.trace(Language(64, way), IDS)) == {}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "momentum"])
def test_a_growing_number_trains_as_one_that_stays(optimizer: str, tied: bool) -> None:
    """√width, which grows from 4 to 8, against a constant 4 in both: loss for loss, in float64."""
    torch.manual_seed(0)
    decay: dict[str, Any] = {"weight_decay": 0.1} if optimizer == "adamw" else {}

    def losses(way: Callable[[Tensor, Language], Tensor]) -> list[float]:
        base, model = Language(16, way, tied).double(), Language(64, way, tied).double()
        plan = dagscale.plan(
            model, IDS, base=(base, IDS), base_lr=0.05, law="none", init="moments", width="mup", optimizer=optimizer,
            no_decay=(), **decay,
        )  # fmt: skip
        plan.init_(model)
        opt = plan.optimizer(model)
        found = []
        for _ in range(12):
            opt.zero_grad()
            loss = cross_entropy(model(IDS).flatten(0, 1), IDS.roll(1, 1).flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            opt.step()
            found.append(loss.item())
        return found

    growing, constant = losses(WAYS["number"]), losses(lambda x, model: 4 * x)
    assert growing == pytest.approx(constant, rel=1e-5)
    assert growing[-1] < growing[0]


@pytest.mark.parametrize("init", ["in-degree", "keep"])
def test_an_init_that_does_not_see_the_number_leaves_the_rate(init: str) -> None:
    base, model = Language(16, WAYS["number"]), Language(64, WAYS["number"])
    how: dict[str, Any] = {"base_lr": 0.05, "law": "none", "init": init, "width": "mup", "optimizer": "adamw"}
    plan = dagscale.plan(model, IDS, base=(base, IDS), **how)
    assert plan.parameters["embed.weight"].lr == plan.lr


def test_a_kind_of_decay_that_nobody_knows_leaves_the_decay_as_it_is() -> None:
    graphs = [dagscale.trace(Language(width, WAYS["number"]), IDS) for width in (16, 64)]
    known = dagscale.OPTIMIZERS["adamw"]
    one, other = (lookup_scaling(*graphs, o)["embed.weight"].factors for o in (known, replace(known, decay=None)))
    assert (one.lr, one.eps, one.weight_decay) == (0.5, 2.0, 2.0)
    assert other == replace(one, weight_decay=1.0)
