"""What a plan does where neither law, width nor depth is named: by what base and target are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import PlanError
from dagscale.graph import Graph
from dagscale.inits import INITS
from dagscale.network import Network
from dagscale.planning.defaults import DEEPER, WIDER, Way, way_over
from dagscale.training.optimizers import resolve

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Net(nn.Module):
    """Residual blocks of width ``width`` with a norm ``before`` each, ``behind`` each, or none."""

    def __init__(self, depth: int, width: int, norm: str = "before", end: str = "") -> None:
        super().__init__()
        self.stem, self.head, self.norm, self.end = nn.Linear(12, width), nn.Linear(width, 3), norm, end
        self.n = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        if end == "more":
            self.extra = nn.Sequential(nn.Linear(width, 5), nn.Linear(5, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for n, up, down in zip(self.n, self.up, self.down, strict=True):
            y = down(F.gelu(up(n(x) if self.norm == "before" else x)))
            x = x + (y.tanh() if self.end == "tanh" else y)
            x = n(x) if self.norm == "behind" else x
        out: Tensor = self.head(self.extra(x) if self.end == "more" else x)
        return out


def recipe(**more: Any) -> dagscale.Recipe:
    given = {"optimizer": "adamw", "weight_decay": 0.1, "batch_size": 16, "steps": 4}
    return dagscale.Recipe((X, Y), F.cross_entropy, **{**given, **more})


def planned(base: nn.Module, target: nn.Module, **options: Any) -> dagscale.Plan:
    said = options.pop("recipe", recipe())
    return dagscale.plan(target, X[:2], base=(base, X[:2]), base_lr=0.01, recipe=said, **options)


def test_a_deeper_and_wider_target_is_carried_over_without_a_step_and_the_screen_says_why() -> None:
    plan = planned(Net(2, 8), Net(6, 16))
    assert (plan.law, plan.width, plan.depth, plan.forwards, plan.lr) == ("none", "mup", "completep", 0, 0.01)
    assert DEEPER.why in plan.notes
    shown = " ".join(str(plan).split())
    assert "by default: base and target are residual networks of one kind" in shown
    named = planned(Net(2, 8), Net(6, 16), law="none", width="mup", depth="completep")
    assert plan.parameters == named.parameters
    assert DEEPER.why not in named.notes


@pytest.mark.parametrize("named", [{"law": "none"}, {"width": "none"}, {"depth": "none"}, {"width": "mup"}])
def test_whoever_names_one_of_them_has_named_them_all(named: dict[str, Any]) -> None:
    plan = planned(Net(2, 8), Net(6, 16), **named)
    assert (plan.width, plan.depth) == (named.get("width", "none"), "none")
    assert plan.law == named.get("law", "short-run")


def network(model: nn.Module, optimizer: str = "adamw", x: Tensor = X[:2], **more: Any) -> Network:
    return Network(dagscale.trace(model, x), recipe(optimizer=optimizer, **more), model, x, 0)


def carried(
    base: nn.Module, target: nn.Module, optimizer: str = "adamw", init: str = "moments", x: Tensor = X[:2], **more: Any
) -> Way | None:
    return way_over(*(network(model, optimizer, x, **more) for model in (base, target)), INITS[init])


def plain(width: int, depth: int = 2) -> nn.Module:
    inner = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), *inner, nn.Linear(width, 3))


def test_a_wider_target_of_any_kind_is_carried_over() -> None:
    plan = planned(plain(8), plain(32))
    assert (plan.law, plan.width, plan.depth, plan.forwards, plan.lr) == ("none", "mup", "none", 0, 0.01)
    assert WIDER.why in plan.notes
    assert carried(plain(8), plain(32)) is WIDER
    assert carried(plain(8), plain(32), "adagrad", weight_decay=None) is WIDER
    assert carried(Net(2, 8, end="tanh"), Net(2, 16, end="tanh")) is WIDER, "no depth rule for it, and none needed"
    assert carried(plain(8), plain(8)) is None, "the base itself"
    assert carried(plain(8), plain(32, 3)) is None, "deeper too"
    assert carried(plain(32), plain(8)) is None, "narrower"
    assert carried(plain(8), plain(32), "adam") is None, "decay that is coupled to the gradient"
    assert carried(plain(8), plain(32), "adam", weight_decay=0.0) is WIDER
    assert carried(plain(8), plain(32), "adam", weight_decay=None) is WIDER


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov"])
def test_along_the_gradient_residual_networks_are_carried_over_where_the_depth_grows(optimizer: str) -> None:
    for norm in ("before", "behind", "none"):
        assert carried(Net(2, 8, norm), Net(6, 8, norm), optimizer) is DEEPER
        assert carried(Net(2, 8, norm), Net(6, 16, norm), optimizer) is DEEPER
        assert carried(Net(2, 8, norm), Net(2, 16, norm), optimizer) is None, "wider alone"
        assert carried(Net(2, 8, norm), Net(2, 8, norm), optimizer) is None, "the base itself"
    assert carried(Net(2, 8, end="tanh"), Net(6, 8, end="tanh"), optimizer) is None, "no multiplier can be folded"
    assert carried(plain(8), plain(32), optimizer) is None
    assert carried(plain(8), plain(8, 4), optimizer) is None
    plan = planned(Net(2, 8), Net(6, 16), recipe=recipe(optimizer=optimizer, weight_decay=5e-4, no_decay=()))
    assert (plan.law, plan.width, plan.depth, plan.forwards, plan.lr) == ("none", "mup", "completep", 0, 0.01)
    assert DEEPER.why in plan.notes


def test_an_encoder_and_its_decoder_and_a_base_of_one_block_are_carried_over() -> None:
    class Both(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.core = nn.Transformer(8, 2, depth, depth, 16, 0.0, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.core(x, x)[:, 0])
            return out

    class Features(nn.Module):
        """The first block reads the input as it is, so that a base of one has no inner layer there."""

        def __init__(self, depth: int) -> None:
            super().__init__()
            one = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
            self.layers, self.head = nn.TransformerEncoder(one, depth, enable_nested_tensor=False), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.layers(x)[:, 0])
            return out

    x = torch.randn(2, 5, 8)
    for kind in (Both, Features):
        base, target = (network(kind(depth), x=x) for depth in (1, 4))
        assert way_over(base, target, INITS["moments"]) is DEEPER


def test_what_is_not_known_to_carry_over_is_planned_as_before() -> None:
    for norm in ("before", "behind", "none"):
        assert carried(Net(2, 8, norm), Net(6, 16, norm)) is DEEPER
        assert carried(Net(2, 8, norm), Net(2, 16, norm)) is DEEPER
        assert carried(Net(2, 8, norm), Net(2, 8, norm)) is DEEPER
    assert not carried(Net(2, 8), Net(6, 16, "behind")), "of another kind"
    for optimizer in ("adam", "lion", "muon"):
        known = resolve(optimizer)
        assert not carried(Net(2, 8), Net(6, 16), optimizer), known.name
    for init in ("in-degree", "released"):
        assert not carried(Net(2, 8), Net(6, 16), init=init)
    assert not carried(Net(2, 8, end="tanh"), Net(6, 16, end="tanh")), "no multiplier can be folded"
    assert not carried(Net(2, 8), Net(6, 16, end="more")), "another layer"
    assert carried(Net(2, 8, end="more"), Net(6, 8, end="more")) is DEEPER
    assert not carried(Net(6, 8), Net(2, 16)), "shallower"
    assert not carried(Net(2, 16), Net(6, 8)), "narrower"
    assert not carried(plain(8), plain(8, 4)), "no residual branch"


class Inside(nn.Module):
    """A residual block with a part whose size is 5 at any width: (n, 6, 12) → (n, 6, 3)."""

    def __init__(self, width: int, part: str) -> None:
        super().__init__()
        self.part, self.stem, self.head = part, nn.Linear(12, width), nn.Linear(width, 3)
        self.down, self.up, self.inner = nn.Linear(width, 5), nn.Linear(5, width), nn.Linear(width, width)
        self.there, self.back = nn.Linear(6, width), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n = F.layer_norm(x, x.shape[-1:])
        x = (
            x
            + {
                "code": lambda: self.up(F.gelu(self.down(n))),
                "gate": lambda: self.inner(n) * self.up(F.relu(self.down(n))).sigmoid(),
                "router": lambda: self.inner(n) * self.down(n).softmax(-1)[..., :1],
                "places": lambda: self.back(F.gelu(self.there(n.transpose(1, 2)))).transpose(1, 2),
            }[self.part]()
        )
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize(("part", "over"), [("code", True), ("gate", True), ("router", True), ("places", False)])
def test_a_size_inside_that_stays_is_carried_over_unless_it_is_another_axis_of_the_signal(
    part: str, over: bool
) -> None:
    x = torch.randn(2, 6, 12)
    assert (carried(Inside(8, part), Inside(32, part), x=x) is not None) == over
    assert not carried(Inside(8, part), Inside(32, part), "sgd", x=x)


def drawn(model: nn.Module, draw: Callable[[Tensor], object]) -> nn.Module:
    """The model with each of its matrices drawn so."""
    for p in model.parameters():
        if p.ndim > 1:
            draw(p)
    return model


def chain(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def scaled(matrix: Tensor) -> None:
    nn.init.normal_(matrix, 0.0, 0.5 * matrix.shape[1] ** -0.5)


def fixed(matrix: Tensor) -> None:
    nn.init.normal_(matrix, 0.0, 0.1)


def test_an_authors_own_weights_are_carried_over_where_they_go_with_the_fan_in() -> None:
    for draw in (scaled, nn.init.kaiming_uniform_, nn.init.orthogonal_):
        assert carried(drawn(Net(2, 8), draw), drawn(Net(6, 16), draw), init="keep") is DEEPER
    for inputs in (12, 400):  # layers of one place need not have one fan-in
        x = torch.randn(2, inputs)
        assert carried(chain(inputs, 16), chain(inputs, 64), init="keep", x=x) is WIDER
        assert not carried(drawn(chain(inputs, 16), fixed), drawn(chain(inputs, 64), fixed), init="keep", x=x)
    assert carried(drawn(Net(2, 32), fixed), drawn(Net(6, 32), fixed), init="keep") is DEEPER, "nothing is wider"
    assert not carried(drawn(Net(2, 16), fixed), drawn(Net(6, 64), fixed), init="keep"), "the same at all sizes"
    assert not carried(drawn(Net(2, 16), scaled), drawn(Net(2, 64), fixed), init="keep")
    whole = Net(6, 16)
    with torch.no_grad():
        whole.up[0].weight += torch.outer(torch.ones(32), torch.randn(16))
    assert not carried(Net(2, 8), whole, init="keep"), "it looks trained"


class Tied(nn.Module):
    """Letters → the next one, by an embedding that is the readout too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token, self.block, self.norm = nn.Embedding(8, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        return self.norm(h + self.block(h).relu()) @ self.token.weight.T


def test_a_readout_that_is_the_embedding_too_has_no_rule_where_it_is_kept() -> None:
    """The rule scales the norm before it, which nothing draws."""
    x = torch.randint(8, (2, 5))
    assert carried(Tied(16), Tied(64), init="moments", x=x) is not None
    assert carried(Tied(16), Tied(64), init="keep", x=x) is None


def test_what_a_base_keeps_is_known_of_its_file_too(tmp_path: Path) -> None:
    found = dagscale.search(Net(2, 16), recipe(), init="keep", seeds=1)
    found.save(tmp_path / "base.json")
    again = dagscale.Base.load(tmp_path / "base.json")
    large = Net(6, 64)
    plans = [
        dagscale.plan(large, X[:2], base=base, recipe=recipe())
        for base in (found, again, pickle.loads(pickle.dumps(found)))
    ]
    assert (plans[0].init, plans[0].law, plans[0].depth) == ("keep", "none", "completep")
    assert plans[0].parameters == plans[1].parameters == plans[2].parameters
    fixed_too = dagscale.plan(drawn(Net(6, 64), fixed), X[:2], base=found, recipe=recipe())
    assert fixed_too.law == "short-run"
    raw = json.loads((tmp_path / "base.json").read_text())
    raw["network"]["own_rms"]["stem.weight"] = "wide"
    with pytest.raises(PlanError, match="no number of its network"):
        dagscale.Base.from_json(json.dumps(raw))


def test_a_part_that_is_initialised_alone_is_no_case_for_it() -> None:
    assert planned(Net(2, 8), Net(6, 16), reset="head").width == "none"


def test_several_bases_are_measured() -> None:
    plan = dagscale.plan(
        Net(6, 16), X[:2], base=[(Net(2, 8), X[:2]), (Net(3, 8), X[:2])], base_lr=[0.01, 0.01], recipe=recipe()
    )
    assert (plan.law, plan.width) == ("short-run", "none")


def test_a_graph_read_from_a_file_is_enough_to_tell() -> None:
    base = network(Net(2, 8))
    again = Graph.from_json(base.graph.to_json())
    assert way_over(Network(again, base.recipe, None, None, 0), network(Net(6, 16)), INITS["moments"]) is DEEPER
