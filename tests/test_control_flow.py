"""Control flow of PyTorch's own, and what else hides from a dispatch mode, is read, trained and watched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import bias as biases
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import dagscale

higher = pytest.importorskip("torch._higher_order_ops.scan")  # as it is from torch 2.7 on
from torch._higher_order_ops.map import map as mapped  # noqa: E402
from torch._higher_order_ops.scan import scan  # noqa: E402

# of the compiler, where it is imported and where it looks for gradients
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning", "ignore:The .grad attr:UserWarning")
X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


class Model(nn.Module):
    """Three layers, and what happens to the signal between them."""

    def __init__(self, between: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.gain = nn.Parameter(torch.full((16,), 0.9))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self, self.a(x)))  # type: ignore[no-any-return]


def looped(m: Model, h: Tensor) -> Tensor:
    carry = torch.zeros_like(h)
    for _ in range(3):
        carry = carry * m.gain + h
    return m.b(carry).relu()  # type: ignore[no-any-return]


def scanned(m: Model, h: Tensor) -> Tensor:
    def step(carry: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        carry = carry * m.gain + row
        return carry, carry.clone()

    return m.b(scan(step, torch.zeros_like(h), h.expand(3, -1, -1))[1][-1]).relu()  # type: ignore[no-any-return]


def halved(m: Model, h: Tensor) -> Tensor:
    def halve(i: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, h * 0.5

    start = torch.zeros((), dtype=torch.long)
    loop: Any = torch._higher_order_ops.while_loop  # type: ignore[attr-defined]
    return m.b(loop(lambda i, h: i < 2, halve, (start, h))[1]).relu()  # type: ignore[no-any-return]


def attended(m: Model, h: Tensor, mask: Any = None) -> Tensor:
    rows = h.unflatten(-1, (1, 4, 4))
    return m.b(scaled_dot_product_attention(rows, rows, rows, mask, is_causal=mask is None).flatten(1)).relu()  # type: ignore[no-any-return]


WAYS: dict[str, tuple[Callable[[Model, Tensor], Tensor], Callable[[Model, Tensor], Tensor]]] = {
    "cond": (
        lambda m, h: torch.cond(h.sum() > -1e9, lambda h: m.b(h).relu(), lambda h: h.clone(), (h,)),
        lambda m, h: m.b(h).relu(),
    ),
    "while": (halved, lambda m, h: m.b(h * 0.5 * 0.5).relu()),
    "map": (lambda m, h: mapped(lambda row: m.b(row).relu(), h), lambda m, h: m.b(h).relu()),
    "scan": (scanned, looped),
    "bias": (lambda m, h: attended(m, h, biases.causal_lower_right(4, 4)), attended),
}


def read(model: nn.Module) -> Any:
    graph = dagscale.trace(model, X)
    return [(u.name, u.in_degree, u.readout) for u in graph.layers], [(p.name, p.reached) for p in graph.parameters]


def recipe() -> dagscale.Recipe:
    return dagscale.Recipe((X, Y), loss=cross_entropy, batch_size=8, steps=6)


@pytest.mark.parametrize("way", WAYS)
def test_read_and_searched_as_the_plain_twin(way: str) -> None:
    model, twin = map(Model, WAYS[way])
    assert read(model) == read(twin)
    found, right = (dagscale.search(m, recipe(), grid=[0.1, 0.2, 0.4], seeds=1) for m in (model, twin))
    assert [run.loss for run in found.curve] == pytest.approx([run.loss for run in right.curve], rel=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_trained_under_a_watch_as_without(way: str) -> None:
    losses = []
    for watched in (False, True):
        model = Model(WAYS[way][0])
        plan = dagscale.plan(model, X, base_lr=0.1, law="none", init="keep")
        optimizer = plan.optimizer(model)
        watch = dagscale.watch(model, plan, optimizer, every=1) if watched else None
        for _ in range(3):
            optimizer.zero_grad()
            loss = cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
        if watch is not None:
            watch.close()
            assert watch.report().verdict.startswith("pass")
    assert losses[0] == losses[1]


COMPILED = """
import torch
import dagscale

ran = []


def backend(module, inputs):
    return lambda *given: ran.append(1) or module(*given)


part = torch.compile(lambda h: h.relu() * 1.5, backend=backend)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
forward = model.forward
model.forward = lambda x: part(forward(x))
x = torch.randn(8, 4)
plan = dagscale.plan(model, x, base_lr=0.1, law="none", init="keep")
optimizer = plan.optimizer(model)
ran.clear()
with dagscale.watch(model, plan, optimizer, every=2):
    for _ in range(4):
        model(x).sum().backward()
        optimizer.step()
print(len(ran))
"""


def test_compiled_parts_stay_compiled_under_a_watch() -> None:
    """In a process of its own: what PyTorch has once given up compiling, it never compiles again."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4"
