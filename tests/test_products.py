"""Outputs that are products of layers' outputs, or sums over their elements, start at the size that is wanted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.graph.roles import output_factors
from dagscale.inits import INITS
from dagscale.planning.defaults import WIDER, init_for, way_over
from dagscale.planning.prepare import traced

G = torch.Generator().manual_seed(0)
PAIRS = torch.randint(0, 50, (512, 2), generator=G)
RATINGS = torch.randn(512, generator=G)
NODES = torch.randn(512, 6, 8, generator=G)


class Factorisation(nn.Module):
    """A rating from the dot product of two rows, and a bias of each if asked for."""

    def __init__(self, width: int, biases: bool = False) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, width), nn.Embedding(50, width)
        self.bias = nn.Embedding(50, 1) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        dot = (self.user(x[:, 0]) * self.item(x[:, 1])).sum(1)
        return dot if self.bias is None else dot + self.bias(x[:, 0])[:, 0]


class Energy(nn.Module):
    """What each node adds to the whole, summed over nodes, or the mean of it."""

    def __init__(self, reduce: str, times: float = 1.0, width: int = 16) -> None:
        super().__init__()
        self.body, self.head, self.reduce, self.times = nn.Linear(8, width), nn.Linear(width, 1), reduce, times

    def forward(self, x: Tensor) -> Tensor:
        each = self.times * self.head(self.body(x).relu())[..., 0]
        return each.sum(1) if self.reduce == "sum" else each.mean(1) if self.reduce == "mean" else each


class Gated(nn.Module):
    """Values times a gate, which leaves less than there was."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.value(x) * self.gate(x).sigmoid()
        return out


def recipe(x: Tensor, y: Tensor, loss: object = F.smooth_l1_loss) -> dagscale.Recipe:
    return dagscale.Recipe((x, y), loss, "adam", steps=8, batch_size=256)  # type: ignore[arg-type]


def size(model: nn.Module, x: Tensor, init: str = "moments", seeds: int = 12) -> float:
    """The second moment of what a model puts out as an init draws it."""
    y = torch.zeros(model(x).shape)
    plan = dagscale.plan(model, x[:2], recipe=recipe(x, y), init=init, law="none", base_lr=0.1)
    moments = []
    for seed in range(seeds):
        plan.init_(model, seed=seed)
        moments.append(float(model(x).detach().square().mean()))
    return sum(moments) / seeds


@pytest.mark.parametrize("width", [4, 16, 64, 256])
def test_a_dot_product_of_any_length_starts_at_one(width: int) -> None:
    assert size(Factorisation(width), PAIRS) == pytest.approx(1, rel=0.2)
    assert size(Factorisation(width, biases=True), PAIRS) == pytest.approx(1, rel=0.3), "the bias has its half"
    assert size(Factorisation(width), PAIRS, "small-readout") == pytest.approx(1 / 16, rel=0.2)


def test_a_sum_over_nodes_starts_at_one_and_a_mean_stays() -> None:
    assert size(Energy("sum"), NODES, seeds=40) == pytest.approx(1, rel=0.5)
    for reduce in ("mean", "none"):
        found = output_factors(dagscale.trace(Energy(reduce), NODES[:2]))
        assert found == ({"head.weight": 1.0} if reduce == "mean" else {})
    means = dagscale.plan(
        Energy("mean"), NODES[:2], recipe=recipe(NODES, RATINGS), init="moments", law="none", base_lr=1
    )
    plain = dagscale.plan(
        Energy("none"), NODES[:2], recipe=recipe(NODES, NODES[..., 0]), init="moments", law="none", base_lr=1
    )
    assert means.parameters["head.weight"].init_std == pytest.approx(plain.parameters["head.weight"].init_std, rel=0.05)


def test_factors_of_the_authors_own_and_gates_are_left_as_they_are() -> None:
    assert size(Energy("none", times=5.0), NODES) == pytest.approx(25, rel=0.5)
    plan = dagscale.plan(
        Gated(), NODES[:2, 0], recipe=recipe(NODES[:, 0], NODES[:, 0, :4]), init="moments", law="none", base_lr=1
    )
    assert plan.parameters["value.weight"].init_std == pytest.approx(1 / math.sqrt(8), rel=0.15)


def test_a_table_with_another_use_is_none_of_them() -> None:
    class Both(Factorisation):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.read(self.user(x[:, 0]))[:, 0]

    model = Both(8)
    model.read = nn.Linear(8, 1)
    assert output_factors(dagscale.trace(model, PAIRS[:4])) == {"item.weight": 0.5}
    assert output_factors(dagscale.trace(Factorisation(8), PAIRS[:4])) == {"item.weight": 1.0, "user.weight": 1.0}


def test_under_a_squared_error_they_start_small_by_default() -> None:
    network = traced(Factorisation(16), None, recipe(PAIRS, RATINGS, F.mse_loss), 0)
    assert init_for(network) == "small-readout"
    assert init_for(traced(Factorisation(16), None, recipe(PAIRS, RATINGS), 0)) == "moments"


def test_longer_dot_products_are_not_carried_over_by_a_rule_that_does_not_know_them() -> None:
    base, wide = (traced(Factorisation(width), None, recipe(PAIRS, RATINGS), 0) for width in (8, 32))
    assert way_over(base, wide, INITS["moments"]) is None
    for reduce in ("sum", "mean"):  # as many numbers are added as before
        base, wide = (traced(Energy(reduce, width=width), None, recipe(NODES, RATINGS), 0) for width in (8, 32))
        assert way_over(base, wide, INITS["moments"]) is WIDER


class Scores(nn.Module):
    """A sum over nodes beside something else, by kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head, self.read = kind, nn.Linear(8, 16), nn.Linear(16, 1), nn.Linear(16, 4)
        self.norm = nn.LayerNorm(16)
        self.query, self.key = nn.Linear(8, 64), nn.Linear(8, 64)
        if kind == "weight norm":
            self.head = nn.utils.parametrizations.weight_norm(self.head)

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.body(x)).relu()
        total = self.head(h)[..., 0].sum(1)
        if self.kind in ("masked", "scores"):
            scores = self.query(x) @ self.key(x).mT
            return scores.masked_fill(torch.eye(6) == 1, -1e9) if self.kind == "masked" else scores
        if self.kind == "returned":
            both = h.sum(1)
            return self.read(both), self.read(both).cumsum(1), both
        if self.kind == "sparse":
            return total, torch.eye(3).to_sparse()
        return total + 50.0 if self.kind == "offset" else total


def drawn(kind: str, init: str = "moments", **more: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    y = torch.zeros(512)

    def loss(out: Any, y: Tensor) -> Tensor:
        return (out[0] if isinstance(out, tuple) else out).mean()

    plan = dagscale.plan(
        Scores(kind), NODES[:2], recipe=recipe(NODES, y, loss), init=init, law="none", base_lr=1, **more
    )
    return dict(plan.parameters)


def test_what_stands_beside_them_does_not_count() -> None:
    """An offset, scores behind a mask, tensors that are no dense numbers."""
    plain = drawn("sum")["head.weight"].init_std
    for kind in ("offset", "sparse"):
        assert drawn(kind)["head.weight"].init_std == pytest.approx(plain, rel=0.05), kind
    masked, free = (drawn(kind)["query.weight"].init_std for kind in ("masked", "scores"))
    assert masked == pytest.approx(free, rel=0.1)
    assert free < 0.5 / math.sqrt(8), "a dot product of 64"


def test_a_forward_that_bears_no_vanishing_weights_is_planned() -> None:
    """A kernel matrix of features that all but vanish is singular."""

    class Kernel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(8, 64)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = (self.a(x) * self.b(x)).sum(-1)
            if float(out.abs().max()) < 1e-3:
                raise ValueError("singular")
            return out

    plan = dagscale.plan(Kernel(), NODES[:2, 0], recipe=recipe(NODES[:, 0], RATINGS), law="none", base_lr=0.1)
    assert plan.parameters["a.weight"].init_std == pytest.approx(1 / math.sqrt(8), rel=0.2), "as layers have it"


def test_what_another_layer_reads_too_is_left_alone() -> None:
    assert "body.weight" not in output_factors(dagscale.trace(Scores("returned"), NODES[:2]))
    assert drawn("returned")["body.weight"].init_std == pytest.approx(drawn("sum")["body.weight"].init_std, rel=0.05)


def test_a_gain_of_weight_norm_is_set_as_the_weight_would_be() -> None:
    gain, small = (
        drawn("weight norm", init)["head.parametrizations.weight.original0"].init_mean
        for init in ("moments", "small-readout")
    )
    assert small == pytest.approx(gain / 4, rel=0.1)
    assert gain < 0.5 * math.sqrt(16)


def test_kept_gains_are_as_they_are_while_outputs_are_measured() -> None:
    free = drawn("sum")["head.weight"].init_std
    model = Scores("sum")
    with torch.no_grad():
        model.norm.weight.fill_(5.0)
    plan = dagscale.plan(
        model, NODES[:2], recipe=recipe(NODES, torch.zeros(512)), init="moments", law="none", base_lr=1, keep="norm"
    )
    assert plan.parameters["head.weight"].init_std == pytest.approx(free / 5, rel=0.1)


def test_a_pooled_head_whose_number_goes_with_the_depth_is_carried_over() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.layer(self.norm(x)).relu()
            return out

    class Pooled(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.all = nn.Sequential(
                nn.Linear(8, 16), *(Block() for _ in range(depth)), nn.LayerNorm(16), nn.Linear(16, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.all(x)[..., 0].mean(1)
            return out

    base, deep = (traced(Pooled(depth), None, recipe(NODES, RATINGS), 0) for depth in (2, 4))
    assert way_over(base, deep, INITS["moments"]) is not None
