"""Set-ups and kinds of networks that tools forget: read as counted by hand, drawn as their plain twins, or refused."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.fixtures import tail_code, tail_kinds
from tests.fixtures.oracle import fake_tensors, of_model, of_process, survivors
from tests.fixtures.tail import GROUPED, ROWS, TAIL, Net, Tail, process_group
from torch import nn

import dagscale
from dagscale.checking.family import members
from dagscale.graph.roles import roles
from dagscale.planning.prepare import example_inputs
from dagscale.scaling.width import width_scaling
from dagscale.tracing.forward import plain_parameters

assert None not in (tail_kinds.LISTED, tail_code.LISTED), "importing them fills TAIL"
SAME = 0.15
"""How far apart standard deviations may be: a routed expert sees its own rows alone, bfloat16 rounds."""

NOT_DRAWN = {
    "batch_statistics_of_one_example": "refused",
    "steps_in_the_backward": "only what trains is refused",
    "sharded": "what is drawn cannot be compared on a shard",
}
ANOTHER_NOTE = "only the branch taken was seen"


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """What the first plan imports adds filters of warnings, once a process."""
    dagscale.plan(Net(), recipe=dagscale.Recipe(**ROWS), law="none", base_lr=0.1)


@pytest.fixture(autouse=True)
def group(request: pytest.FixtureRequest) -> Iterator[None]:
    params = getattr(request.node, "callspec", None)
    with process_group() if params is not None and params.params.get("name") in GROUPED else nullcontext():
        yield


def made(make: Any) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = make()
    return model


def inputs_of(name: str, model: nn.Module, recipe: dagscale.Recipe) -> Any:
    inputs = example_inputs(model, recipe)
    return inputs.to("meta") if name == "without_values" else inputs


def state(name: str, model: nn.Module) -> Any:
    return of_process() if name == "sharded" else (of_model(model), of_process())


def with_gradient(model: nn.Module, recipe: dagscale.Recipe) -> set[str]:
    """Names of the parameters that training moves."""
    from dagscale.training.engine import batch_loss

    batch_loss(model, recipe, recipe.example.to(model)).backward()  # type: ignore[no-untyped-call]
    return {n for n, p in plain_parameters(model).items() if p.grad is not None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TAIL)
def test_read_as_counted_by_hand(name: str) -> None:
    case: Tail = TAIL[name]
    model, recipe = made(case.build), dagscale.Recipe(**case.recipe)
    x, before, alive = inputs_of(name, model, recipe), state(name, model), fake_tensors()
    if "trace" in case.refused:
        with pytest.raises(dagscale.DagscaleError, match=case.refused["trace"]):
            dagscale.trace(model, x)
    else:
        graph = dagscale.trace(model, x)
        assert {use.name: use.in_degree for use in graph.layers} == case.layers
        told = [note for note in graph.notes if ANOTHER_NOTE not in note]
        assert [case.note in note for note in told] == [True] * bool(case.note), told
    assert state(name, model) == before
    assert survivors(alive) == []
    if not case.refused:
        reached = {p.name for p in graph.parameters if p.reached and p.trainable}
        seen = with_gradient(model, recipe)
        assert seen == reached if not case.note else seen < reached


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*TAIL} - {*NOT_DRAWN}))
def test_drawn_as_the_plain_twin(name: str) -> None:
    """Standard deviations measured on data, or the refusal; nothing is changed either way."""
    case: Tail = TAIL[name]
    model, twin = made(case.build), made(case.twin)
    recipe, plain = dagscale.Recipe(**case.recipe), dagscale.Recipe(**case.plain)
    before, alive = state(name, model), fake_tensors()
    if "plan" in case.refused:
        with pytest.raises(dagscale.DagscaleError, match=case.refused["plan"]) as caught:
            dagscale.plan(model, inputs_of(name, model, recipe), recipe=recipe, law="none", base_lr=0.1)
        assert "\n" not in str(caught.value)
    else:
        plans = [dagscale.plan(m, recipe=r, law="none", base_lr=0.1) for m, r in ((model, recipe), (twin, plain))]
        drawn = [{name: p.init_std for name, p in plan.parameters.items()} for plan in plans]
        stay = [{name for name, std in stds.items() if std is None} for stds in drawn]
        assert stay[0] == stay[1]
        own, right = ({name: std for name, std in stds.items() if std is not None} for stds in drawn)
        assert own == pytest.approx(right, rel=SAME)
    assert state(name, model) == before
    assert survivors(alive) == []


SAMPLE = (
    "one_example_at_a_time",
    "none_and_flags",
    "loss_alone",
    "sparse_adjacency_as_a_buffer",
    "spikes_through_time",
)
"""``benchmarks/twins.py`` searches and plans them all."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLE)
def test_searched_as_the_plain_twin(name: str) -> None:
    case: Tail = TAIL[name]
    rates = [
        dagscale.search(made(make), dagscale.Recipe(**said), seeds=1).lr
        for make, said in ((case.build, case.recipe), (case.twin, case.plain))
    ]
    assert rates[0] == pytest.approx(rates[1], rel=0.42), "half an octave"


# --- what the kinds of fault found so far leave behind ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_state_of_an_optimiser_in_a_hook_is_put_back() -> None:
    net = Net()
    own = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    net.b.weight.register_post_accumulate_grad_hook(lambda p: own.step())
    dagscale.search(net, dagscale.Recipe(**ROWS), seeds=1)
    assert dict(own.state) == {}


@pytest.mark.filterwarnings("ignore")
def test_experts_that_two_examples_do_not_reach_are_drawn() -> None:
    """Nothing but the batch decides which of them a trace sees."""
    model, recipe = made(TAIL["experts_with_a_capacity"].build), dagscale.Recipe(**ROWS)
    seen = {p.name for p in dagscale.trace(model, example_inputs(model, recipe)).parameters if p.reached}
    assert not {"c.weight", "d.weight"} <= seen, "two examples are enough here: another seed"
    drawn = dagscale.plan(model, recipe=recipe, law="none", base_lr=0.1).parameters
    assert all(drawn[name].init_std for name in ("c.weight", "d.weight"))


def test_a_family_is_traced_on_what_shows_it() -> None:
    """A module of a family that is given alone is looked at as a plan looks at it."""
    model, recipe = made(TAIL["experts_with_a_capacity"].build), dagscale.Recipe(**ROWS)
    (first, _), _ = members([model, made(TAIL["experts_with_a_capacity"].build)], None, None, 0, recipe)
    assert {p.name for p in first.graph.parameters if p.reached} >= {"c.weight", "d.weight"}


def test_hooks_that_take_nothing_are_not_blamed_for_a_loss_without_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 1), nn.Softmax(-1))
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: None)
    x = torch.randn(8, 4)
    with pytest.raises(dagscale.DagscaleError, match="does not depend on the weights"):
        dagscale.search(model, (x, torch.zeros(8, 1)), loss=nn.functional.mse_loss, seeds=1)


def test_a_global_variable_of_pytorchs_own_is_there_after_a_trace() -> None:
    """Nested tensors make one when they are first used."""
    code = (
        "import torch, dagscale; from torch import nn\n"
        "class Rows(nn.Module):\n"
        "    def __init__(self): super().__init__(); self.a = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.a(torch.nested.nested_tensor_from_jagged(x, torch.tensor([0, 1, 3]))).values()\n"
        "net, x = Rows(), torch.randn(3, 4)\n"
        "print(dagscale.trace(net, x).notes, torch.equal(net(x), net.a(x)))\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert "left a tensor" not in done.stdout, done.stderr[-2000:]
    assert done.stdout.endswith("True\n"), done.stderr[-2000:]


class Skips(nn.Module):
    """Residual blocks that training leaves out at random, written with ``if``; four of ten channels to four classes."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(10, 16), nn.Linear(16, 4)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.draw = draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or self.draw() > 0.5:
                x = x + block(x.relu())
        out: torch.Tensor = self.head(x)
        return out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draw", [random.random, lambda: torch.rand(())], ids=["python", "torch"])
def test_layers_that_are_left_out_at_random_are_read_and_drawn(draw: Any) -> None:
    """By chance, one forward in sixteen has them all; from these seeds the first has not."""
    random.seed(1)
    torch.manual_seed(0)
    model, x = Skips(draw), torch.randn(2, 10)
    states = random.getstate(), torch.get_rng_state()
    graph = dagscale.trace(model, x)
    assert {use.name: use.in_degree for use in graph.layers} == {
        "stem": 1,
        **{f"blocks.{i}": 2 for i in range(4)},
        "head": 1,
    }
    assert any("leaves parts out at random" in note for note in graph.notes)
    assert (random.getstate(), bytes(torch.get_rng_state())) == (states[0], bytes(states[1]))
    assert all(module.training for module in model.modules())
    plan = dagscale.plan(model, recipe=dagscale.Recipe(**ROWS), law="none", base_lr=0.1)
    stds = [plan.parameters[f"blocks.{i}.weight"].init_std for i in range(4)]
    assert stds == pytest.approx([0.25] * 4, rel=0.4), "(2 · ½ / 16)^½, and less as the trunk grows"


def test_a_path_that_training_does_not_take_is_not_read() -> None:
    """Random numbers are drawn, and evaluation takes another head, but nothing is left out at random."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.train_head, self.other = nn.Linear(10, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x) + random.gauss(0, 0.1)
            head = self.train_head if self.training else self.other
            out: torch.Tensor = head(x)
            return out

    graph = dagscale.trace(Two(), torch.randn(2, 10))
    assert [use.name for use in graph.layers] == ["a", "train_head"]
    assert graph.notes == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["moments", "in-degree"])
def test_orthogonal_weights_stay_orthogonal(init: str) -> None:
    """At the values that they begin with, twice the parameter happens to be twice the weight."""
    make = torch.nn.utils.parametrizations.orthogonal
    model = nn.Sequential(make(nn.Linear(10, 16)), nn.ReLU(), make(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))
    plan = dagscale.plan(model, recipe=dagscale.Recipe(**ROWS), law="none", base_lr=0.1, init=init)
    plan.init_(model)
    for layer in (model[0], model[2]):
        weight = layer.weight.detach()
        assert torch.allclose(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-4)


class Equation(nn.Module):
    """A network and its derivative by the input: autograd's own, or by hand."""

    def __init__(self, by_hand: bool, width: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.by_hand = nn.Linear(10, width), nn.Linear(width, 4), by_hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.by_hand:
            h = self.a(x).tanh()
            gradient = ((1 - h.square()) * self.b.weight.sum(0)) @ self.a.weight
            out: torch.Tensor = self.b(h)
        else:
            x = x.detach().requires_grad_()
            out = self.b(self.a(x).tanh())
            (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out + 0.1 * gradient[:, :4]


@pytest.mark.filterwarnings("ignore")
def test_a_forward_that_takes_gradients_is_run_with_them() -> None:
    """Drawn as the network of which the gradient is taken; measured by every law that runs forwards and searched as the
    one that is written by hand, from the same weights; and checked."""
    auto, twin = made(lambda: Equation(False)), made(lambda: Equation(True))
    recipe = dagscale.Recipe(**ROWS, optimizer="sgd")

    class Alone(Equation):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).tanh())  # type: ignore[no-any-return]

    plan, other = (dagscale.plan(m, recipe=recipe, law="none", base_lr=0.1) for m in (auto, made(lambda: Alone(False))))
    for name in ("a.weight", "b.weight"):
        assert plan.parameters[name].init_std == pytest.approx(other.parameters[name].init_std, rel=SAME)
    for law in ("short-run", "function-change"):
        base = made(lambda: Equation(False)), torch.randn(2, 10)
        plan, other = (
            dagscale.plan(m, recipe=recipe, law=law, base_lr=0.1, base=base, init="keep") for m in (auto, twin)
        )
        assert plan.lr == pytest.approx(other.lr, rel=0.2)
    found = [dagscale.search(m, recipe, seeds=1, init="keep").lr for m in (auto, twin)]
    assert found[0] == pytest.approx(found[1], rel=0.42)
    family = [Equation(False, width) for width in (8, 16)]
    report = dagscale.check(family, recipe=recipe, base_lr=0.1, law="none", seeds=2)
    assert {"a", "b"} <= {level.layer for level in report.levels}


@pytest.mark.parametrize("looks", [False, True])
def test_tokens_in_a_one_hot_code_are_a_signal(looks: bool) -> None:
    """On fake tensors a comparison makes the code, for real a scatter; a mask is none."""

    class OneHot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            code = torch.nn.functional.one_hot(tokens, 12).float()
            if looks:
                assert float(code.sum()) == tokens.numel()
            kept = (tokens != 0)[..., None]
            out: torch.Tensor = self.b((self.a(code).relu() * kept).mean(1))
            return out

    graph = dagscale.trace(OneHot(), torch.randint(0, 12, (3, 5)))
    assert [use.name for use in graph.layers] == ["a", "b"]
    assert len(graph.vertices) == 2


def test_weights_made_of_several_alike_are_all_weights() -> None:
    """A mean and a spread, as Bayesian layers have them: both are of the layer, and scale with its width."""

    class Drawn(nn.Module):
        def __init__(self, into: int, out: int) -> None:
            super().__init__()
            self.mean, self.spread = (nn.Parameter(torch.randn(out, into)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.mean + nn.functional.softplus(self.spread) * torch.randn_like(self.mean)
            return nn.functional.linear(x, weight)

    def graph(width: int) -> Any:
        layers = Drawn(10, width), nn.ReLU(), Drawn(width, width), nn.ReLU(), Drawn(width, 4)
        return dagscale.trace(nn.Sequential(*layers), torch.randn(2, 10))

    target = graph(32)
    assert list(roles(target).values()) == ["input", "input", "hidden", "hidden", "readout", "readout"]
    found = width_scaling(graph(8), target, "adamw")
    assert [scaling.lr for scaling in found.values()] == [1, 1, 0.25, 0.25, 0.25, 0.25]
