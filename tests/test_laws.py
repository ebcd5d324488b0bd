"""Laws: numbers worked out by hand, and what they refuse."""

import math

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load as load_data
from dagscale.errors import GraphError, PlanError, UnknownNameError
from dagscale.graph import Layer
from dagscale.laws.estimate import Estimate, half_width, spreads
from dagscale.laws.released import by_layers
from dagscale.laws.walk import weighted_cubes
from dagscale.models.targets import load


def planned(target: str, base: str, law: str, lr: float = 0.1) -> dagscale.Plan:
    return dagscale.plan(*load(target), base=load(base), base_lr=lr, law=law)


def test_paths_is_the_inverse_root_of_the_sum_of_cubed_depths() -> None:
    plan = planned("mlp:2_22_222", "mlp:1_01_001", "paths")
    assert plan.lr == pytest.approx(0.1 / math.sqrt(126), rel=1e-15)
    assert dict(plan.factors) == {"depth": pytest.approx(1 / math.sqrt(126)), "kernel": 1.0}


def test_paths_on_chains_is_depth_to_the_three_halves() -> None:
    for n in (1, 2, 5):
        code = "_".join("0" * v + "2" for v in range(n))
        assert planned(f"mlp:{code}", "mlp:1", "paths").lr == pytest.approx(0.1 * (n + 1) ** -1.5)


@pytest.mark.parametrize(("k", "ratio"), [(1, 3.0), (5, 0.6), (7, 3 / 7)])
def test_paths_divides_by_the_kernel_size(k: int, ratio: float) -> None:
    plan = planned(f"cnn:2_02_002?kernel={k}", "cnn:2_02_002?kernel=3", "paths")
    assert plan.factors["kernel"] == pytest.approx(ratio)
    assert plan.lr == pytest.approx(0.1 * ratio)


@pytest.mark.parametrize(
    ("target", "value"),
    [("2_02", 27.0), ("2_11", (1 * 1 + 0.5 * 8) / 1.5), ("0_01_111_1001", 1.0)],  # the stem has an activation too
)
def test_walk_weighs_each_cubed_depth_by_its_share_of_the_signal(target: str, value: float) -> None:
    graph = dagscale.trace(*load(f"mlp:{target}?width=8"))
    assert weighted_cubes(graph) == pytest.approx(value)


def test_a_network_is_its_own_base() -> None:
    for law in ("paths", "none"):
        assert planned("mlp:2_22_222", "mlp:2_22_222", law).lr == pytest.approx(0.1)


def test_released_counts_layers_and_misses_its_own_base() -> None:
    """Base: stem, one hidden, readout: 3³ = 27. The same network as target counts 4³ = 64."""
    assert planned("mlp:2", "mlp:2", "released").lr == pytest.approx(0.1 * math.sqrt(27 / 64))
    graph = dagscale.trace(*load("mlp:2_22_222"))
    assert by_layers(graph, 1) == 4**3 + 5**3 + 5**3 + 6**3


def test_none_carries_the_rate_over_and_needs_no_base() -> None:
    plan = dagscale.plan(*load("mlp:2_22"), base_lr=0.3, law="none", optimizer="adam")
    assert plan.lr == 0.3


def test_deep_residual_networks_neither_overflow_nor_vanish() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(1200))

        def forward(self, x):  # type: ignore[no-untyped-def]
            for block in self.blocks:
                x = x + block(x).relu()
            return x

    import torch

    plan = dagscale.plan(Blocks(), torch.randn(2, 4), base=load("mlp:1"), base_lr=0.1, law="paths")
    n = 1200
    assert math.log(plan.factors["depth"]) == pytest.approx(-math.log(n * n * (n + 3) * 2 ** (n - 3)) / 2)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"law": "path"}, UnknownNameError, "unknown law 'path'; did you mean 'paths'"),
        ({"init": "he"}, UnknownNameError, "unknown init 'he'"),
        ({"base_lr": None}, PlanError, "dagscale.search"),
        ({"base_lr": -1.0}, PlanError, "positive number"),
        ({"base_lr": float("nan")}, PlanError, "positive number"),
        ({"base": None}, PlanError, "give base="),
        ({"optimizer": "adam"}, PlanError, "derived for optimizers with gradient-like steps"),
    ],
)
def test_refusals_name_cause_and_mend(options: dict, error: type[Exception], text: str) -> None:  # type: ignore[type-arg]
    given = {"base": load("mlp:1"), "base_lr": 0.1, "law": "paths", **options}
    with pytest.raises(error, match=text) as caught:
        dagscale.plan(*load("mlp:2_22"), **given)
    assert "\n" not in str(caught.value)


def test_a_network_without_activations_has_no_path_rate() -> None:
    import torch

    with pytest.raises(GraphError, match="base: Σ_p L_p³ = 0"):
        dagscale.plan(*load("mlp:2"), base=(nn.Linear(3, 2), torch.randn(1, 3)), base_lr=0.1, law="paths")


def test_a_kernel_counts_by_its_taps() -> None:
    square, flat, line, dense = (Layer(1, 1, kernel).kernel_size for kernel in ((3, 3), (1, 7), (7,), ()))
    assert (square, dense) == (3, 1)
    assert flat == line == pytest.approx(math.sqrt(7))


# --- measured over seeds -------------------------------------------------------------------------------------------


def test_intervals_of_ratios_are_welchs() -> None:
    """Against scipy's own, on logarithms of made-up measurements."""
    logs = torch.randn(9, generator=torch.Generator().manual_seed(0)).double()
    groups = logs[:3] * 0.1, logs[3:] * 0.02 + 1
    measured = [Estimate(float(g.mean()), float(g.std()) / math.sqrt(len(g)), len(g), forwards=1) for g in groups]
    low, high = stats.ttest_ind(*(g.numpy() for g in groups), equal_var=False).confidence_interval(0.95)
    assert half_width(spreads(measured)) == pytest.approx((high - low) / 2, rel=1e-9)
    assert half_width(spreads([Estimate(0.0, 0.0, 2, 1)] * 2)) == 0


def test_plans_of_measured_laws_say_how_sure_they_are_and_what_it_took() -> None:
    data = load_data("digits", limit=128)
    plans = {
        law: dagscale.plan(
            load("mlp:2_02?width=8", data=data)[0], data.x[:2], law=law, base_lr=0.1, batch_size=32,
            base=(load("mlp:2?width=8", data=data)[0], data.x[:2]), data=(data.x, data.y), loss=cross_entropy,
        )
        for law in ("function-change", "paths")
    }  # fmt: skip
    measured = plans["function-change"]
    assert measured.lr_interval is not None
    assert measured.lr_interval[0] < measured.lr < measured.lr_interval[1]
    assert measured.forwards >= 20
    assert measured.lr_errors.keys() == {"law", "base", "seeds"}
    assert f"seeds {measured.lr_errors['seeds']:.2g})" in " ".join(str(measured).split())
    assert f"measured in {measured.forwards:,.0f} forward passes" in str(measured)
    assert dagscale.Plan.from_json(measured.to_json()) == measured
    assert plans["paths"].forwards == 0
    assert plans["paths"].lr_errors.keys() == {"law", "base"}


# --- combined ------------------------------------------------------------------------------------------------------


def measured(target: str, law: str, **more: object) -> dagscale.Plan:
    data = load_data("digits")
    base = load("cnn:1?width=4" if target.startswith("cnn") else "mlp:1?width=16", data=data)
    given = {"data": data, "loss": cross_entropy, "batch_size": 32, "base_lr": 0.1, "steps": 60, **more}
    return dagscale.plan(*load(target, data=data), base=base, law=law, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["mlp:2_02_002?width=32", "cnn:2_12?width=4&kernel=5"])
def test_combined_is_the_geometric_mean_of_both(target: str) -> None:
    both, short, closed = (measured(target, law) for law in ("combined", "short-run", "covariance"))
    assert both.lr == pytest.approx(math.sqrt(short.lr * closed.lr))
    assert set(both.factors) == {"short-run", "covariance"}
    assert both.lr == pytest.approx(0.1 * math.prod(both.factors.values()))
    assert both.forwards == short.forwards
    assert both.lr_errors["seeds"] == pytest.approx(short.lr_errors["seeds"] / 2)


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("mlp:2_02?width=32&norm=batch", {}),
        ("mlp:2_02?width=32", {"optimizer": "adamw"}),
        ("mlp:2_02?width=32", {"init": "keep"}),  # the covariance law knows inits by their second moments
    ],
)
def test_combined_is_the_short_run_alone_where_covariance_says_nothing(target: str, more: dict[str, object]) -> None:
    both, short = (measured(target, law, **more) for law in ("combined", "short-run"))
    assert dict(both.factors) == dict(short.factors)
    assert both.lr_interval == pytest.approx(short.lr_interval)


def test_attention_and_gates_are_left_to_the_short_run() -> None:
    class Gated(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(64, width), nn.Linear(64, width), nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return self.out(self.a(x) * self.b(x).sigmoid())  # type: ignore[no-any-return]

    data = load_data("digits")
    given = {"base": (Gated(8), data.x[:2]), "base_lr": 0.1, "data": data, "loss": cross_entropy, "batch_size": 32}
    plan = dagscale.plan(Gated(32), data.x[:2], steps=30, **given)  # type: ignore[arg-type]
    assert plan.law == "combined"
    assert set(plan.factors) == {"short-run"}


def test_a_network_without_hidden_layers_is_left_to_the_short_run() -> None:
    data = load_data("digits")
    x, linear = data.x[:2], nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    base = load("mlp:1?width=16", data=data)
    plan = dagscale.plan(linear, x, base=base, base_lr=0.1, data=data, loss=cross_entropy, batch_size=32)
    assert set(plan.factors) == {"short-run"}


def test_covariance_knows_frozen_layers() -> None:
    def network(frozen: int) -> tuple[nn.Module, torch.Tensor]:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        model[:frozen].requires_grad_(False)
        return model, torch.ones(2, 4)

    def rate(frozen: int) -> float:
        return dagscale.plan(*network(frozen), base=network(0), base_lr=0.1, law="covariance").lr

    assert 0.1 < rate(1) < math.inf
    with pytest.raises(GraphError, match="target: it trains no hidden layer"):
        rate(3)


def test_the_interval_is_that_of_the_short_run_where_only_the_base_has_norms() -> None:
    data = load_data("digits")
    base = load("mlp:1?width=16&norm=batch", data=data)
    given = {"base": base, "base_lr": 0.1, "data": data, "loss": cross_entropy, "batch_size": 32, "steps": 60}
    both, short = (
        dagscale.plan(*load("mlp:2_02?width=32", data=data), law=law, **given)  # type: ignore[arg-type]
        for law in ("combined", "short-run")
    )
    assert dict(both.factors) == dict(short.factors)
    assert both.lr_interval == pytest.approx(short.lr_interval)
