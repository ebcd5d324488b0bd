"""Answers that cannot be right are refused; trained weights and meant zeros are respected; data are sampled fairly."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import PlanError, SearchError
from dagscale.graph.roles import frequencies
from dagscale.models.targets import load
from dagscale.models.timm import declare_torchvision_ops
from dagscale.planning.trained import biased_by_design, by_design, looking_trained, zero_by_design
from dagscale.tracing import trace

torch.manual_seed(0)
X = torch.randn(96, 10)
Y = (X @ torch.randn(10, 4)).argmax(1)
VALUE = X[:, 0] * 2


def net(outputs: int = 4) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, outputs))


def search(model: nn.Module, data: Any = (X, Y), **more: Any) -> dagscale.Base:
    return dagscale.search(model, data, **{"steps": 16, "batch_size": 16, "seeds": 1, **more})


def plan(model: nn.Module, data: Any = (X, Y), **more: Any) -> dagscale.Plan:
    given = {"loss": F.cross_entropy, "steps": 16, "batch_size": 16, **more}
    return dagscale.plan(model, data[0][:4], data=data, **given)


def both_refuse(match: str, model: nn.Module, data: Any, **more: Any) -> None:
    for call in (search, plan):
        with pytest.raises(dagscale.DagscaleError, match=match) as caught:
            call(model, data, **more)
        assert "\n" not in str(caught.value)


# --- targets that spread --------------------------------------------------------------------------------------------


def own_square(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).pow(2).mean()


def of_probabilities(out: Tensor, y: Tensor) -> Tensor:
    return (out.sigmoid() - y.float()).abs().mean()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.l1_loss, own_square, of_probabilities])
@pytest.mark.parametrize(("outputs", "squeezed", "column"), [(1, False, False), (1, True, True), (16, False, False)])
def test_a_target_that_spreads_over_the_output(loss: Any, outputs: int, squeezed: bool, column: bool) -> None:
    """(n, 1) against (n,); (n,) against (n, 1); (n, n) against (n,): PyTorch says at most a warning."""
    model: nn.Module = nn.Sequential(net(outputs), nn.Flatten(0)) if squeezed else net(outputs)
    y = VALUE[:, None] if column else VALUE
    both_refuse(r"the output is .* and the target .*: together they spread", model, (X, y), loss=loss)


@pytest.mark.parametrize("loss", [
    lambda out, y: F.mse_loss(out, y.reshape(-1, 1)),
    lambda out, y: F.mse_loss(out.squeeze(1), y),
    lambda out, y: (out - y[:, None]).abs().mean(),
])  # fmt: skip
def test_a_loss_that_sees_to_the_shapes_is_let_pass(loss: Any) -> None:
    assert plan(net(1), (X, VALUE), loss=loss).lr > 0


def test_several_outputs_against_one_column_are_meant() -> None:
    """Quantile regression: (n, 3) against (n, 1)."""
    levels = torch.tensor([0.1, 0.5, 0.9])

    def pinball(out: Tensor, y: Tensor) -> Tensor:
        return torch.maximum(levels * (y - out), (levels - 1) * (y - out)).mean()

    assert search(net(3), (X, VALUE[:, None]), loss=pinball).lr > 0


# --- losses that say nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [net(1), nn.Sequential(nn.Unflatten(1, (1, 10)), nn.Conv1d(1, 1, 3))])
def test_cross_entropy_over_one_column(model: nn.Module) -> None:
    y = torch.zeros((96,) if isinstance(model[0], nn.Linear) else (96, 8), dtype=torch.long)  # type: ignore[index]
    both_refuse("the loss is 0 whatever the output, which is one column", model, (X, y))


NOTHING = "has no gradient|the loss does not depend on any trainable parameter"


def test_a_loss_without_gradient() -> None:
    column = nn.Sequential(net(1), nn.Softmax(1))
    both_refuse(NOTHING, column, (X, (VALUE[:, None] > 0).float()), loss=F.binary_cross_entropy)
    both_refuse(NOTHING, net(), (X, Y), loss=lambda out, y: (out.round() - 1).pow(2).mean())
    both_refuse(NOTHING, net(), (X, Y), loss=lambda out, y: (out.argmax(1) != y).float().mean())
    both_refuse(NOTHING, net(), (X, Y), loss=lambda out, y: (out * 0).sum())


def test_a_triplet_loss_that_is_0_on_some_batches_only_is_let_pass() -> None:
    calls = 0

    def loss(out: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(out, y) * (calls > 2)

    assert search(net(), loss=loss).lr > 0


def test_a_metric_that_no_rate_changes() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
        for group in optimizer.param_groups:
            group["lr"] = 0.01  # sets its own
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    with pytest.raises(SearchError, match="at every rate"):
        search(net(), train_step=step)


# --- what raises, and when ------------------------------------------------------------------------------------------


class Picky(nn.Module):
    """Its forward does not take large outputs."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.inner, self.most = net(), most

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        if float(out.detach().abs().max()) > self.most:
            raise ValueError("outputs left the domain")
        return out


def test_a_forward_that_raises_at_a_rate_of_ours_is_a_diverged_run() -> None:
    right = search(net())
    assert abs(math.log2(search(Picky(100)).lr / right.lr)) < 0.51
    assert abs(math.log2(plan(Picky(100)).lr / plan(net()).lr)) < 0.51
    with pytest.raises(SearchError, match="outputs left the domain"):
        search(Picky(100), grid=[1e4, 1e5, 1e6], widen=0)


def test_at_initialisation_it_is_the_users_own_error() -> None:
    both_refuse("raised ValueError: outputs left the domain", Picky(0.1), (X, Y))


# --- trained weights ------------------------------------------------------------------------------------------------


class Pretrained(nn.Module):
    """A backbone, and a head for some number of classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(10, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


MANY = torch.randn(512, 10)
OLD = torch.randn(10, 6)


def pretrained() -> Pretrained:
    """Trained to tell six classes."""
    torch.manual_seed(2)
    model, y = Pretrained(6), (MANY @ OLD).argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-3)
    for _ in range(200):
        rows = torch.randperm(512)[:64]
        optimizer.zero_grad()
        F.cross_entropy(model(MANY[rows]), y[rows]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("target", ["mlp:1_01_001?width=64", "resnet:8", "vit:2", "nb201:3_24_440?channels=8&cells=1"])
def test_fresh_weights_do_not_look_trained(target: str) -> None:
    model, x = load(target)
    assert looking_trained(model, trace(model, x)) == []
    planned = dagscale.plan(model, x, base_lr=0.1, law="none")
    planned.init_(model)
    assert looking_trained(model, trace(model, x)) == []
    assert not any("trained" in note for note in planned.notes)


def test_trained_weights_are_told_of_before_they_are_drawn_anew() -> None:
    model = pretrained()
    graph = trace(model, MANY[:4])
    assert {"backbone.1.weight", "backbone.3.weight"} <= set(looking_trained(model, graph))
    data = (MANY, (MANY @ OLD).argmax(1))
    for result in (plan(model, data), search(model, data)):
        (note,) = [note for note in result.notes if "looks trained" in note]
        assert "init='keep'" in note
        assert "reset=" in note
    assert "looks trained" in str(plan(model, data))
    kept = plan(model, data, init="keep", law="none", base_lr=0.1)
    assert not any("looks trained" in note for note in kept.notes)


def test_a_layer_drawn_far_smaller_than_the_others_is_told_of() -> None:
    """As a policy's head is, that is to begin near nothing."""
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    asked: dict[str, Any] = {"init": "in-degree-standard", "base_lr": 0.1, "law": "none"}
    assert not any("another spread" in note for note in dagscale.plan(model, MANY[:4], **asked).notes)
    nn.init.orthogonal_(model[4].weight, 0.01)
    (note,) = [n for n in dagscale.plan(model, MANY[:4], **asked).notes if "another spread" in n]
    assert "draws 4.weight with 16 times another spread" in note


class Remembering(nn.Module):
    """An LSTM and a readout of its last output: (n, 5, 6) → (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


@pytest.mark.parametrize("whole", [True, False])
def test_orthogonal_weights_that_are_drawn_anew_are_told_of(whole: bool) -> None:
    """The recurrent weight as a whole, or each gate's."""
    model, x = Remembering(), torch.randn(8, 5, 6)
    assert not any("orthogonal" in note for note in dagscale.plan(model, x, base_lr=0.1, law="none").notes)
    for block in [model.lstm.weight_hh_l0] if whole else model.lstm.weight_hh_l0.chunk(4):
        nn.init.orthogonal_(block.data)
    (note,) = [n for n in dagscale.plan(model, x, base_lr=0.1, law="none").notes if "orthogonal" in n]
    assert "drew it: lstm.weight_hh_l0; " in note
    kept = dagscale.plan(model, x, base_lr=0.1, law="none", keep="lstm.weight_hh_l0")
    assert not any("orthogonal" in note for note in kept.notes)


def test_a_kept_model_keeps_its_loss() -> None:
    model, y = pretrained(), (MANY @ OLD).argmax(1)
    new = (MANY @ (OLD + 0.5 * torch.randn(10, 6))).argmax(1)
    model.eval()
    before = F.cross_entropy(model(MANY), y).item()
    planned = plan(model, (MANY, new), init="keep", batch_size=32, steps=160)
    planned.init_(model)
    assert F.cross_entropy(model(MANY), y).item() == before < 0.3
    found = search(model, (MANY, new), init="keep", batch_size=32, steps=160)
    assert abs(math.log2(planned.lr / found.lr)) < 1.01
    assert found.notes == ()


def test_reset_draws_the_head_alone_on_the_features_of_the_old_backbone() -> None:
    model = pretrained()
    model.head = nn.Linear(32, 4)
    data = (MANY, (MANY @ torch.randn(10, 4)).argmax(1))
    more: dict[str, Any] = {"lr_scale": {"backbone": 0.1}, "optimizer": "adamw", "steps": 160, "batch_size": 32}
    planned = plan(model, data, reset="head", **more)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    planned.init_(model)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"head.weight", "head.bias"}
    moment = F.linear(model.backbone(MANY), model.head.weight).square().mean()
    assert 0.5 < moment < 2, "measured on the features of the backbone as it is"
    rates = {n: p.lr for n, p in planned.parameters.items()}
    assert rates["backbone.0.weight"] == pytest.approx(0.1 * rates["head.weight"])
    found = search(model, data, reset="head", **more)
    assert abs(math.log2(planned.lr / found.lr)) < 1.01
    assert search(model, data, only="head", keep="backbone", **more).lr == found.lr


def test_a_factor_on_the_rate_is_seen_by_the_measurement() -> None:
    """Only the head moves at a backbone's rate of next to nothing: the measured rate is that of the head alone."""
    model = pretrained()
    still = plan(model, reset="head", lr_scale={"backbone": 1e-6}).lr
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    assert abs(math.log2(still / plan(model, reset="head").lr)) < 0.51


@pytest.mark.parametrize(
    "names", [{"only": "nothing"}, {"keep": "x.*"}, {"reset": "heads"}, {"only": "0", "reset": "0"}]
)
def test_a_search_refuses_names_of_nothing(names: dict[str, str]) -> None:
    with pytest.raises(PlanError, match=r"names no parameter|give one of them"):
        search(net(), **names)
    with pytest.raises(SearchError, match="plan= brings its own"):
        search(net(), plan=plan(net()), **names)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"keep": "0", "reset": "0"}, "reset='0' asks to initialise what keep= says to leave"),
        ({"keep": "*", "only": "2.bias"}, "only='2.bias' asks to initialise what keep= says to leave"),
        ({"reset": []}, "reset= is empty"),
        ({"only": ()}, "only= is empty"),
        ({"reset": "2", "init": "keep"}, "init 'keep' draws nothing, and reset= asks for a draw"),
        ({"only": "2", "init": "keep"}, "init 'keep' draws nothing, and only= asks for a draw"),
    ],
)
def test_what_contradicts_itself_is_refused(said: dict[str, Any], why: str) -> None:
    both_refuse(why, net(), (X, Y), loss=F.cross_entropy, **said)


def test_what_is_kept_is_an_exception_of_what_is_reset() -> None:
    drawn = plan(net(), reset=["0", "2"], keep="2.bias").parameters
    assert [name for name, p in drawn.items() if p.init_std is None] == ["2.bias"]


def test_an_init_that_draws_nothing_does_not_stand_in_for_one_that_does() -> None:
    """Of several, the one that cannot do what is asked for is left out, and named."""
    found = search(net(), init=["keep", "moments"], reset="2")
    assert found.init == "moments"
    assert "none under keep (init 'keep' draws nothing" in found.notes[0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(10, 16), nn.Linear(10, 16), nn.Linear(16, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.a(x).relu() + self.b(x))
        return out


@pytest.mark.parametrize("name", ["b.weight", "b", "b.*"])
def test_a_tied_weight_goes_by_each_of_its_names(name: str) -> None:
    own = plan(Tied(), reset=name).parameters
    assert {n for n, p in own.items() if p.init_std is not None} - {"b.bias"} == {"a.weight"}
    assert plan(Tied(), keep=name).parameters["a.weight"].init_std is None
    rates = {n: p.lr for n, p in plan(Tied(), lr_scale={name: 0.5}).parameters.items()}
    assert rates["a.weight"] == pytest.approx(0.5 * rates["a.bias"])
    model = Tied()
    (group,) = plan(model).param_groups(model, only=name)
    assert "a.weight" in group["param_names"]


# --- zeros ----------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank that begins at 0, a gate at 0 and a trained readout."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(10, 24), nn.Linear(10, 3, bias=False), nn.Linear(3, 24, bias=False)
        self.out = nn.Linear(24, 4)
        self.base.requires_grad_(False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.base(x) + self.up(self.down(x))))
        return out


class ZeroEnds(nn.Module):
    """Residual branches that end in zeros, and a norm gain at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(10, 16), nn.Linear(16, 4)
        self.first = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        self.second = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))
        nn.init.zeros_(self.first[2].weight)
        nn.init.zeros_(self.second[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.first(x)
        out: Tensor = self.out(x + self.second(x))
        return out


@pytest.mark.parametrize(("model", "zero"), [(Adapted(), "up.weight"), (ZeroEnds(), "first.2.weight")])
def test_zeros_by_design_stay(model: nn.Module, zero: str) -> None:
    assert zero_by_design(model, trace(model, X[:4])) == {zero}
    for more in ({}, {"optimizer": "adamw"}, {"init": "in-degree"}):
        planned = plan(model, **more)
        assert planned.parameters[zero].init_std is None
        (note,) = [note for note in planned.notes if "by design, left at 0" in note]
        assert zero in note
    asked = plan(model, reset=[zero])
    assert asked.parameters[zero].init_std or 0 > 0
    found = search(model)
    assert any("by design, left at 0" in note for note in found.notes)
    parameter = dict(model.named_parameters())[zero]
    planned.init_(model)
    assert not parameter.any()


def test_gains_at_0_that_are_overwritten_are_told_of() -> None:
    assert any("second.1.weight" in note and "keep=" in note for note in plan(ZeroEnds()).notes)
    assert plan(ZeroEnds(), keep="second.1.weight").parameters["second.1.weight"].init_std is None


class Biased(nn.Module):
    """A gate that begins almost closed, time scales of many sizes, and a classifier with the log odds of its classes.

    The other biases are PyTorch's own draws.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.scale = nn.Linear(10, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.out = nn.Linear(64, 4)
        with torch.no_grad():
            self.gate.bias.fill_(-3)
            self.scale.bias.copy_(torch.linspace(-6, -1, 64))
            self.out.bias.fill_(-4.6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x))
        out: Tensor = self.out(x * torch.sigmoid(self.gate(x)) * torch.exp(self.scale(x)))
        return out


@pytest.mark.parametrize("more", [{}, {"init": "in-degree"}])
def test_biases_away_from_0_stay(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Biased()
    meant = {"gate.bias", "scale.bias", "out.bias"}
    planned = plan(model, **more)
    assert {n for n, p in planned.parameters.items() if n.endswith("bias") and p.init_std is None} == meant
    (note,) = [note for note in planned.notes if "away from 0 by design" in note]
    assert all(name in note for name in meant)
    planned.init_(model)
    assert bool((model.gate.bias == -3).all())
    assert not model.enter.bias.any()
    assert plan(Biased(), reset="gate").parameters["gate.bias"].init_std == 0


class Beginning(nn.Module):
    """What begins in a way of its author's, in parameters too small for statistics: an affine map as the identity, a
    layer before a steep tanh that is to be small, a mean of weights that begins as they are, features of all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.theta, self.wave, self.out = nn.Linear(10, 6), nn.Linear(10, 16), nn.Linear(16, 4)
        self.node, self.read, self.join = nn.Parameter(torch.randn(16)), nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
            self.wave.weight.uniform_(-0.01, 0.01)
            self.mix = nn.Parameter(torch.eye(16))
        self.mean = copy.deepcopy(self.out).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta(x).view(-1, 2, 3)
        h = torch.tanh(30 * self.wave(x)) * (1 + theta.mean((1, 2)))[:, None]
        node = self.node.expand(len(x), -1)
        h = node + self.join(h @ self.mix + self.read(node * h))
        out: Tensor = self.out(h)
        return out


@pytest.mark.parametrize("more", [{}, {"init": "in-degree"}])
def test_what_begins_in_a_way_of_its_authors_stays_or_is_told_of(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Beginning()
    planned = plan(model, **more)
    parameters = planned.parameters
    assert [parameters[name].init_std for name in ("theta.bias", "node", "mix")] == [None] * 3
    assert any("constant or partly 0" in note and "mix" in note for note in planned.notes)
    assert plan(Beginning(), reset="mix", **more).parameters["mix"].init_std is not None
    assert (parameters["join.bias"].init_std, parameters["read.bias"].init_std) == (0, 0)
    (apart,) = [note for note in planned.notes if "another spread" in note]
    assert "wave.weight" in apart
    assert "out.weight" not in apart
    (copies,) = [note for note in planned.notes if "are copies of" in note]
    assert "mean.weight" in copies


class Referred(nn.Module):
    """A policy beside the reference that it begins as, as direct preference optimisation has it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 4))
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.policy(x).log_softmax(-1) - self.reference(x).log_softmax(-1)


def test_a_network_beside_a_frozen_copy_of_itself_is_told_to_keep_its_weights() -> None:
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    recipe = dagscale.Recipe(
        (x, x[:, :4].argmax(1)), lambda out, y: -F.logsigmoid(out.gather(1, y[:, None])).mean(), "adam",
        batch_size=16, steps=8,
    )  # fmt: skip
    for init, told in ((None, True), ("keep", False)):
        found = dagscale.search(Referred(), recipe, grid=[1e-3, 1e-2, 1e-1], seeds=1, init=init)
        for result in (found, dagscale.plan(Referred(16), base=found)):
            notes = [note for note in result.notes if "reference.0.weight" in note and "copies" in note]
            assert [("give init='keep' to search and plan" in note) for note in notes] == [True] * told


class Sines(nn.Module):
    """Sines of a layer as one of the usual networks has them, and a readout."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.wave, self.head = nn.Linear(10, 16), nn.Linear(32 if kind == "fourier" else 16, 4)
        self.shift, self.phase = nn.Linear(16 if kind == "angle" else 10, 16), nn.Parameter(6 * torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        z = 30 * self.wave(x)
        if self.kind == "fourier":
            z = torch.cat([z.sin(), z.cos()], 1)
        elif self.kind == "moved":
            z = (z + self.shift(x)).sin()
        elif self.kind == "phase":
            z = (z + self.phase).cos()
        elif self.kind == "snake":
            z = z + z.sin().square()
        elif self.kind == "angle":
            angle = self.shift(z.relu())
            return torch.cat([angle.sin(), angle.cos()], 1)[:, :4]
        else:
            z = z.sin() if self.kind == "siren" else z.tanh()
        out: Tensor = self.head(z)
        return out


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("siren", {"wave.weight", "wave.bias"}),
        ("fourier", {"wave.weight", "wave.bias"}),
        ("moved", {"wave.weight", "wave.bias", "shift.weight", "shift.bias"}),
        ("phase", {"wave.weight", "wave.bias", "phase"}),
        ("snake", set()),
        ("tanh", set()),
        ("angle", set()),
    ],
)
def test_what_only_sines_read_are_frequencies_and_stay(kind: str, kept: set[str]) -> None:
    """A frequency's size is what a network can draw, and no matter of keeping a signal at one level. The readout of an
    angle is none."""
    model = Sines(kind)
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, X[:4])
    assert frequencies(graph) == kept
    planned = plan(model, law="none", base_lr=0.1)
    planned.init_(model)
    used = {use.name for edge in graph.edges for op in edge.ops for use in op.params}
    assert {name for name in used if torch.equal(model.state_dict()[name], before[name])} == kept
    assert any("are frequencies" in note for note in planned.notes) == bool(kept)
    if kept:
        plan(model, law="none", base_lr=0.1, reset="wave").init_(model)
        assert not torch.equal(model.wave.weight, before["wave.weight"])


class Grid(nn.Module):
    """Features that are looked up at places computed from the input and weighed by how near these are, as in a hash
    grid, before a perceptron."""

    def __init__(self, near: float, trained: bool = True) -> None:
        super().__init__()
        self.features = nn.Parameter(near * torch.randn(9, 4), requires_grad=trained)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        at = 4 * x[:, :1].sigmoid() + 2
        low, rest = at.floor().long()[:, 0], at - at.floor()
        out: Tensor = self.layers(self.features[low] * (1 - rest) + self.features[low + 1] * rest)
        return out


@pytest.mark.parametrize(("near", "trained", "kept"), [(1e-4, True, True), (0.1, True, False), (1e-4, False, False)])
def test_a_layer_behind_tables_near_0_is_not_drawn_to_make_up_for_them(near: float, trained: bool, kept: bool) -> None:
    """They grow in training; frozen ones do not."""
    torch.manual_seed(0)
    model = Grid(near, trained)
    planned = plan(model, law="none", base_lr=0.1, init="moments")
    left = {name for name, p in planned.parameters.items() if p.init_std is None and name.startswith("layers")}
    assert left == ({"layers.0.weight", "layers.0.bias"} if kept else set())
    assert any("tables near 0" in note for note in planned.notes) == kept
    if kept:
        drawn = plan(model, law="none", base_lr=0.1, init="moments", reset="layers").parameters["layers.0.weight"]
        assert drawn.init_std is not None
        assert drawn.init_std > 100


def test_layers_that_are_clones_are_no_copies_to_be_compared_with() -> None:
    """Those of PyTorch's own decoder begin equal, and the first one's self-attention sees learned queries alone."""

    class Decoder(nn.Module):
        def __init__(self, reference: bool) -> None:
            super().__init__()
            layer = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)
            self.stem, self.query, self.decoder = nn.Linear(10, 8), nn.Embedding(3, 8), nn.TransformerDecoder(layer, 2)
            self.mean = copy.deepcopy(self.decoder.layers[1]).requires_grad_(False) if reference else None
            self.out = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.decoder(self.query.weight.expand(len(x), -1, -1), self.stem(x)[:, None])[:, 0])
            return out

    for reference in (False, True):
        notes = plan(Decoder(reference), law="none", base_lr=0.1).notes
        assert any("are copies of" in note for note in notes) == reference


def test_many_sums_and_forks_on_the_way_to_a_sine_are_walked_once() -> None:
    class Pendulum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.push, self.out = nn.Linear(10, 4), nn.Linear(10, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            angle, push = self.into(x), self.push(x)
            for _ in range(200):
                angle = angle + 0.1 * (push - 0.1 * angle - angle.sin())
            out: Tensor = self.out(angle)
            return out

    assert frequencies(trace(Pendulum(), X[:4])) == set()


def test_a_few_entries_in_each_of_many_blocks_are_told_from_a_draw() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    with torch.no_grad():
        for i, layer in enumerate(model):
            layer.bias.copy_(torch.linspace(-6, -3, 4) + i / 12)
    assert biased_by_design(model, trace(model, torch.randn(2, 4))) == {f"{i}.bias" for i in range(12)}


def test_no_plain_draw_of_biases_is_taken_for_design() -> None:
    for seed in range(100):
        torch.manual_seed(seed)
        model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(20)), nn.Linear(8, 1))
        assert biased_by_design(model, trace(model, torch.randn(2, 8))) == set()


@pytest.mark.parametrize("heads", [2, 3, 8])
def test_biases_far_from_what_pytorch_draws_are_meant_however_few(heads: int) -> None:
    """Time scales of a few heads: a base of two has too few entries for their signs to tell, its targets have not."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.gate, self.out = nn.Linear(8, 16), nn.Linear(16, heads), nn.Linear(heads, 4)
            self.steps = nn.Parameter(torch.empty(heads).uniform_(-4, -2))
            nn.init.uniform_(self.gate.bias, 2, 4)

        def forward(self, x: Tensor) -> Tensor:
            gate, _ = torch.cat([self.gate(self.into(x).relu())] * 2, -1).split(heads, -1)
            return self.out((gate + self.steps).sigmoid())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Heads()
    assert biased_by_design(model, trace(model, torch.randn(2, 8))) == {"gate.bias", "steps"}
    recurrent = nn.ModuleList([nn.LSTM(256, 4, batch_first=True), nn.GRU(256, 4, batch_first=True)])
    for layer in recurrent:  # whose biases are drawn by their hidden size, far beyond what their inputs would have
        last = nn.Sequential()
        last.add_module("cell", layer)
        assert biased_by_design(last, trace(last, torch.randn(2, 5, 256))) == set()


def test_one_structured_weight_makes_no_trained_model() -> None:
    class Projected(nn.Module):
        """A fixed basis, as of HiPPO, before layers whose biases are set."""

        def __init__(self) -> None:
            super().__init__()
            size = (2 * torch.arange(16.0) + 1).sqrt()
            self.basis = nn.Parameter(torch.tril(size[:, None] * size) / 16)
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
            for layer in self.layers:
                nn.init.uniform_(layer.bias, -7, -3)

        def forward(self, x: Tensor) -> Tensor:
            x = x @ self.basis.T
            for layer in self.layers:
                x = layer(x).sigmoid()
            return x

    torch.manual_seed(0)
    model = Projected()
    graph = trace(model, torch.randn(2, 16))
    assert looking_trained(model, graph) == ["basis"]
    assert by_design(model, graph) == {"basis", *(f"layers.{k}.bias" for k in range(4))}


def test_a_model_of_zeros_alone_is_drawn() -> None:
    model = net()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert plan(model).parameters["0.weight"].init_std or 0 > 0


def test_low_rank_adapters_of_peft_begin_as_the_model_they_adapt() -> None:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(pretrained(), peft.LoraConfig(r=4, target_modules=["backbone.0", "backbone.3"]))
    model.eval()
    before = model(MANY)
    shifted = (MANY + 1, ((MANY + 1) @ OLD.roll(1, 1)).argmax(1))
    planned = plan(model, shifted, optimizer="adamw", batch_size=64)
    planned.init_(model)
    model.eval()
    assert torch.allclose(model(MANY), before, atol=1e-5)
    assert any("lora_B" in note and "by design" in note for note in planned.notes)
    assert not any("looks trained" in note for note in planned.notes), "what is frozen stays anyway"
    assert 1e-5 < planned.lr < 1


# --- sampling -------------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """Refuses more examples at once than a batch of training holds."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = net(), most

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) <= self.most, f"{len(x)} examples at once"
        out: Tensor = self.inner(x)
        return out


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change", "combined"])
def test_never_more_examples_at_once_than_a_batch(law: str, size: int) -> None:
    x = torch.randn(40, 10)
    data = (x, (x @ torch.randn(10, 4)).argmax(1))
    more: dict[str, Any] = {
        "data": data,
        "loss": F.cross_entropy,
        "steps": 160 if size == 1 else 24,
        "batch_size": size,
    }
    planned = dagscale.plan(Narrow(size), x[:1], base=(Narrow(size), x[:1]), base_lr=0.1, law=law, **more)
    assert planned.lr == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("size", [1, 8])
def test_nor_in_search_and_check(size: int) -> None:
    found = search(Narrow(size), batch_size=size, inputs=X[:1], steps=48)
    planned = dagscale.plan(Narrow(size), X[:1], base=found, law="none")
    report = dagscale.check([(Narrow(size), X[:1])] * 2, planned, sizes=[1, 2], steps=1, seeds=2)
    assert report is not None


def test_the_order_of_the_rows_is_nothing() -> None:
    """The first rows are quiet, the last ones loud."""
    x = torch.cat([0.02 * torch.randn(200, 10), 2 * torch.randn(800, 10)])
    y = torch.cat([torch.zeros(200), 1 + torch.randint(0, 3, (800,))]).long()
    order = torch.randperm(1000)
    plans = [plan(net(), data, batch_size=64, law="none", base_lr=0.1) for data in ((x, y), (x[order], y[order]))]
    ratio = plans[0].parameters["0.weight"].init_std / plans[1].parameters["0.weight"].init_std  # type: ignore[operator]
    assert 0.8 < ratio < 1.25


# --- what spaces give -----------------------------------------------------------------------------------------------


def test_ten_classes_are_ten_where_they_are_asked_for() -> None:
    declare_torchvision_ops()
    pytest.importorskip("timm")
    for text, classes in (("timm:resnet10t?classes=10", 10), ("timm:resnet10t", 1000), ("timm:resnet10t?classes=7", 7)):
        model, x = load(text)
        assert model(x).shape == (2, classes)

    class Data:
        shape, classes, x = (1, 8, 8), 10, None

    model, x = load("timm:resnet10t", data=Data())
    assert x.shape == (2, 1, 8, 8)
    assert model(x).shape == (2, 10)


@pytest.mark.parametrize("target", ["nb101:1_01_001-3m?channels=8", "darts:V2?cells=2&channels=4", "nb201:3_33_333"])
def test_benchmarks_have_their_own_images(target: str) -> None:
    model, x = load(target)
    assert x.shape == (2, 3, 32, 32)
    assert model(x).shape == (2, 10)
    if target == "nb201:3_33_333":
        assert sum(p.numel() for p in model.parameters()) == 1_531_546, "as the benchmark's authors count"
    model, x = load(f"{target}{'&' if '?' in target else '?'}input=1x8x8&classes=5")
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize(
    "text",
    [
        "hf:t5?layers=2&width=64&mlp=128&heads=4&vocab=100",
        "hf:bart?layers=1&width=64&heads=4&mlp=64&vocab=100",
        "hf:speech_to_text?layers=1&width=64&heads=4&mlp=64&vocab=100",
    ],
)
def test_encoder_decoders_have_inputs_for_both(text: str) -> None:
    pytest.importorskip("transformers")
    model, x = load(text)
    assert len(x) == 2
    assert model(*x).shape == (2, 16, 100)
    graph = trace(model, x)
    reached = {p.name for p in graph.parameters if p.reached}
    assert any("encoder" in name for name in reached)
    assert any("decoder" in name for name in reached)


# --- layers without a shape yet -------------------------------------------------------------------------------------


def lazy_conv() -> nn.Module:
    conv = nn.Sequential(nn.Unflatten(1, (1, 10)), nn.LazyConv1d(6, 3), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Flatten())
    return nn.Sequential(conv, nn.LazyLinear(4))


class Beside(nn.Module):
    """One lazy layer among others, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(10, 16), nn.LazyLinear(16), nn.Linear(16, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(torch.relu(x))
        return x


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("make", [lazy_conv, Beside])
def test_a_plan_for_lazy_layers_is_used_once_they_ran(make: Any) -> None:
    """Planned from a copy that ran; what needs the model's own parameters says what to do."""
    model = make()
    planned = plan(model)
    for use in (planned.init_, planned.param_groups, planned.optimizer):
        with pytest.raises(PlanError, match="has no shape yet: run the model's forward once") as caught:
            use(model)
        assert "\n" not in str(caught.value)
    assert any(nn.parameter.is_lazy(p) for p in model.parameters()), "nothing was given a shape"
    model(X[:4])
    planned.init_(model)
    assert len(planned.param_groups(model)) >= 1
    small = make()
    for more in ({"width": "mup"}, {"init": "keep", "width": "mup"}):
        carried = dagscale.plan(make(), X[:4], base=(small, X[:4]), base_lr=0.1, data=(X, Y), **more)
        assert carried.lr > 0


# --- which outputs count --------------------------------------------------------------------------------------------


class Policy(nn.Module):
    """A distribution over actions, a value, and things that are no tensors; the trunk is common."""

    def __init__(self, extra: bool = True) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trunk, self.action, self.value = nn.Linear(10, 24), nn.Linear(24, 4), nn.Linear(24, 1)
        self.extra = extra

    def forward(self, x: Tensor) -> Any:
        h = torch.relu(self.trunk(x))
        logits = self.action(h)
        if not self.extra:
            return logits
        policy = torch.distributions.Categorical(logits=logits)
        return {"policy": policy, "value": self.value(h), "heads": [self.value(h), (h, "relu")], "config": vars}


def of_policy(out: Any) -> Tensor:
    logits: Tensor = out["policy"].logits
    return logits


def test_select_says_which_outputs_count_in_plan_search_and_check() -> None:
    """As those of the network that returns them alone."""
    plain, rich = Policy(extra=False), Policy()
    apart = plan(rich, loss=F.cross_entropy, select=of_policy)
    assert apart.lr == pytest.approx(plan(plain).lr, rel=1e-4)
    for name in ("trunk.weight", "action.weight"):
        assert apart.parameters[name].init_std == pytest.approx(plan(plain).parameters[name].init_std, rel=1e-4)
    assert any("value.weight" in note and "not on any" in note for note in apart.notes)
    found = search(rich, select=of_policy, loss=F.cross_entropy)
    assert abs(math.log2(found.lr / search(plain).lr)) < 0.3
    recipe = dagscale.Recipe((X, Y), F.cross_entropy, steps=16, batch_size=16, select=of_policy)
    assert search(rich, recipe, steps=None, batch_size=None).lr == found.lr
    assert dagscale.check([(rich, X[:2])] * 2, apart, sizes=[1, 2], steps=1, seeds=2) is not None
    with pytest.raises(dagscale.DagscaleError, match=r"the recipe is not that of the base.*select"):
        dagscale.plan(plain, X[:2], base=found, recipe=recipe.changed(select=None))


def test_select_leaves_a_loss_of_the_models_own() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.beside = net(), nn.Linear(10, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits, "other": self.beside(x)}

    def made() -> nn.Module:
        torch.manual_seed(1)
        return Own()

    batches = [{"x": X[i : i + 16], "labels": Y[i : i + 16]} for i in range(0, 96, 16)]
    recipe = dagscale.Recipe(batches, steps=16, select=lambda out: out["logits"])
    chosen = dagscale.plan(made(), recipe=recipe)
    assert chosen.lr == pytest.approx(dagscale.plan(made(), recipe=recipe.changed(select=None)).lr, rel=0.1)
    assert any("beside" in note and "not on any" in note for note in chosen.notes)


@pytest.mark.parametrize("select", [lambda out: out["nothing"], lambda out: out["config"]])
def test_a_select_that_finds_nothing_is_refused(select: Any) -> None:
    both_refuse("select raised KeyError|returned no tensor", Policy(), (X, Y), loss=F.cross_entropy, select=select)


def test_what_is_passed_over_is_said() -> None:
    class Marked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.beside = net(), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Any:
            return self.net(x), (layer(x) for layer in [self.beside]), x.detach().sum(1).tolist(), "name", None

    for call in (plan, search):
        notes = call(Marked(), loss=lambda out, y: F.cross_entropy(out[0], y)).notes
        (note,) = [note for note in notes if "passed over among the outputs" in note]
        assert note.endswith(": generator"), note
        assert any("beside" in note and "not on any" in note for note in notes)


class Slotted:
    """An output that keeps its tensors in slots."""

    __slots__ = ("logits", "state")

    def __init__(self, logits: Tensor, state: Any) -> None:
        self.logits, self.state = logits, state


def test_tensors_in_slots_are_outputs() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.beside = net(), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Any:
            return Slotted(self.net(x), {"deep": [self.beside(x)]})

    assert all(p.reached for p in trace(Inside(), X[:2]).parameters)
