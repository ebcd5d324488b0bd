"""The same graph and the same initial numbers, however the model is wrapped."""

from __future__ import annotations

import ast
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dagscale
from dagscale.tracing import trace


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 3)
    )


X = torch.randn(6, 4)


def make_plan(model: nn.Module, x: torch.Tensor = X) -> Any:
    base = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), X)
    return dagscale.plan(model, x, base=base, base_lr=0.1, law="paths", init="in-degree", seed=3)


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any, list[torch.Tensor]]:
    """Graph, plan and initial numbers of the model by itself."""
    model = build()
    plan = make_plan(model)
    return trace(model, X), plan, [p.detach().clone() for p in plan.init_(model).parameters()]


def same(model: nn.Module, numbers: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), numbers, strict=True))


def test_deepcopy(alone: Any) -> None:
    graph, plan, numbers = alone
    twin = copy.deepcopy(build())
    assert trace(twin, X) == graph
    assert same(plan.init_(twin), numbers)


def test_meta_then_materialised(alone: Any) -> None:
    graph, plan, numbers = alone
    with torch.device("meta"):
        model = build()
    assert trace(model, X.to("meta")) == graph
    assert make_plan(model, X.to("meta")) == plan
    model.to_empty(device="cpu")
    assert same(plan.init_(model), numbers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled(alone: Any) -> None:
    graph, plan, numbers = alone
    model = torch.compile(build())
    assert trace(model, X) == graph
    assert make_plan(model) == plan
    assert same(plan.init_(model), numbers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_part(alone: Any) -> None:
    graph, plan, numbers = alone
    model = build()
    model[3] = torch.compile(model[3])
    assert trace(model, X) == graph
    assert make_plan(model) == plan
    assert same(plan.init_(model), numbers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_in_place(alone: Any) -> None:
    graph, plan, numbers = alone
    model = build()
    model.compile()
    assert trace(model, X) == graph
    assert same(plan.init_(model), numbers)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, AveragedModel])
def test_wrapped_as_a_module(alone: Any, wrapper: Any) -> None:
    graph, plan, numbers = alone
    model = wrapper(build())
    assert trace(model, X) == graph
    assert same(plan.init_(model), numbers)


def test_checkpoint_wrapper(alone: Any) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    graph, plan, numbers = alone
    model = build()
    model[3] = checkpoint_wrapper(model[3])
    assert trace(model, X) == graph
    assert same(plan.init_(model), numbers)


def test_another_dtype(alone: Any) -> None:
    graph, plan, numbers = alone
    model = build().to(torch.bfloat16)
    assert [v.kind for v in trace(model, X.bfloat16()).vertices] == [v.kind for v in graph.vertices]
    assert same(plan.init_(model), [n.bfloat16() for n in numbers])


@pytest.mark.slow
def test_ddp_and_fsdp_on_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).parent / "fixtures" / "distributed.py"
    command = [sys.executable, "-W", "ignore", str(script)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "meet"), str(tmp_path / str(rank))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], errors[0]
    for rank in range(2):
        result = ast.literal_eval((tmp_path / f"{rank}").read_text())
        for kind, facts in result.items():
            for fact, holds in facts.items():
                assert holds is True or (isinstance(holds, list) and all(holds)), (rank, kind, fact, holds)
