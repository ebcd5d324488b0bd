"""Width and depth in a plan: the published table, parameter by parameter, through the optimiser that the plan makes."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import PlanError

IDS = torch.randint(0, 40, (64, 8), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(n, t, d // 8, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, d)
        x = x + self.o(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


def recipe(**more: Any) -> dagscale.Recipe:
    given: dict[str, Any] = {"optimizer": torch.optim.AdamW, "weight_decay": 0.1, "batch_size": 16, "steps": 20}
    return dagscale.Recipe((IDS, IDS.roll(-1, 1)), loss, **{**given, **more})


def planned(**modes: Any) -> dagscale.Plan:
    said = recipe()
    base = (Language(2, 16), IDS[:2])
    return dagscale.plan(Language(8, 32), base=base, base_lr=0.01, recipe=said, **modes)


# m_N = 2, m_L = 4, α = 1: rate, ε, decay, fold [Dey et al. 2025, arXiv 2505.01618, Table 1, folded].
TABLE = {
    "token.weight": (1, 1 / 2, 1, 1),
    "blocks.3.q.weight": (1 / 2, 1 / 8, 2, 1),
    "blocks.3.up.weight": (1 / 2, 1 / 8, 2, 1),
    "blocks.3.o.weight": (1 / 8, 1 / 2, 8, 1 / 4),
    "blocks.3.down.weight": (1 / 8, 1 / 2, 8, 1 / 4),
    "blocks.3.down.bias": (1 / 4, 1 / 2, 4, 1 / 4),
    "blocks.3.norm1.weight": (1, 1 / 8, 1, 1),
    "head.weight": (1 / 2, 1, 2, 1),
}


def test_the_table_reaches_the_optimiser() -> None:
    plan = planned(width="mup", depth="completep")
    assert (plan.law, plan.forwards, plan.lr) == ("none", 0, 0.01), "no step on the target"
    model = Language(8, 32)
    groups = plan.optimizer(model).param_groups
    held = {name: group for group in groups for name in group["param_names"]}
    for name, (lr, eps, decay, fold) in TABLE.items():
        own = plan.parameters[name]
        assert (own.lr / 0.01, own.eps, own.weight_decay, own.fold) == pytest.approx((lr, eps, decay, fold)), name
        group = held[name]
        decayed = 0.1 * decay if own.role not in ("bias", "norm") else 0
        got = (group["lr"], group["eps"], group["weight_decay"], group.get("fold", 1))
        assert got == pytest.approx((0.01 * lr, 1e-8 * eps, decayed, fold)), name


def test_branch_ends_are_drawn_smaller_by_the_growth_of_depth() -> None:
    deep, flat = planned(depth="completep"), planned(law="none")
    for name in ("blocks.3.o.weight", "blocks.7.down.weight"):
        assert deep.parameters[name].init_std == pytest.approx(flat.parameters[name].init_std / 4)  # type: ignore[operator]
    assert deep.parameters["blocks.3.q.weight"].init_std == flat.parameters["blocks.3.q.weight"].init_std


def test_clipping_sees_the_unfolded_gradient() -> None:
    """At a fold of c the gradient is 1/c of the unfolded model's, and counts as c times itself."""
    model = Language(8, 32)
    plan = planned(depth="completep")
    optimizer = plan.optimizer(plan.init_(model))
    loss(model(IDS), IDS).backward()
    folds = {name: own.fold for name, own in plan.parameters.items()}
    norm = sum(float((p.grad * folds[n]).square().sum()) for n, p in model.named_parameters() if p.grad is not None)
    assert float(dagscale.clip_grad_norm_(optimizer, 1e9)) == pytest.approx(norm**0.5, rel=1e-4)


def test_a_rule_without_a_base_and_a_base_without_branches_are_refused() -> None:
    with pytest.raises(PlanError, match="depth='completep' scales from a base's shapes"):
        dagscale.plan(Language(2, 16), base_lr=0.1, recipe=recipe(), depth="completep")
    flat = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 40))
    with pytest.raises(PlanError, match="the base has no residual branch"):
        dagscale.plan(Language(2, 16), base=(flat, IDS[:2]), base_lr=0.1, recipe=recipe(), depth="completep")
    with pytest.raises(PlanError, match="depth_alpha= is that of a depth rule"):
        planned(depth_alpha=0.5)


def test_plans_made_in_threads_are_those_made_one_after_another() -> None:
    models = [nn.Sequential(nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 4)) for w in range(8, 16)]
    x, y = torch.randn(64, 8), torch.arange(64) % 4

    def make(model: nn.Module) -> dagscale.Plan:
        return dagscale.plan(model, data=(x, y), loss=F.cross_entropy, batch_size=16, steps=8)

    before = (torch.backends.mha.get_fastpath_enabled(), torch.get_rng_state())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(make, models))
    assert together == [make(model) for model in models]
    assert torch.backends.mha.get_fastpath_enabled() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


SPAWNING = """
import sys
import dagscale, torch
from torch import nn
from torch.multiprocessing.spawn import spawn

def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def train(rank, plan):
    made = plan.init_(model())
    optimizer = plan.optimizer(made)
    made(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    print(repr(float(sum(p.double().sum() for p in made.parameters()))), flush=True)

if __name__ == "__main__":
    torch.manual_seed(0)
    plan = dagscale.plan(model(), torch.ones(2, 8), base_lr=0.1, law="none")
    torch.save(plan, sys.argv[1])
    assert torch.load(sys.argv[1], weights_only=False) == plan
    spawn(train, (plan,), nprocs=2)
"""


@pytest.mark.slow
def test_a_plan_travels_to_spawned_processes_and_through_torch_save(tmp_path: Path) -> None:
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "plan.pt")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second, "the same weights after the same step"
