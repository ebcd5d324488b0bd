"""The traced model comes back as it was, whichever way it was run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dagscale.errors import TraceError
from dagscale.tracing import trace


class Busy(nn.Module):
    """Does to itself what a forward can do: counts, caches, draws random numbers, writes buffers in place."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda x: None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("state", torch.zeros(4))
        self.calls = 0
        self.plain = torch.zeros(())
        self.listed = [torch.zeros(2)]
        self.cache: dict[str, Tensor] = {}
        self.history: list[Tensor] = []
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        random.random()
        np.random.rand()
        self.calls += 1
        self.steps += 1
        self.plain += 1
        self.listed[0].add_(1)
        h = self.drop(self.norm(self.conv(x))).relu().mean((2, 3))
        with torch.no_grad():
            self.state.mul_(0.9).add_(h.detach().mean(0))
            self.out.weight.data.clamp_(-0.1, 0.1)
        self.cache["h"] = h
        self.history.append(h)
        self.latest = h
        self.norm.eval()
        self.after(h)
        return self.out(h + self.state)


def fingerprint(model: Busy) -> dict[str, Any]:
    """Everything about the model and the process that a trace must leave alone, by value and identity."""
    return {
        "tensors": {
            name: (id(t), t.dtype, t.device, t.requires_grad, t._version, t.grad is None, t.detach().numpy().tobytes())
            for name, t in (*model.named_parameters(), *model.named_buffers())
        },
        "plain": (model.plain.item(), model.listed[0].tolist()),
        "modules": {
            name: {key: (id(value), repr(value)) for key, value in vars(module).items()}
            for name, module in model.named_modules()
        },
        "modes": {name: module.training for name, module in model.named_modules()},
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()),
        "hooks": [
            len(h)
            for h in (
                torch.nn.modules.module._global_forward_hooks,
                torch.nn.modules.module._global_forward_pre_hooks,
            )
        ],
        "switches": (
            torch.is_grad_enabled(),
            torch._C._get_mkldnn_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.utils._python_dispatch._get_current_dispatch_mode(),
        ),
    }


def raise_error(h: Tensor) -> None:
    raise RuntimeError("stop")


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("after", "fake"),
    [(lambda h: None, True), (lambda h: h.sum().item(), False), (lambda h: h.detach().numpy(), False)],
    ids=["fake", "item", "numpy"],
)
def test_byte_identical(mode: bool, after: Callable[[Tensor], Any], fake: bool) -> None:
    model = Busy(after).train(mode)
    model.conv.register_forward_hook(lambda module, args, out: None)
    x = torch.randn(2, 3, 8, 8)
    before, before_x = fingerprint(model), x.clone()
    graph = trace(model, x)
    after_it = fingerprint(model)
    if not fake:  # in-place writes for real are put back, but autograd's version counters have counted them
        after_it, before = without_versions(after_it), without_versions(before)
    assert [key for key in before if before[key] != after_it[key]] == []
    assert torch.equal(x, before_x)
    assert bool(graph.notes) is not fake
    assert all(p.reached for p in graph.parameters)


def without_versions(print_: dict[str, Any]) -> dict[str, Any]:
    return print_ | {"tensors": {name: (*t[:4], *t[5:]) for name, t in print_["tensors"].items()}}


@pytest.mark.parametrize("after", [raise_error, lambda h: raise_error(h) if h.sum().item() < 1e9 else None])
def test_byte_identical_after_an_error(after: Callable[[Tensor], Any]) -> None:
    model, x = Busy(after), torch.randn(2, 3, 8, 8)
    before = fingerprint(model)
    with pytest.raises(TraceError, match="stop"):
        trace(model, x)
    assert without_versions(fingerprint(model)) == without_versions(before)


def test_inputs_are_not_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            if x.sum().item() > 1e9:
                return x
            return self.a(x)

    x = torch.randn(2, 4)
    before = x.clone()
    trace(Writes(), x)
    assert torch.equal(x, before)


def test_gradients_and_training_go_on_as_if_nothing_happened() -> None:
    """A trace between forward and backward changes neither."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4)
    loss, other = model(x).pow(2).mean(), twin(x).pow(2).mean()
    trace(model, x)
    loss.backward()
    other.backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("no_grad", [torch.no_grad, torch.inference_mode])
def test_gradient_mode_around_the_trace_does_not_matter(no_grad: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(2, 4)
    with no_grad():
        graph = trace(model, x)
    assert graph == trace(model, x)


def test_state_carried_over_in_a_buffer_is_seen() -> None:
    """What a forward writes into a buffer and reads back is the signal."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("h", torch.zeros(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            self.h.copy_(self.a(x).detach())
            return self.b(self.h)

    model = Stateful()
    graph = trace(model, torch.randn(2, 4))
    assert all(p.reached for p in graph.parameters)
    assert torch.equal(model.h, torch.zeros(2, 4))


def test_a_second_trace_gives_the_same_graph() -> None:
    model, x = Busy(), torch.randn(2, 3, 8, 8)
    assert trace(model, x) == trace(model, x)
