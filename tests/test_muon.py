"""Muon for hidden matrices and AdamW for the rest, in one optimiser; shape factors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from tests.fixtures.residual import ResNet, Transformer, example, losses
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import dagscale
from dagscale.errors import DagscaleError, OptimizerError, UnknownNameError
from dagscale.graph.matrices import hidden_matrices
from dagscale.graph.roles import roles
from dagscale.models.vit import ViT
from dagscale.training.muon import MuonWithAdamW, matrix_shape, shape_correction, shape_factor
from dagscale.training.optimizers import OPTIMIZERS, resolve

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def groups(model: nn.Module, lr: float = 0.01) -> list[dict[str, Any]]:
    """One group a parameter, hidden matrices from the graph."""
    x = example(model)[0]
    found = roles(dagscale.trace(model, x.to(next(model.parameters()).dtype) if x.is_floating_point() else x))
    return [
        {"params": [p], "lr": lr, "name": name, "matrix": found[name] == "hidden" and p.dim() > 1}
        for name, p in model.named_parameters()
    ]


def with_grad(*shape: int, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(shape, generator=generator))
    p.grad = torch.randn(shape, generator=generator)
    return p


def stepped(p: nn.Parameter, steps: int = 2, **group: Any) -> Tensor:
    """The parameter after steps along one gradient, as ours takes them."""
    made = MuonWithAdamW([{"params": [p], "matrix": True, **group}], lr=0.1)
    for _ in range(steps):
        made.step()
    return p.detach()


def torch_muon(weight: Tensor, grad: Tensor, steps: int = 2) -> Tensor:
    """The same by torch's own Muon, for a matrix."""
    p = nn.Parameter(weight.detach().clone())
    p.grad = grad.clone()
    made = torch.optim.Muon([p], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        made.step()
    return p.detach()


# --- one optimiser -----------------------------------------------------------------------------------------------


def test_it_is_both_at_once() -> None:
    """Against torch's Muon and AdamW, each over its own parameters."""
    torch.manual_seed(0)
    ours, theirs = Transformer(), Transformer()
    theirs.load_state_dict(ours.state_dict())
    listed = groups(ours)
    hidden = {g["name"] for g in listed if g["matrix"]}
    assert hidden == {f"blocks.{i}.{n}.weight" for i in range(2) for n in ("q", "k", "v", "o", "up", "down")}
    matrices = [p for n, p in theirs.named_parameters() if n in hidden]
    rest = [p for n, p in theirs.named_parameters() if n not in hidden]
    both = [
        torch.optim.Muon(matrices, lr=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    ]

    class Both:
        def zero_grad(self) -> None:
            theirs.zero_grad()

        def step(self) -> None:
            for optimizer in both:
                optimizer.step()

    ours.double(), theirs.double()
    seen = losses(ours, resolve("muon").make(listed), steps=10)
    assert torch.equal(seen, losses(theirs, Both(), steps=10))
    assert seen[-1] != seen[0]


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_where_it_was_saved(way: str) -> None:
    torch.manual_seed(0)
    model = ResNet().double()
    made = resolve("muon").make(groups(model))
    losses(model, made, steps=3)
    if way == "state_dict":
        other = copy.deepcopy(model)
        resumed = resolve("muon").make(groups(other))
        resumed.load_state_dict(copy.deepcopy(made.state_dict()))
    elif way == "pickle":
        other, resumed = pickle.loads(pickle.dumps((model, made)))
    else:
        other, resumed = copy.deepcopy((model, made))
    assert torch.equal(losses(other, resumed, steps=3), losses(model, made, steps=3))


def test_schedulers_and_zero_grad() -> None:
    model = Transformer()
    made = resolve("muon").make(groups(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.5**step)
    losses(model.double(), made, steps=1)
    schedule.step()
    assert {group["lr"] for group in made.param_groups} == {0.005}
    assert any(p.grad is not None for p in model.parameters())
    made.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    made.step()  # nothing to do
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_closure_is_called_with_gradients() -> None:
    model = nn.Linear(3, 2)
    made = MuonWithAdamW([{"params": [model.weight], "matrix": True}, {"params": [model.bias]}], lr=0.1)

    def closure() -> Tensor:
        made.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss.detach()

    assert float(made.step(closure)) > float(made.step(closure))


# --- what a matrix is ----------------------------------------------------------------------------------------------


def test_a_convolution_is_flattened_before_any_shape_factor() -> None:
    p = with_grad(4, 3, 3, 3)
    expected = torch_muon(p.flatten(1), p.grad.flatten(1)).view(4, 3, 3, 3)  # type: ignore[union-attr]
    assert torch.equal(stepped(p), expected)


@pytest.mark.parametrize("transposed", ["channels last", "transposed"])
def test_memory_format_does_not_matter(transposed: str) -> None:
    shape = (4, 3, 3, 3) if transposed == "channels last" else (4, 6)
    p, q = with_grad(*shape), with_grad(*shape)
    q.data = q.data.to(memory_format=torch.channels_last) if len(shape) == 4 else q.data.t().contiguous().t()
    assert not q.is_contiguous()
    assert torch.equal(stepped(p), stepped(q))
    assert not q.is_contiguous()


def test_fused_projections_are_split_by_rows() -> None:
    p = with_grad(12, 5)
    parts = [torch_muon(w, g) for w, g in zip(p.split([4, 4, 4]), p.grad.split([4, 4, 4]), strict=True)]  # type: ignore[union-attr]
    assert torch.equal(stepped(p, split=(4, 4, 4)), torch.cat(parts))


def test_stacked_experts_are_a_matrix_each() -> None:
    p = with_grad(3, 4, 5)
    parts = [torch_muon(w, g) for w, g in zip(p.unbind(), p.grad.unbind(), strict=True)]  # type: ignore[union-attr]
    assert torch.equal(stepped(p, stacked=True), torch.stack(parts))


# --- shape factors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16), (6, 2, 3, 3)])
def test_factor_is_torch_s(shape: tuple[int, ...], implementation: str) -> None:
    """One step of torch's Muon moves a matrix by rate × factor × an orthogonal matrix: against a square one's."""
    p = with_grad(*shape)
    before = p.detach().clone()
    made = MuonWithAdamW([{"params": [p], "matrix": True}], lr=1.0, weight_decay=0.0, adjust_lr_fn=implementation)
    made.step()
    step = (before - p.detach()).flatten(1)
    assert p.grad is not None
    bare = torch.optim._muon._zeropower_via_newtonschulz(p.grad.flatten(1), (3.4445, -4.7750, 2.0315), 5, 1e-7)
    ratio = step.norm() / bare.float().norm()
    assert float(ratio) == pytest.approx(
        shape_factor(shape, implementation), rel=0.03
    )  # nesterov's first step, bfloat16


def test_corrections() -> None:
    assert shape_correction((8, 32)) == pytest.approx(0.5)  # √min(1, out/in)
    assert shape_correction((32, 8)) == 1
    for shape in ((8, 8), (8, 32), (32, 8), (8, 4, 3, 3)):
        out, into = matrix_shape(shape)
        for implementation in ("original", "match_rms_adamw", "spectral"):
            whole = shape_factor(shape, implementation) * shape_correction(shape, implementation)
            assert whole == pytest.approx(math.sqrt(out / into))
    for m in (2, 4):
        for shape in ((8, 8), (8, 32), (32, 8)):
            grown = tuple(n * m for n in shape)
            assert shape_correction(grown, "match_rms_adamw", shape) == pytest.approx(m**-0.5)
            assert shape_correction(grown, "original", shape) == pytest.approx(1)


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: MuonWithAdamW([{"params": [with_grad(3)], "matrix": True}]), OptimizerError, "is no matrix"),
        (lambda: MuonWithAdamW([{"params": [with_grad(6, 2)], "matrix": True, "split": (2, 2)}]), OptimizerError,
         "6 rows"),
        (lambda: MuonWithAdamW([with_grad(3)], adjust_lr_fn="rms"), OptimizerError, "torch's Muon knows"),
        (lambda: shape_factor((3, 4), "muonlight"), UnknownNameError, "Muon implementation"),
        (lambda: resolve("muon", {"ns": 3}).make([{"params": [with_grad(3)]}]), OptimizerError, "check its settings"),
    ],
)  # fmt: skip
def test_refused_in_one_line(call: Any, error: type[DagscaleError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_torch_without_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(OptimizerError, match=r"install torch 2\.9 or newer") as caught:
        resolve("muon").make([{"params": [with_grad(3)]}])
    assert "\n" not in str(caught.value)


def test_a_group_that_is_refused_is_not_added() -> None:
    made = MuonWithAdamW([with_grad(3)])
    with pytest.raises(OptimizerError):
        made.add_param_group({"params": [with_grad(2, 2), with_grad(4)], "matrix": True})
    assert len(made.param_groups) == 1


def test_record() -> None:
    record = OPTIMIZERS["muon"]
    assert (record.step, record.decay, record.weight_decay) == ("spectral", "decoupled", 0.1)


# --- weights that are several matrices --------------------------------------------------------------------------


class Experts(nn.Module):
    """Four experts in two stacks, mixed by a router."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, 3)
        self.router = nn.Linear(width, 4)
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) / width)
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) / width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out = torch.bmm(torch.bmm(x.expand(4, *x.shape), self.up).relu(), self.down)
        shares = self.router(x).softmax(-1).T[..., None]
        result: Tensor = self.last(x + (shares * out).sum(0))
        return result


def muon_groups(make: Any, x: Tensor, **more: Any) -> tuple[dagscale.Plan, dict[str, dict[str, Any]]]:
    recipe = dagscale.Recipe(optimizer="muon", weight_decay=0.1)
    model = make(4)
    plan = dagscale.plan(
        model, x, base=(make(1), x), base_lr=0.01, recipe=recipe, law="none", init="in-degree", width="mup", **more
    )
    groups = plan.param_groups(model)
    return plan, {name: group for group in groups for name in group["param_names"]}


def test_a_plan_knows_stacked_experts() -> None:
    plan, groups = muon_groups(lambda size: Experts(8 * size), torch.randn(5, 6))
    assert groups["up"]["stacked"] is groups["down"]["stacked"] is True
    assert not groups["router.weight"].get("stacked")
    # each expert is four times as large on both sides: m^-½ under match_rms_adamw, as for any matrix
    assert plan.parameters["up"].lr == pytest.approx(0.01 / 2)
    assert dagscale.Plan.from_json(plan.to_json()) == plan
    plan.optimizer(Experts(32))


def test_a_plan_knows_queries_keys_and_values_in_one_projection() -> None:
    def make(size: int) -> nn.Module:
        return ViT(2, shape=(3, 8, 8), classes=4, width=16 * size, heads=2 * size)

    plan, groups = muon_groups(make, torch.randn(2, 3, 8, 8))
    assert groups["blocks.1.qkv.weight"]["split"] == (64, 64, 64)
    assert "split" not in groups["blocks.1.up.weight"]
    assert plan.parameters["blocks.1.qkv.weight"].lr == pytest.approx(0.01 / 2)
    model = make(4)
    optimizer = plan.optimizer(model)
    before = model.blocks[0].qkv.weight.detach().clone()  # type: ignore[union-attr, index]
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    moved = (model.blocks[0].qkv.weight.detach() - before).split(64)  # type: ignore[union-attr, index]
    sizes = [float(torch.linalg.matrix_norm(part, 2)) for part in moved]
    assert min(sizes) > 0.5 * max(sizes)  # as a whole, the queries' step would be lost beside the values'


class Attending(nn.Module):
    """Attention with queries of three times the width, from a projection of their own or from one for all three."""

    def __init__(self, make_queries: str) -> None:
        super().__init__()
        self.way = make_queries
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.q, self.k, self.v = (nn.Linear(8, 24, bias=False) for _ in range(3))
        self.query_norm, self.key_norm = nn.RMSNorm(8), nn.RMSNorm(8)
        self.out = nn.Linear(8 if make_queries.startswith("one") else 24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.way.startswith("one"):
            q, k, v = self.q(x).chunk(3, -1)
            if "norms" in self.way:
                q, k = self.query_norm(q), self.key_norm(k)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
            if "tanh" in self.way:
                q = q.tanh()
            if "read elsewhere" in self.way:
                x = x + q[..., :8]
        result: Tensor = self.last(x + self.out(scaled_dot_product_attention(q, k, v)))
        return result


@pytest.mark.parametrize(
    ("way", "split"),
    [("own", 1), ("own, tanh", 1), ("own, read elsewhere", 1), ("one for all", 3), ("one for all, norms", 3)],
)
def test_one_projection_is_known_by_making_the_keys_too(way: str, split: int) -> None:
    graph = dagscale.trace(Attending(way), torch.randn(2, 4, 5))
    assert hidden_matrices(graph)["q.weight"].split == split


class Transposed(nn.Module):
    """GPT-2's layers: weights are ``in × out``, and one makes queries, keys and values side by side in its columns."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 3)
        self.qkv = nn.Parameter(torch.randn(width, 3 * width) / width**0.5)
        self.up = nn.Parameter(torch.randn(width, 4 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(4 * width, width) / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = (x @ self.qkv).chunk(3, -1)
        x = x + scaled_dot_product_attention(q, k, v)
        out: Tensor = self.last(x + (x @ self.up).relu() @ self.down)
        return out


@pytest.mark.parametrize("implementation", ["original", "match_rms_adamw"])
def test_transposed_layers_are_stepped_as_the_matrices_that_they_are(implementation: str) -> None:
    """One step of a transposed weight is the transposed step of the weight written ``out × in``, its parts apart."""
    plan, groups = muon_groups(lambda size: Transposed(8 * size), torch.randn(2, 4, 5))
    assert groups["qkv"]["split"] == (32, 32, 32)
    assert all(groups[name].get("transposed") for name in ("qkv", "up", "down"))
    assert not groups["first.weight"].get("transposed")
    assert dagscale.Plan.from_json(plan.to_json()) == plan
    for name, shape in (("qkv", (32, 96)), ("up", (32, 128)), ("down", (128, 32))):
        told = {key: groups[name].get(key) for key in ("split", "transposed")} | {"adjust_lr_fn": implementation}
        p, q = with_grad(*shape), with_grad(*shape)
        q = nn.Parameter(q.detach().T.contiguous())
        q.grad = p.grad.T.contiguous()  # type: ignore[union-attr]
        assert torch.equal(stepped(p, **told), stepped(q, **{**told, "transposed": False}).T)


def test_the_rate_of_a_transposed_layer_is_that_of_the_layer_the_right_way_round() -> None:
    recipe = dagscale.Recipe(optimizer="muon", weight_decay=0.1, adjust_lr_fn="original")
    x = torch.randn(2, 4, 5)
    plan = dagscale.plan(
        Transposed(32), x, base=(Transposed(8), x), base_lr=0.01, recipe=recipe, law="none", init="in-degree",
        width="mup",
    )  # fmt: skip
    for name, (out, into) in (("qkv", (32, 32)), ("up", (128, 32)), ("down", (32, 128))):
        expected = shape_correction((out, into), "original", (out // 4, into // 4))
        assert plan.parameters[name].lr == pytest.approx(0.01 * expected), name
