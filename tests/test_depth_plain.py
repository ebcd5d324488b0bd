"""Depth of networks without branches: what is plain, what each layer takes, and that a step then does not grow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import GraphError, PlanError
from dagscale.graph.plain import find_plain
from dagscale.scaling.depth import depth_scaling
from dagscale.scaling.folding import Factors
from dagscale.training.optimizers import resolve

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))


def mlp(depth: int, width: int = 8, *after: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else 12, width), *(a(width) for a in after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


class Towers(nn.Module):
    """Two networks beside one another whose outputs are joined."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__()
        self.one, self.other = mlp(one), mlp(other)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.other(x)], 1)


class Gated(nn.Module):
    """``depth`` products of two layers of the same signal."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.value = nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for value, gate in zip(self.value, self.gate, strict=True):
            x = value(x) * gate(x).sigmoid()
        out: Tensor = self.head(x)
        return out


class Shared(nn.Module):
    """One layer ``times`` times, after a first one; with ``again``, before the readout of the same weights."""

    def __init__(self, times: int, again: bool = False) -> None:
        super().__init__()
        self.first, self.inner, self.times = nn.Linear(12, 12), nn.Linear(12, 12), times
        self.head = self.first if again else nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for _ in range(self.times):
            x = self.inner(x).relu()
        out: Tensor = self.head(x)
        return out


class Skips(nn.Module):
    """The input is read a second time, behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.cat([x, self.first(x)], 1))
        return out


def graph(model: nn.Module, x: Tensor = X[:2]) -> dagscale.Graph:
    return dagscale.trace(model, x)


def of(numbers: range, *kinds: str) -> set[str]:
    return {f"{i}.{kind}" for i in numbers for kind in kinds or ("weight", "bias")}


def test_the_layers_between_the_first_and_the_readout_are_counted_with_what_follows_them() -> None:
    assert find_plain(graph(mlp(5))) == (found := find_plain(graph(mlp(5))))
    assert (found.depth, found.inner) == (5, of(range(2, 10, 2)))
    normed = find_plain(graph(mlp(3, 8, nn.LayerNorm)))
    assert (normed.depth, normed.inner) == (3, of(range(3, 9, 3)) | of(range(4, 10, 3)))
    assert find_plain(graph(mlp(1))).inner == frozenset()
    linear = find_plain(graph(nn.Linear(12, 3)))
    assert (linear.depth, linear.inner) == (0, frozenset())


def test_convolutions_pooling_embeddings_towers_gates_and_loops_are_plain() -> None:
    cnn = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    found = find_plain(graph(cnn, torch.randn(2, 3, 8, 8)))
    assert (found.depth, found.inner) == (3, {"2.weight", "2.bias", "6.weight", "6.bias"})
    words = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 20))
    found = find_plain(graph(words, torch.randint(20, (2, 6))))
    assert (found.depth, found.inner) == (2, {"2.weight", "2.bias"})
    towers = find_plain(graph(Towers(3, 3)))
    assert (towers.depth, len(towers.inner)) == (3, 8)
    gated = find_plain(graph(Gated(3)))
    assert (gated.depth, len(gated.inner)) == (3, 8)
    shared = find_plain(graph(Shared(4)))
    assert (shared.depth, shared.inner) == (5, {"inner.weight", "inner.bias"})


def test_what_is_used_at_an_end_too_is_no_inner_layer() -> None:
    assert find_plain(graph(Shared(2, again=True))).inner == {"inner.weight", "inner.bias"}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(2)
        self.end = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.end(self.layers(x))
        return out


@pytest.mark.parametrize(
    ("model", "counts"), [(Residual(), "0 and 4"), (Skips(), "0 and 1"), (Towers(2, 4), "3 and 5")], ids=str
)
def test_paths_of_different_lengths_are_not_plain(model: nn.Module, counts: str) -> None:
    with pytest.raises(GraphError, match=f"have passed {counts} layers"):
        find_plain(graph(model))


def test_a_recurrent_network_is_not_plain() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(12, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.rnn(x)[0])
            return out

    with pytest.raises(GraphError, match="passed"):
        find_plain(graph(Reader(), torch.randn(5, 2, 12)))


M = 4
TABLE = {
    "adamw": Factors(1, 1 / M, 1, M),
    "adam": Factors(1, 1 / M, 1, 1),
    "lion": Factors(1, 1 / M, 1, M),
    "muon": Factors(1, 1 / M, 1, M),
}


@pytest.mark.parametrize("name", [name for name in TABLE if name in dagscale.OPTIMIZERS])
def test_inner_layers_take_the_rate_over_the_growth_of_depth(name: str) -> None:
    found = depth_scaling(graph(mlp(2)), graph(mlp(2 * M)), resolve(name), "plain")
    inner = of(range(2, 16, 2))
    assert {n for n, s in found.items() if s.factors != Factors()} == inner
    assert all(found[n].factors == TABLE[name] and found[n].depth_mult == M for n in inner)
    assert all(found[n].fold == 1 for n in inner), "nothing is folded: gradients are as they were"


def test_what_has_not_grown_is_left_and_a_shallower_target_is_told_of() -> None:
    same = depth_scaling(graph(mlp(3)), graph(mlp(3, 16)), resolve("adamw"), "plain")
    assert {s.factors for s in same.values()} == {Factors()}
    back = depth_scaling(graph(mlp(4)), graph(mlp(2)), resolve("adamw"), "plain")
    assert back["2.weight"].factors.lr == 2
    assert "the base is the deeper one" in back["2.weight"].note


def plan(base: nn.Module, target: nn.Module, **options: Any) -> dagscale.Plan:
    said = {"optimizer": "adamw", "law": "none", "init": "in-degree", "depth": "plain"} | options
    return dagscale.plan(target, X[:2], base=(base, X[:2]), base_lr=0.01, **said)


def test_a_plan_has_both_rules_at_once() -> None:
    found = plan(mlp(2, 8), mlp(8, 32), width="mup", weight_decay=0.1).parameters
    assert found["2.weight"].lr == pytest.approx(0.01 / 4 / 4)
    assert found["2.bias"].lr == pytest.approx(0.01 / 4)
    assert found["0.weight"].lr == pytest.approx(0.01)


def test_a_plan_knows_how_little_sure_the_rule_is() -> None:
    deep, wide = (
        plan(mlp(2), target, width="mup", **more) for target, more in ((mlp(8), {}), (mlp(2, 32), {"depth": "none"}))
    )
    assert deep.lr_errors["law"] > 2 * wide.lr_errors["law"]


def test_what_it_is_not_for_is_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match="not for sgd: leave depth= out"):
        plan(mlp(2), mlp(4), optimizer="sgd")
    with pytest.raises(PlanError, match="the target is not so: paths that meet in it have passed 0 and 4 layers"):
        plan(mlp(2), Residual())
    with pytest.raises(PlanError, match="no layer before its readout"):
        plan(nn.Sequential(nn.Linear(12, 3)), mlp(4))
    with pytest.raises(PlanError, match="has no α"):
        plan(mlp(2), mlp(4), depth_alpha=0.5)
    with pytest.raises(PlanError, match="give depth='plain'"):
        plan(mlp(2), mlp(4), depth="completep")


def change(depth: int, rule: str) -> float:
    """Relative change of the last hidden layer in one small step of Adam."""
    x = torch.randn(128, 12, generator=torch.Generator().manual_seed(1))
    y = x[:, :3].argmax(1)
    base, model = mlp(2, 64), mlp(depth, 64)
    found = dagscale.plan(
        model, x, base=(base, x), base_lr=1e-5, optimizer="adam", law="none", depth=rule, data=(x, y),
        loss=F.cross_entropy,
    )  # fmt: skip
    sizes = []
    for seed in range(3):
        found.init_(model, seed=seed)
        optimizer = found.optimizer(model)
        before = model[:-1](x).detach()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after = model[:-1](x).detach()
        sizes.append(float((after - before).norm() / before.norm()))
    return sum(sizes) / len(sizes)


def test_with_the_rule_a_step_hardly_grows_with_depth() -> None:
    """The parts that the layers change add up, and a little more than that where all of them see alike signals."""
    depths = (4, 8, 16, 32)
    slopes = {}
    for rule in ("none", "plain"):
        first, *_, last = (math.log(change(depth, rule)) for depth in depths)
        slopes[rule] = (last - first) / math.log(depths[-1] / depths[0])
    assert 1.2 < slopes["none"] < 1.7, slopes
    assert 0.2 < slopes["plain"] < 0.7, slopes
