"""Initialisations: what they promise of the signal, measured over many seeds."""

import math

import pytest
import torch
from torch import nn

import dagscale
from dagscale.models.targets import load

WIDTH, SEEDS = 512, 24
CODES = ["2_22_222", "2_02_022_0222", "2_22_022_2202"]


def second_moments(code: str, init: str) -> list[float]:
    """Mean over seeds, batch and units of every vertex's squared pre-activation, relative to vertex 0's."""
    model, inputs = load(f"mlp:{code}?order=pre&width={WIDTH}")
    plan = dagscale.plan(model, inputs, base_lr=1.0, law="none", init=init)
    x = torch.randn(8, *inputs.shape[1:], generator=torch.Generator().manual_seed(1))
    vertices: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        vertices.append(args[0])

    activations = [m for m in model.modules() if isinstance(m, nn.ReLU)]
    assert activations
    handles = [m.register_forward_pre_hook(record) for m in activations]
    totals: dict[int, float] = {}
    for seed in range(SEEDS):
        plan.init_(model, seed=seed)
        vertices.clear()
        with torch.no_grad():
            model(x)
        # The same vertex enters several activations; tell vertices apart by the tensor itself.
        distinct = list(dict.fromkeys(id(v) for v in vertices))
        by_id = {id(v): v for v in vertices}
        for i, key in enumerate(distinct):
            totals[i] = totals.get(i, 0.0) + by_id[key].square().mean().item() / SEEDS
    for handle in handles:
        handle.remove()
    values = list(totals.values())
    return [v / values[0] for v in values]


@pytest.mark.parametrize("code", CODES)
def test_in_degree_keeps_every_pre_activation_at_the_firsts_second_moment(code: str) -> None:
    """Relative spread of one seed's second moment is about sqrt(5/width · depth) ≈ 0.2 at depth 4, so the
    mean over 24 seeds is within 0.04 (one sigma); four sigmas are allowed."""
    moments = second_moments(code, "in-degree")
    assert len(moments) >= 4
    for moment in moments:
        assert moment == pytest.approx(1.0, abs=0.17)


@pytest.mark.parametrize("code", CODES[:2])
def test_released_rule_does_not(code: str) -> None:
    """With the source's in-degree instead of the target's, moments drift by the ratio of the two."""
    moments = second_moments(code, "released")
    assert max(moments) / min(moments) > 1.5


def stds(target: str, init: str) -> dict[str, float | None]:
    plan = dagscale.plan(*load(target), base_lr=1.0, law="none", init=init)
    return {name: p.init_std for name, p in plan.parameters.items()}


def test_in_degree_std_by_hand() -> None:
    std = stds("mlp:2_22_222?width=128", "in-degree")
    assert std["stem.linear.weight"] == pytest.approx(math.sqrt(2 / 64))
    assert std["cells.0.edges.0_1.linear.weight"] == pytest.approx(math.sqrt(2 / 128))
    assert std["cells.0.edges.1_2.linear.weight"] == pytest.approx(math.sqrt(2 / (2 * 128)))
    assert std["cells.0.edges.0_3.linear.weight"] == pytest.approx(math.sqrt(2 / (3 * 128)))
    assert std["readout.linear.weight"] == pytest.approx(math.sqrt(2) / 128)
    assert std["readout.linear.bias"] == 0
    assert stds("mlp:2_22_222?width=128", "in-degree-standard")["readout.linear.weight"] == pytest.approx(
        math.sqrt(2 / 128)
    )


def test_released_std_by_hand() -> None:
    """Source in-degree, fan-out, and std = 2/10 at the readout of 10 classes."""
    std = stds("mlp:2_22_222?width=128", "released")
    assert std["cells.0.edges.0_3.linear.weight"] == pytest.approx(math.sqrt(2 / 128))
    assert std["cells.0.edges.2_3.linear.weight"] == pytest.approx(math.sqrt(2 / (2 * 128)))
    assert std["readout.linear.weight"] == pytest.approx(0.2)


def test_dead_summands_do_not_count() -> None:
    """Vertex 1 has no input, so vertex 2's live in-degree is 1."""
    assert stds("mlp:0_22_002?width=64", "in-degree")["cells.0.edges.0_2.linear.weight"] == pytest.approx(
        math.sqrt(2 / 64)
    )


def test_norm_gains_are_one_biases_zero_and_conv_fan_in_counts_patches() -> None:
    plan = dagscale.plan(*load("cnn:2_22?norm=batch&width=8&kernel=5"), base_lr=1.0, law="none", init="in-degree")
    fills = {n: (p.init_mean, p.init_std) for n, p in plan.parameters.items()}
    norms = [n for n, p in plan.parameters.items() if "norm" in n and n.endswith("weight")]
    assert norms
    assert all(fills[n] == (1.0, 0.0) for n in norms)
    assert all(fills[n] == (0.0, 0.0) for n in fills if n.endswith("bias"))
    std = plan.parameters["cells.0.edges.0_2.conv.weight"].init_std
    assert std == pytest.approx(math.sqrt(2 / (2 * 8 * 25)))


def test_keep_touches_nothing() -> None:
    model, inputs = load("mlp:2_22")
    before = {n: p.clone() for n, p in model.named_parameters()}
    dagscale.plan(model, inputs, base_lr=1.0, law="none", init="keep").init_(model)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


class Tied(nn.Module):
    """One hidden layer used twice: once alone, once as one of two summands."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.shared = nn.Linear(16, 16)
        self.readout = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.stem(x))
        h = torch.relu(self.shared(h))
        return self.readout(h + self.shared(h))


def test_shared_weight_takes_the_smallest_std_it_is_asked_for() -> None:
    plan = dagscale.plan(Tied(), torch.randn(2, 4), base_lr=1.0, law="none", init="in-degree")
    assert plan.parameters["shared.weight"].init_std == pytest.approx(math.sqrt(2 / (2 * 16)))
