"""Models that take several inputs, as tuples and dicts."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import DagscaleError, SearchError
from dagscale.training.batches import call, checked, logits, shapes, take
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe

N = 96
IDS = torch.randint(20, (N, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(6) < torch.randint(2, 7, (N, 1), generator=torch.Generator().manual_seed(1))
Y = IDS[:, 0] % 3


class Tagger(nn.Module):
    """Classes from the mean of the tokens that are there."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.hidden = nn.Linear(width, width)
        self.readout = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        there = mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        mean = (self.embedding(ids) * there).sum(1) / there.sum(1)
        return {"logits": self.readout(self.hidden(mean).relu())}


GIVEN: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (IDS, MASK),
    "list": lambda: [IDS, MASK],
    "dict": lambda: {"mask": MASK, "ids": IDS},
    "mapping": lambda: UserDict(ids=IDS, mask=MASK),  # as tokenizers return
}


@pytest.mark.parametrize("given", GIVEN)
def test_inputs_are_batched_together(given: str) -> None:
    x, y = checked((GIVEN[given](), Y))
    rows = torch.tensor([3, 1])
    model = Tagger()
    assert torch.equal(logits(call(model, take(x, rows))), model(IDS[rows], MASK[rows])["logits"])
    assert y is Y


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
@pytest.mark.parametrize("given", ["tuple", "mapping"])
def test_measured_laws(law: str, given: str) -> None:
    x = GIVEN[given]()
    model, base = Tagger(32), Tagger(8)
    common = {"law": law, "data": (x, Y), "loss": cross_entropy, "batch_size": 16, "base_lr": 0.1}
    plan = dagscale.plan(model, (IDS[:2], MASK[:2]), base=(base, (IDS[:2], MASK[:2])), **common)  # type: ignore[arg-type]
    assert plan.init == "moments"
    assert plan.factors[law] > 0
    alone = dagscale.plan(model, {"ids": IDS[:2], "mask": MASK[:2]}, base=(base, (IDS[:2], MASK[:2])), **common)  # type: ignore[arg-type]
    assert alone.lr == pytest.approx(plan.lr)


class Twofold(Tagger):
    """Returns something of its own."""

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        scores = super().forward(ids, mask)["logits"]
        return scores, scores.square().mean(1)


@pytest.mark.parametrize("law", ["short-run", "function-change"])
def test_outputs_are_what_the_loss_takes(law: str) -> None:
    def loss(out: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        return cross_entropy(out[0], y) + 0.1 * out[1].mean()

    model, inputs = Twofold(), (IDS[:2], MASK[:2])
    given = {"data": ((IDS, MASK), Y), "loss": loss, "batch_size": 16, "base_lr": 0.1, "base": (Twofold(8), inputs)}
    assert dagscale.plan(model, inputs, law=law, **given).factors[law] > 0  # type: ignore[arg-type]
    with pytest.raises(DagscaleError, match="the model returns tuple: curvature needs a tensor"):
        dagscale.plan(model, inputs, law="curvature", **given)  # type: ignore[arg-type]


def test_search_and_check() -> None:
    x = {"ids": IDS, "mask": MASK}
    found = dagscale.search(Tagger(), (x, Y), grid=[0.01, 0.1, 1.0], steps=12, batch_size=16, seeds=2, widen=0)
    assert 0.01 <= found.lr <= 1.0
    family = [(Tagger(width), (IDS[:2], MASK[:2])) for width in (16, 32)]
    report = dagscale.check(family, data=(x, Y), seeds=2)
    assert report.sizes == pytest.approx((16, 32))
    assert all(math.isfinite(value) for value in report.lrs)


def test_a_step_of_the_users_own_gets_what_the_model_takes() -> None:
    model, seen = Tagger(), []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Any, y: Tensor) -> float:
        seen.append(sorted(x))
        return cross_entropy(model(**x)["logits"], y).item()

    groups = [{"params": list(model.parameters()), "lr": 0.1}]
    train(model, Recipe(({"ids": IDS, "mask": MASK}, Y), step=step, steps=2, batch_size=8), groups)
    assert seen == [["ids", "mask"]] * 2


def test_refusals_show_every_input() -> None:
    for x, text in (
        ((IDS, MASK[:5]), r"one length, got shapes \(\(96, 6\), \(5, 6\)\) and \(96,\)"),
        ({"ids": IDS, "mask": 1}, "a tuple or a dict of tensors, as the model takes them"),
        ((), "data must be two tensors"),
        (torch.tensor(1.0), "must have one length"),
        ((IDS, torch.ones(N, 3, 4, 4, dtype=torch.uint8)), "make images floating"),
    ):
        with pytest.raises(SearchError, match=text):
            checked((x, Y))
    model = Tagger()
    groups = [{"params": list(model.parameters()), "lr": 0.1}]
    with pytest.raises(DagscaleError, match=r"on data of shape \{'ids': \(8, 6\), 'mask': \(8, 5\)\}"):
        train(model, Recipe(({"ids": IDS, "mask": MASK[:, :5]}, Y), steps=1, batch_size=8), groups)
    assert shapes((IDS, {"mask": MASK})) == "((96, 6), {'mask': (96, 6)})"
