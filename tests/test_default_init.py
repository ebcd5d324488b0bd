"""Which init is taken where nobody names one: it depends on whether there are data, and on how the loss grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.planning.defaults import init_for
from dagscale.planning.prepare import traced

Loss = Callable[[Tensor, Tensor], Tensor]
G = torch.Generator().manual_seed(0)
X, Y = torch.randn(256, 6, generator=G), torch.randn(256, 5, generator=G)


def mlp(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5), *last)


def recipe(loss: Any, y: Tensor = Y, **more: Any) -> dagscale.Recipe:
    return dagscale.Recipe((X, y), loss, **{"optimizer": torch.optim.AdamW, "steps": 10, "batch_size": 32, **more})


def chosen(loss: Any, y: Tensor = Y, model: nn.Module | None = None, **more: Any) -> str:
    return init_for(traced(model or mlp(), None, recipe(loss, y, **more), 0))


def of_both(out: Tensor, y: Tensor) -> Tensor:
    """A policy and a value, as an actor–critic has them."""
    return F.cross_entropy(out[:, :4], y[:, :4].argmax(1)) + 0.5 * F.mse_loss(out[:, 4], y[:, 4])


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (F.mse_loss, Y),
        (nn.MSELoss(reduction="sum"), Y),
        (lambda out, y: ((out - y) ** 2).mean(), 3 + 0.1 * Y),
        (lambda out, y: (out - y).square().sum(1).mean() / 100, 1e-3 * Y),
        (of_both, Y),
        (lambda out, y: F.gaussian_nll_loss(out, y, torch.ones_like(y)), Y),
    ],
)
def test_under_a_squared_error_readouts_start_small(loss: Loss, y: Tensor) -> None:
    assert chosen(loss, y) == "small-readout"


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (F.cross_entropy, Y.argmax(1)),
        (F.binary_cross_entropy_with_logits, (Y > 0).float()),
        (F.l1_loss, Y),
        (F.smooth_l1_loss, Y),
        (F.poisson_nll_loss, Y.abs().round()),
        (lambda out, y: 1 - F.cosine_similarity(out, y).mean(), Y),
        (lambda out, y: F.mse_loss(out.tanh(), y), Y),
        (F.mse_loss, 1000 * Y),
    ],
)
def test_under_other_losses_they_do_not(loss: Loss, y: Tensor) -> None:
    """Nor where outputs are bounded, or targets so far away that the size of the outputs is none."""
    assert chosen(loss, y) == "moments"


class Product(nn.Module):
    """Two readouts whose outputs are multiplied: scaled together they would square what each makes."""

    def __init__(self, towers: bool) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(16, 5)
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        return (self.a(h) * self.b(h)).sum(-1) if self.towers else self.a(h) * self.b(h)


@pytest.mark.parametrize("towers", [True, False])
def test_readouts_that_are_multiplied_are_looked_at_one_by_one(towers: bool) -> None:
    y = Y[:, 0] if towers else Y
    kind = (y > 0).float() if towers else y.argmax(1)
    entropy = F.binary_cross_entropy_with_logits if towers else F.cross_entropy
    assert chosen(entropy, kind, Product(towers)) == "moments"
    assert chosen(F.mse_loss, y, Product(towers)) == "small-readout"


class Tied(nn.Module):
    """A language model without norms whose readout is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.body = nn.Embedding(11, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.token(x)).relu()).transpose(1, 2)


def test_a_readout_that_is_an_embedding_too_is_not_looked_at() -> None:
    tokens = torch.randint(0, 11, (64, 7), generator=G)
    own = dagscale.Recipe((tokens, tokens.roll(-1, 1)), F.cross_entropy, torch.optim.AdamW, steps=4, batch_size=16)
    assert init_for(traced(Tied(), None, own, 0)) == "moments"


def test_all_members_of_a_check_have_one_init(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the first one's: targets six times as large as outputs are at the border, where networks differ."""
    asked = []

    def one(network: Any) -> str:
        asked.append(network)
        return "small-readout"

    monkeypatch.setattr("dagscale.checking.make.init_for", one)
    monkeypatch.setattr("dagscale.planning.make.init_for", lambda network: pytest.fail("a member was asked itself"))
    family = [nn.Sequential(nn.Linear(6, w), nn.ReLU(), nn.Linear(w, 5)) for w in (8, 16, 32)]
    more = {"loss": F.mse_loss, "optimizer": "adamw", "law": "none", "seeds": 1}
    report = dagscale.check([(m, X[:8]) for m in family], data=(X, 6.3 * Y), **more)
    assert report.init == "small-readout"
    assert len(asked) == 1


def test_where_nothing_can_be_seen_it_is_moments() -> None:
    assert chosen(F.mse_loss, model=mlp(nn.LayerNorm(5))) == "moments", "the readout's size makes no difference"
    own = dagscale.Recipe((X, Y), step=lambda model, optimizer, x, y: 1.0, steps=10)
    assert init_for(traced(mlp(), None, own, 0)) == "moments", "the loss is the step's own"

    def refuses(out: Tensor, y: Tensor) -> Tensor:
        if float(out.detach().abs().max()) > 5:
            raise ValueError("outputs are to be small")
        return F.mse_loss(out, y)

    assert chosen(refuses) == "moments"


def test_plain_sgd_has_one_init_for_all_losses() -> None:
    """Hidden layers would wait for the readout to grow; momentum and Adam have it grown in a few steps."""
    assert chosen(F.mse_loss, optimizer=torch.optim.SGD) == "moments"
    assert chosen(F.mse_loss, optimizer=torch.optim.SGD, momentum=0.9) == "small-readout"
    assert chosen(F.mse_loss, optimizer="muon") == "small-readout"


def test_without_data_it_is_in_degree() -> None:
    assert init_for(traced(mlp(), X, dagscale.Recipe(), 0)) == "in-degree"
    assert dagscale.plan(mlp(), X, base=mlp(), base_lr=0.1).init == "in-degree"


def test_a_search_takes_it_and_plans_begin_from_the_base_s() -> None:
    found = dagscale.search(mlp(), recipe(F.mse_loss), seeds=1, grid=[1e-3, 1e-2, 1e-1], widen=0)
    assert found.init == "small-readout"
    assert sum("small-readout" in note for note in found.notes) == 1
    plan = dagscale.plan(mlp(), base=found)
    assert plan.init == "small-readout"
    large = dagscale.plan(mlp(), base=dagscale.search(mlp(), recipe(F.mse_loss), init="moments", seeds=1))
    assert large.init == "moments"
    weight = "4.weight"
    assert plan.parameters[weight].init_std == pytest.approx(large.parameters[weight].init_std / 4, rel=0.1)
    assert plan.parameters["2.weight"].init_std == pytest.approx(large.parameters["2.weight"].init_std, rel=0.1)


def test_a_readout_that_stays_as_it_is_asks_for_nothing() -> None:
    """And one that is drawn anew in a model that else stays starts small."""
    kept = dagscale.plan(mlp(), recipe=recipe(F.mse_loss), keep="4")
    assert kept.init == "moments"
    head = dagscale.plan(mlp(), recipe=recipe(F.mse_loss), only="4")
    assert head.init == "small-readout"
    assert [name for name, own in head.parameters.items() if own.init_std] == ["4.weight"]
    assert dagscale.search(mlp(), recipe(F.mse_loss), keep="4", seeds=1).init == "moments"


def test_a_plan_without_a_base_says_why() -> None:
    plan = dagscale.plan(mlp(), recipe=recipe(F.mse_loss))
    assert plan.init == "small-readout"
    assert any("square of the outputs" in note for note in plan.notes)
    assert dagscale.plan(mlp(), recipe=recipe(F.cross_entropy, Y.argmax(1))).init == "moments"
    named = dagscale.plan(mlp(), recipe=recipe(F.mse_loss), init="moments")
    assert named.init == "moments"
    assert not any("square of the outputs" in note for note in named.notes)


def test_the_model_is_as_it_was() -> None:
    model = mlp(nn.Dropout(0.5)).eval()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert chosen(F.mse_loss, model=model) == "small-readout"
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
