"""Correct plans pass over growing families, and each known mistake is found at its place."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, cross_entropy, nll_loss, one_hot

import dagscale.cli.check
from dagscale.bench.data import load as load_data
from dagscale.checking import check
from dagscale.checking.family import layers_of
from dagscale.cli import main
from dagscale.errors import CheckError
from dagscale.models.targets import load
from dagscale.planning.make import plan
from dagscale.tracing import trace

DATA = load_data("digits", limit=600)
WIDTHS = [f"mlp:2_22_222?width={w}" for w in (32, 128)]
DEPTHS = [f"mlp:2?width=64&depth={d}" for d in (1, 3, 8)]
TOPOLOGIES = [f"mlp:{code}?width=64" for code in ("2", "2_22", "2_22_222")]
MUP = {"init": "moments", "law": "none", "width": "mup"}


def family(targets):
    return [load(target, data=DATA) for target in targets]


def run(targets, **options):
    return check(family(targets), data=DATA, **options)


def plans_of(models, **options):
    """The plans that `check` would make, to be broken by hand."""
    return [plan(m, x, base=models[0], data=(DATA.x, DATA.y), loss=cross_entropy, **options) for m, x in models]


def with_parameter(made, name, **changes):
    return replace(made, parameters=dict(made.parameters) | {name: replace(made.parameters[name], **changes)})


class TestPasses:
    @pytest.mark.parametrize(
        ("targets", "options"),
        [
            (WIDTHS, MUP | {"base_lr": 0.1}),
            (WIDTHS, MUP | {"base_lr": 0.003, "optimizer": "adam"}),
            ([f"{t}&order=pre" for t in WIDTHS], MUP | {"base_lr": 0.1, "init": "in-degree"}),
            (DEPTHS, {"init": "moments", "law": "covariance"}),
            (DEPTHS, {"init": "in-degree", "law": "paths"}),
            (TOPOLOGIES, {"init": "moments", "law": "covariance"}),
        ],
    )
    def test_correct_plan(self, targets, options):
        report = run(targets, **options)
        assert report.ok, str(report)

    def test_convolutions_with_batch_norm(self):
        report = run([f"cnn:2_02?width={w}&norm=batch" for w in (8, 32)], **MUP, base_lr=0.5, seeds=4)
        assert report.ok, str(report)

    def test_explicit_plans(self):
        models = family(WIDTHS)
        assert check(models, data=DATA, plans=plans_of(models, base_lr=0.1, **MUP)).ok


class TestCatches:
    @pytest.mark.parametrize("targets", [WIDTHS, DEPTHS[:2], TOPOLOGIES[:2]])
    def test_standard_init(self, targets):
        report = run(targets, init="keep", law="none", base_lr=0.05)
        assert report.first.what == "signal"
        assert "PyTorch's own" in report.first.cause

    def test_standard_init_of_convolutions_with_batch_norm(self):
        report = run([f"cnn:2_02?width={w}&norm=batch" for w in (8, 16)], init="keep", law="none", base_lr=0.1, seeds=4)
        assert "PyTorch's own" in report.first.cause

    @pytest.mark.parametrize(
        ("optimizer", "lr", "name"),
        [
            ("sgd", 0.1, "stem.linear"),
            ("sgd", 0.1, "readout.linear"),
            ("adam", 0.003, "cells.0.edges.1_2.linear"),
            ("adam", 0.003, "readout.linear"),
        ],
    )
    def test_a_multiplier_left_out(self, optimizer, lr, name):
        models = family(WIDTHS)
        made = plans_of(models, base_lr=lr, optimizer=optimizer, **MUP)
        made = [with_parameter(p, f"{name}.weight", lr=p.lr) for p in made]
        report = check(models, data=DATA, plans=made, optimizer=optimizer)
        assert (report.first.what, report.first.layer) == ("update", name), str(report)
        assert "multiplier is missing" in report.first.cause

    def test_one_rate_for_all_layers(self):
        report = run(WIDTHS, init="moments", law="none", base_lr=0.1)
        assert report.first.layer == "stem.linear"
        assert "width='mup'" in report.first.cause

    @pytest.mark.parametrize("targets", [WIDTHS, TOPOLOGIES[1:3]])
    def test_source_in_degree(self, targets):
        report = run(targets, init="released", law="none", base_lr=0.01)
        assert (report.first.what, report.first.layer) == ("signal", "cells.0.edges.0_2.linear")
        assert "wrong in-degree, 1 instead of 2" in report.first.cause

    @pytest.mark.parametrize("init", ["in-degree", "moments"])
    def test_readout_not_scaled(self, init):
        models = family([f"{t}&order=pre" for t in WIDTHS])
        made = plans_of(models, base_lr=0.01, **MUP | {"init": init})
        made = [with_parameter(p, "readout.linear.weight", init_std=1.0) for p in made]
        report = check(models, data=DATA, plans=made)
        assert (report.first.what, report.first.layer) == ("signal", "readout.linear")
        assert "too large: not scaled" in report.first.cause

    def test_one_layer_too_small(self):
        models = family(WIDTHS)
        name = "cells.0.edges.1_2.linear"
        made = [
            with_parameter(p, f"{name}.weight", init_std=p.parameters[f"{name}.weight"].init_std / 2)
            for p in plans_of(models, base_lr=0.1, **MUP)
        ]
        report = check(models, data=DATA, plans=made)
        assert (report.first.what, report.first.layer) == ("signal", name)

    @pytest.mark.parametrize(
        ("targets", "options"),
        [
            (WIDTHS, MUP | {"base_lr": 0.25}),
            (WIDTHS, MUP | {"base_lr": 0.012, "optimizer": "adam"}),
            (TOPOLOGIES, {"init": "moments", "law": "covariance", "base_lr": 0.25}),
        ],
    )
    def test_rate_four_times_too_high(self, targets, options):
        high = run(targets, **options | {"base_lr": 4 * options["base_lr"]})
        assert high.first.what == "rate", str(high)
        assert "learning rate too high" in high.first.cause
        assert not [f for f in run(targets, **options).faults if f.what == "rate"]

    def test_one_rate_at_every_depth(self):
        report = run(DEPTHS, init="moments", law="none", base_lr=0.1)
        assert report.first.what == "update"
        assert "too high for this depth" in report.first.cause


class Functional(nn.Module):
    """Layers that are not modules, one of them used through its transpose."""

    def __init__(self, width):
        super().__init__()
        self.a = nn.Parameter(torch.randn(64, width) / 8 * 2**0.5)
        self.b = nn.Parameter(torch.randn(width, width) * (2 / width) ** 0.5)
        self.c = nn.Parameter(torch.randn(10, width) / width)

    def forward(self, x):
        return ((x.flatten(1) @ self.a).relu() @ self.b).relu() @ self.c.T


class Frozen(nn.Module):
    def __init__(self, width, dtype=torch.float32):
        super().__init__()
        self.a = nn.Linear(64, width, dtype=dtype)
        self.b = nn.Linear(width, 10, dtype=dtype)
        self.a.weight.requires_grad_(False)

    def forward(self, x):
        return self.b(self.a(x.flatten(1)).relu())


def make(kind, *widths, dtype=torch.float32, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [(kind(w, **options), DATA.x[:2].to(dtype)) for w in widths]


class TestModels:
    def test_layers_that_are_no_modules(self):
        report = check(make(Functional, 32, 64), data=DATA, **MUP, base_lr=0.05)
        assert {level.layer for level in report.levels} == {"a", "b", "c"}
        assert {f.name for f in report.fits if f.quantity == "own"} == {"a", "b", "c"}
        assert report.ok, str(report)

    def test_function_of_the_size_is_built_anew_for_every_seed(self):
        report = check(
            lambda w: (Functional(w), DATA.x[:2]), sizes=[32, 128], data=DATA, init="keep", law="none", base_lr=0.02
        )
        assert not [f for f in report.faults if f.what == "signal"], str(report)
        assert report.sizes == (32.0, 128.0)

    def test_frozen_layers_are_not_judged(self):
        report = check(make(Frozen, 32, 64), data=DATA, **MUP, base_lr=0.05)
        assert not [f for f in report.faults if f.layer == "a"]
        assert not next(level for level in report.levels if level.layer == "a").judged

    def test_half_precision_is_measured_in_float32_and_said(self):
        models = make(Frozen, 32, 64, dtype=torch.bfloat16)
        models = [(m.to(torch.bfloat16), x) for m, x in models]
        report = check(models, data=DATA, init="in-degree", law="none", base_lr=0.05)
        assert any("half precision" in note and "float32" in note for note in report.notes)
        assert next(models[0][0].parameters()).dtype is torch.bfloat16

    def test_the_models_stay_as_they_were(self):
        models = make(Functional, 32, 64)
        before = [p.clone() for m, _ in models for p in m.parameters()]
        state = torch.get_rng_state()
        check(models, data=DATA, **MUP, base_lr=0.05, seeds=2)
        assert torch.equal(state, torch.get_rng_state())
        assert all(
            torch.equal(a, b) for a, b in zip(before, (p for m, _ in models for p in m.parameters()), strict=True)
        )

    def test_same_seed_same_report(self):
        one, two = (run(WIDTHS, **MUP, base_lr=0.1, seeds=2) for _ in range(2))
        assert one == two

    def test_classes_of_layers(self):
        graph = trace(*load("mlp:2_22_002", data=DATA))
        kinds = {x.name: (x.kind, x.degree) for x in layers_of(graph)}
        assert kinds == {
            "stem.linear": ("input", 1),
            "cells.0.edges.0_1.linear": ("hidden", 1),
            "cells.0.edges.0_2.linear": ("sum", 2),
            "cells.0.edges.1_2.linear": ("sum", 2),
            "cells.0.edges.2_3.linear": ("hidden", 1),
            "readout.linear": ("output", 1),
        }


@pytest.mark.parametrize(("log_softmax", "high"), [(True, 2.0), (False, 16.0)])
def test_a_rate_is_judged_whatever_the_loss_and_however_high(log_softmax, high):
    """Log-probabilities and their negative mean: linear in the output, so the Gauss–Newton matrix is 0. At 16 a
    quarter of the rate is too high as well."""
    last = [nn.LogSoftmax(1)] if log_softmax else []

    def make_one(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10), *last)

    loss = nll_loss if log_softmax else cross_entropy
    given = {"data": DATA, "loss": loss, "init": "moments", "law": "none", "seeds": 4, "centred": False}
    family = [(make_one(w), X) for w in (16, 32)]
    assert any("rate too high" in str(fault) for fault in check(family, base_lr=high, **given).faults)
    assert not any("rate too high" in str(fault) for fault in check(family, base_lr=0.02, **given).faults)


def test_steps_are_the_recipe_s_own():
    """Steps so short that they are in proportion to the clipping; and a training step of the user's own."""

    def changes(**given):
        recipe = dagscale.Recipe((DATA.x, DATA.y), cross_entropy, batch_size=32, **given)
        options = {"init": "moments", "law": "none", "base_lr": 0.05, "seeds": 2, "centred": False}
        report = check(make(Functional, 8, 16), recipe=recipe, **options)
        return {(level.member, level.layer): level.change for level in report.levels}

    def own(model, optimizer, x, y):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    whole, tenth, hundredth = changes(), changes(clip=0.1), changes(clip=0.01)
    assert changes(step=own) == whole
    for layer in whole:
        assert tenth[layer] < whole[layer]
        assert tenth[layer] / hundredth[layer] == pytest.approx(10, rel=0.05)


def test_a_loss_of_probabilities_is_told_the_mend():
    def make_one(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10), nn.Sigmoid())

    def loss(out, y):
        return binary_cross_entropy(out, one_hot(y, 10).float())

    given = {"data": DATA, "loss": loss, "init": "moments", "law": "none", "seeds": 2, "optimizer": "adam"}
    family = [(make_one(w), X) for w in (16, 32)]
    with pytest.raises(CheckError, match="needs centred=False"):
        check(family, base_lr=1e-3, **given)
    assert check(family, base_lr=1e-3, centred=False, **given).seeds == 2


class TestReport:
    def test_reads_and_writes(self, tmp_path):
        report = run(WIDTHS, init="keep", law="none", base_lr=0.05, seeds=2)
        assert "PyTorch's own" in str(report)
        assert f"fault: {report.faults[0]}" not in str(report), "the verdict says it already"
        assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] is False
        report.plot(tmp_path / "a.svg")
        assert (tmp_path / "a.svg").stat().st_size > 1000
        with pytest.raises(AttributeError):
            report.axis = "depth"

    def test_axes(self):
        assert run(WIDTHS, **MUP, base_lr=0.1, seeds=1, steps=1).axis == "width"
        assert run(DEPTHS[:2], init="moments", law="none", base_lr=0.1, seeds=1, steps=1).axis == "depth"
        report = run(DEPTHS[:2], init="moments", law="none", base_lr=0.1, seeds=1, steps=1, sizes=[1, 3])
        assert (report.axis, report.sizes) == ("size", (1.0, 3.0))


class Normed(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))


def other():
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 4, 3))
    model.add_module("flat", nn.Flatten())
    model.add_module("out", nn.LazyLinear(10))
    model(DATA.x[:2])
    return model


X = DATA.x[:2]
BAD = {
    "no data": (lambda: check(make(Functional, 8, 16)), "needs data"),
    "one member": (lambda: check(make(Functional, 8), data=DATA), "at least two members"),
    "the same size": (lambda: check(make(Functional, 8, 8), data=DATA), "do not grow"),
    "largest first": (lambda: check(make(Functional, 16, 8), data=DATA), "smallest first"),
    "nothing shared": (lambda: check([*make(Functional, 8), (other(), X)], data=DATA), "share no layer"),
    "one example": (lambda: check(make(Normed, 8, 16), data=DATA, batch_size=1, base_lr=0.1), "more than 1 value"),
    "loss": (
        lambda: check(
            make(Functional, 8, 16),
            data=DATA,
            loss=lambda out, y: cross_entropy(out, y, reduction="none"),
        ),
        "loss must be one number",
    ),
    "function without sizes": (lambda: check(lambda w: (Functional(w), X), data=DATA), "needs sizes"),
    "plans": (lambda: check(make(Functional, 8, 16), data=DATA, plans=[]), "0 plans for 2 members"),
    "steps": (lambda: check(make(Functional, 8, 16), data=DATA, steps=0), "at least 1"),
    "sizes": (lambda: check(make(Functional, 8, 16), data=DATA, sizes=[2, 1]), "increase"),
    "labels": (lambda: check(make(Functional, 8, 16), data=DATA, labels=["a"]), "1 labels for 2 members"),
    "only models": (
        lambda: check(Functional, data=DATA, sizes=[8, 16]),
        r"must return \(model, inputs\) .* returned Functional",
    ),
    "all frozen": (
        lambda: check([(m.requires_grad_(False), x) for m, x in make(Functional, 8, 16)], data=DATA),
        "nothing trains",
    ),
    "detached loss": (
        lambda: check(make(Functional, 8, 16), data=DATA, loss=lambda out, y: cross_entropy(out.detach(), y)),
        "does not depend on any parameter",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    request, words = BAD[case]
    with pytest.raises(dagscale.DagscaleError, match=words) as caught:
        request()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckError)

    def test_the_law_is_the_one_that_rates_were_carried_over_with(self):
        report = run(DEPTHS[:2], base_lr=0.1, seeds=1, steps=1)
        assert report.lrs[0] == 0.1
        assert report.lrs[1] < 0.09
        assert report.law == "combined"


class TestCommand:
    def call(self, monkeypatch, capfd, *words):
        monkeypatch.setattr("sys.argv", ["dagscale", "check", *words])
        with pytest.raises(SystemExit) as caught:
            main()
        return caught.value.code, capfd.readouterr()

    def test_pass_is_0_and_writes_json_and_picture(self, monkeypatch, capfd, tmp_path):
        path = tmp_path / "check.png"
        options = ["--data", "digits", "--limit", "600", "--init", "moments", "--law", "none", "--width", "mup"]
        words = [*WIDTHS, *options, "--base-lr", "0.1", "--plot", str(path), "--json"]
        code, out = self.call(monkeypatch, capfd, *words)
        assert (code, json.loads(out.out)["ok"], path.exists()) == (0, True, True)

    def test_fail_is_1(self, monkeypatch, capfd):
        words = [
            *WIDTHS,
            "--data",
            "digits",
            "--init",
            "keep",
            "--law",
            "none",
            "--base-lr",
            "0.05",
            "--seeds",
            "2",
        ]
        code, out = self.call(monkeypatch, capfd, *words)
        assert code == 1
        assert "PyTorch's own" in out.out

    def test_cannot_be_served_is_2(self, monkeypatch, capfd):
        code, out = self.call(monkeypatch, capfd, WIDTHS[0], "--data", "digits")
        assert code == 2
        assert out.err.strip().splitlines()[-1].startswith("dagscale: a family has at least two members")


def test_layers_that_do_not_always_run_are_named_and_not_judged() -> None:
    """As stochastic depth and routers leave some out."""

    class Dropped(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.c, self.b = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

        def forward(self, x):
            h = torch.relu(self.a(x.flatten(1)))
            if torch.rand(()) < 0.5:
                h = h + torch.relu(self.c(h))
            return self.b(h)

    pairs = [(Dropped(width), DATA.x[:2]) for width in (16, 32)]
    torch.manual_seed(3)  # the traced forward runs c
    report = check(pairs, data=DATA, init="keep", law="none", base_lr=0.01, steps=1, seeds=4)
    assert any("not every forward runs it: c" in note for note in report.notes)
    with pytest.raises(CheckError, match="no layer runs in every forward"):
        nothing_runs()


def nothing_runs():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x):
            return (self.a if torch.rand(()) < 0.5 else self.b)(x.flatten(1))

    pairs = [(Either(), DATA.x[:2]) for _ in range(2)]
    check(pairs, data=DATA, sizes=[1, 2], init="keep", law="none", base_lr=0.01, steps=1, seeds=8)


def pair_of(forward):
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 16), nn.Linear(16, 10)

        def forward(self, x):
            return forward(self.b(torch.relu(self.a(x.flatten(1)))))

    return [(Written(), DATA.x[:2])] * 2


def test_one_model_is_no_family():
    with pytest.raises(CheckError, match=r"two models at least, smallest first: give \[small, model\]"):
        check(torch.nn.Linear(2, 2), data=DATA)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda out, y: (out * 0).sum() + 1, "the loss is 1 on every batch and has no gradient"),
        (lambda out, y: (out[:, :1] - y).square().mean(), "together they spread"),
    ],
)
def test_losses_that_say_nothing_get_no_verdict(loss, text):
    """As plan and search refuse them."""
    with pytest.raises(CheckError, match=text):
        check(pair_of(lambda out: out), data=DATA, loss=loss, sizes=[1, 2], init="keep", law="none", base_lr=0.01)


def test_a_list_of_heads_is_checked_without_its_curvature():
    heads = pair_of(lambda out: [out])
    words = {"loss": lambda out, y: cross_entropy(out[0], y), "init": "keep", "law": "none", "steps": 1, "seeds": 2}
    assert check(heads, data=DATA, sizes=[1, 2], base_lr=0.01, **words) is not None
    with pytest.raises(CheckError, match=r"no base_lr is given, and .* curvature is not to be had"):
        check(heads, data=DATA, sizes=[1, 2], **words)


@pytest.mark.parametrize("kind", ["sparse features", "one number"])
def test_layers_whose_input_has_no_rows_to_take_are_run_again(kind):
    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.a, self.kinds, self.b = nn.Linear(64, width), nn.Embedding(2, width), nn.Linear(width, 10)

        def forward(self, x, which):
            x = x.flatten(1)
            a = torch.sparse.mm(x.to_sparse(), self.a.weight.T) if kind == "sparse features" else self.a(x)
            return self.b(torch.relu(a + self.kinds(which)))

    batches = []
    for i in range(0, 96, 32):
        which = torch.tensor(1) if kind == "one number" else torch.ones(32, dtype=torch.long)
        batches.append(((DATA.x[i : i + 32], which), DATA.y[i : i + 32]))
    words = {"data": batches, "init": "keep", "law": "none", "base_lr": 0.01, "steps": 1, "seeds": 1}
    report = check([(Net(width), batches[0][0]) for width in (8, 16)], loss=cross_entropy, **words)
    assert {fit.name for fit in report.fits if fit.quantity == "own"} == {"a", "kinds", "b"}


@pytest.mark.parametrize("steps", [1, 3])
def test_experts_that_get_other_rows_after_a_step_are_compared_on_those_they_had(steps):
    """The first router sends some rows of every batch to each expert; after its bias has moved, one may get none."""

    class Routed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.router, self.a, self.b = nn.Linear(64, 2), nn.Linear(64, width), nn.Linear(64, width)
            self.out = nn.Linear(width, 10)

        def forward(self, x):
            x = x.flatten(1)
            gates = self.router(x).softmax(-1)
            first = gates[:, 0] > gates[:, 1]
            h = x.new_zeros(len(x), self.a.out_features)
            h = h.index_put((first,), gates[first, :1] * self.a(x[first]))
            h = h.index_put((~first,), gates[~first, 1:] * self.b(x[~first]))
            return self.out(torch.relu(h))

    pairs = [(Routed(width), DATA.x[:32]) for width in (8, 16)]
    report = check(pairs, data=DATA, init="keep", law="none", base_lr=0.5, steps=steps, seeds=2)
    assert {fit.name for fit in report.fits} >= {"a", "b", "router", "out"}
    assert not any("diverge" in str(fault) for fault in report.faults)
