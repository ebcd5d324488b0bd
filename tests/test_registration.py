"""One small piece of code adds a law, an init, an operator, an optimiser, a space or a reader from outside."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load
from dagscale.bench.data.dataset import READERS, Arrays
from dagscale.cli.commands import REGISTRIES
from dagscale.errors import DataError, OptimizerError, UnknownNameError
from dagscale.models import SPACES, Space, targets
from dagscale.registry import first_sentence, summary
from dagscale.tracing import Meaning, rule
from dagscale.tracing.meaning import OPS
from dagscale.training.draws import Fill
from dagscale.training.optimizers import resolve

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
GIVEN: dict[str, Any] = {"data": (X, Y), "loss": cross_entropy, "batch_size": 16, "steps": 8}


def net(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


class RootMean(torch.optim.Optimizer):
    """Divides each gradient by the root of the running mean of its square."""

    def __init__(self, params: Any, lr: float = 0.01, decay: float = 0.9, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.lerp_(p.grad**2, 1 - group["decay"])
                    p -= group["lr"] * p.grad / (mean.sqrt() + group["eps"])


class Sign(torch.optim.Optimizer):
    """A step along the sign of the gradient's running mean."""

    def __init__(self, params: Any, lr: float = 0.01, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    p -= group["lr"] * mean.lerp_(p.grad, 1 - group["beta"]).sign()


def unknown(groups: Any) -> torch.optim.Optimizer:
    return Sign(groups)


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    with ExitStack() as stack:
        for registry in (dagscale.LAWS, dagscale.INITS, dagscale.OPTIMIZERS, OPS, SPACES, READERS):
            stack.enter_context(registry.temporarily())
        dagscale.optimizer(
            "root-mean", step="sign", grid=(-16, -4), decay="coupled",
            scaling=lambda state, group: 1 / (state["mean"].sqrt() + group["eps"]),
        )(RootMean)  # fmt: skip
        dagscale.optimizer("sign", step="sign", grid=(-17, -5), decay="decoupled")(Sign)
        yield


def test_what_is_registered_for_a_while_is_gone_afterwards() -> None:
    with dagscale.LAWS.temporarily():
        dagscale.law("mine")(lambda network: {})
        assert "mine" in dagscale.LAWS
    with pytest.raises(UnknownNameError, match="unknown law 'mine'"):
        dagscale.LAWS["mine"]


def test_a_law() -> None:
    @dagscale.law("by-size", needs_base=True)
    def by_size(network: dagscale.Network) -> dict[str, dagscale.Estimate]:
        """η ∝ e^(-parameters / 1000)."""
        return {"size": dagscale.Estimate(-sum(p.shape[0] for p in network.graph.parameters) / 1000)}

    plan = dagscale.plan(net(16), X[:2], base=(net(8), X[:2]), base_lr=0.1, law="by-size")
    assert plan.lr == pytest.approx(0.1 * 2.718281828 ** (-(4 * 8) / 1000))


def test_an_init() -> None:
    @dagscale.init("halves")
    def halves(network: dagscale.Network) -> dict[str, Fill]:
        """Everything ½."""
        return {p.name: Fill(0.5, 0.0) for p in network.graph.parameters}

    model = net()
    dagscale.plan(model, X[:2], base_lr=1.0, law="none", init="halves").init_(model)
    assert all(bool((p == 0.5).all()) for p in model.parameters())


@pytest.mark.parametrize("given", ["root-mean", RootMean, "sign", Sign, unknown])
def test_search_and_short_run_work_with_an_optimiser_from_outside(given: Any) -> None:
    found = dagscale.search(net(), optimizer=given, grid=[2.0**k for k in range(-12, -3, 2)], seeds=1, **GIVEN)
    assert found.recipe["optimizer"]["name"] == resolve(given).name
    plan = dagscale.plan(net(16), base=found, law="short-run")
    assert 0.2 < plan.lr / found.lr < 5
    made = plan.optimizer(net(16))
    assert {group["lr"] for group in made.param_groups} == {plan.lr}


def test_curvature_takes_the_optimiser_whose_scaling_is_known_and_refuses_the_other() -> None:
    known = {"base": (net(8), X[:2]), "base_lr": 0.1, "law": "curvature", **GIVEN}
    ours, torchs = (
        dagscale.plan(net(32), X[:2], optimizer=given, **more, **known)
        for given, more in ((RootMean, {}), (torch.optim.RMSprop, {"alpha": 0.9}))
    )
    assert ours.lr == pytest.approx(torchs.lr, rel=1e-3), "the same optimiser as PyTorch's own"
    for given in (Sign, unknown):
        with pytest.raises(OptimizerError, match="needs to know the scaling of each gradient") as caught:
            dagscale.plan(net(32), X[:2], optimizer=given, **known)
        assert "\n" not in str(caught.value)


def test_width_takes_a_registered_optimiser_and_refuses_another() -> None:
    known = {"base": (net(8), X[:2]), "base_lr": 0.1, "law": "none", "width": "mup"}
    ours, adams = (dagscale.plan(net(32), X[:2], optimizer=given, **known) for given in (Sign, "adamw"))
    assert {n: p.lr for n, p in ours.parameters.items()} == {n: p.lr for n, p in adams.parameters.items()}
    with pytest.raises(OptimizerError, match="kind of step of the optimizer unknown") as caught:
        dagscale.plan(net(32), X[:2], optimizer=unknown, **known)
    assert "\n" not in str(caught.value)


def test_a_space() -> None:
    SPACES.add("tower")(Space(read=lambda code, options, setting: lambda: (net(int(code)), X[:2])))
    model, inputs = targets.load("tower:12")
    assert dagscale.trace(model, inputs).parameters[0].shape == (12, 4)


def test_an_operator() -> None:
    @torch.library.custom_op("outside::gated", mutates_args=())
    def gated(x: Tensor, gate: Tensor) -> Tensor:
        return x.relu() * gate

    @gated.register_fake
    def _(x: Tensor, gate: Tensor) -> Tensor:
        return torch.empty_like(x)

    @rule("outside.gated")
    def product(arguments: Any) -> Meaning:
        return Meaning("product", data=("x", "gate"))

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return gated(self.a(x), self.b(x))  # type: ignore[no-any-return]

    graph = dagscale.trace(Gated(), X[:2])
    assert any(vertex.kind == "product" for vertex in graph.vertices)
    assert len(graph.layers) == 2


def test_a_reader(tmp_path: Path) -> None:
    @READERS.add("raw")
    def raw(path: Path) -> dict[str, Callable[[], Arrays]] | None:
        """Four grey images of 2×2 to a file; labels 0, 1, 0, 1."""
        if path.suffix != ".raw":
            return None
        images = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 2, 2, 1)
        return {"train": lambda: Arrays(images, np.arange(len(images)) % 2, classes=2)}

    file = tmp_path / "images.raw"
    file.write_bytes(bytes(range(16)))
    data = load(file)
    assert data.shape == (1, 2, 2)
    assert sorted(data.y.tolist()) == [0, 0, 1, 1]
    with pytest.raises(DataError, match="has no test split"):
        load(file, split="test")


@pytest.mark.parametrize("what", REGISTRIES)
def test_each_line_of_a_list_is_one_plain_sentence(what: str) -> None:
    """What `dagscale list` shows: whole, and without the marks of code."""
    module, name = REGISTRIES[what]  # a list that cannot be made raises here
    registry = getattr(importlib.import_module(module), name)
    for entry in registry:
        line = summary(registry[entry])
        assert 10 < len(line) < 160, f"{entry}: {line}"
        assert "``" not in line
        assert not line.endswith((",", "and", "with", "(")), f"{entry}: {line}"


def test_a_summary_is_the_first_sentence_whatever_lines_it_takes() -> None:
    assert first_sentence("One\n    sentence ``x``. Another.\n\n    More.") == "One sentence x."
    assert first_sentence("What comes before: ``η ∝ 1``.") == "What comes before"
    assert first_sentence(None) == ""
