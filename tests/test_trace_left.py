"""Nothing of a trace is left behind: survivors, fingerprints, and later outputs against an untouched twin's."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dagscale.errors import ForwardError
from dagscale.tracing import trace
from dagscale.tracing.forward import bind_inputs, plain_name
from dagscale.tracing.outputs import tensors_within
from dagscale.tracing.state import State

FIXTURES = Path(__file__).parent / "fixtures"
COUNT = itertools.count()


def load(path: Path) -> Any:
    """The fixtures of a file, made anew: with caches and globals of their own."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{next(COUNT)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


trace(nn.Linear(4, 4), torch.randn(2, 4))  # what PyTorch imports at its first use adds warning filters of its own
oracle = load(FIXTURES / "oracle.py")


def cases(kind: str) -> Any:
    return load(FIXTURES / "awkward" / f"{kind}.py").CASES


def build(make: Any) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    assert isinstance(model, nn.Module)
    return model


def outputs(model: nn.Module, inputs: Any, times: int = 2) -> list[Any]:
    """Bits of what the model gives, several forwards in a row."""
    args, kwargs = bind_inputs(model, inputs)
    torch.manual_seed(1)
    found = [t for _ in range(times) for t in tensors_within(model(*args, **kwargs))]
    assert {type(t) for t in found} == {torch.Tensor}
    return [oracle.bits(t) for t in found]


def with_gradient(model: nn.Module, inputs: Any) -> set[str]:
    """Names of the parameters that a gradient of the sum of all outputs reaches, as a training step finds it."""
    args, kwargs = bind_inputs(model, inputs)
    found = [t for t in tensors_within(model(*args, **kwargs)) if t.requires_grad and t.grad_fn is not None]
    model.zero_grad(set_to_none=True)
    if found:
        sum((t.abs() if t.is_complex() else t).sum() for t in found).backward()
    return {plain_name(n) for n, p in model.named_parameters() if p.grad is not None}


def check(model: nn.Module, twin: nn.Module, inputs: Any, layers: dict[str, int], note: str = "") -> Any:
    alive = oracle.fake_tensors()
    before = oracle.of_model(model), oracle.of_process()
    graph = trace(model, inputs)
    after = oracle.of_model(model), oracle.of_process()
    assert [key for b, a in zip(before, after, strict=True) for key in b if b[key] != a[key]] == []
    assert oracle.survivors(alive) == []
    assert {use.name: use.in_degree for use in graph.layers} == layers, str(graph)
    assert trace(model, inputs) == graph
    assert outputs(model, inputs) == outputs(twin, inputs)
    told = [n for n in graph.notes if not n.endswith("only the branch taken was seen")]
    assert ([note in n for n in told] == [True]) if note else (told == []), graph.notes
    if not note:
        trainable = {p.name for p in graph.parameters if p.reached and p.trainable}
        assert trainable == with_gradient(model, inputs)
    return graph


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases("keeping"))
def test_whatever_a_model_keeps(name: str) -> None:
    (make, layers), (twin, _) = cases("keeping")[name], cases("keeping")[name]
    if name in ("parameters re-pointed", "parameters re-pointed in a list outside of the module"):
        model, x = build(make), torch.randn(2, 4)
        before, alive = oracle.of_model(model), oracle.fake_tensors()
        trace(model, x)
        assert oracle.of_model(model) == before
        assert oracle.survivors(alive) == []
        assert outputs(model, x, 3) == outputs(build(twin), x, 3)
    else:
        check(build(make), build(twin), torch.randn(2, 4), layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases("gradients"))
def test_where_dispatch_and_autograd_differ(name: str) -> None:
    (make, layers, note), (twin, _, _) = cases("gradients")[name], cases("gradients")[name]
    check(build(make), build(twin), torch.randn(2, 4), layers, note)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases("entering"))
def test_whatever_enters_and_leaves(name: str) -> None:
    (make, inputs, layers), (twin, _, _) = cases("entering")[name], cases("entering")[name]
    check(build(make), build(twin), inputs(), layers)


@pytest.mark.parametrize("wanted", ["loc", "scale"])
def test_select_on_a_distribution(wanted: str) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.scale = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> Any:
            return torch.distributions.Normal(self.loc(x), self.scale(x).exp(), validate_args=False)

    graph = trace(Policy(), torch.randn(2, 4), select=lambda d: getattr(d, wanted))
    assert [use.name for use in graph.layers] == [wanted]


def test_what_is_passed_over_is_said() -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x), Exception("no tensor")

    assert trace(Odd(4, 4), torch.randn(2, 4)).notes == (
        "passed over among the outputs, no tensor was found in it: Exception",
    )


def test_nothing_is_left_after_an_error() -> None:
    kept: list[Any] = []

    class Raises(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            kept.append(super().forward(x))
            raise RuntimeError("stop")

    alive = oracle.fake_tensors()
    with pytest.raises(ForwardError, match="stop"):
        trace(Raises(4, 4), torch.randn(2, 4))
    assert kept == []
    assert oracle.survivors(alive) == []


class RaisesBelow(nn.Linear):
    """Calls itself through closures, which the frames of an exception hold on to."""

    def __init__(self, depth: int) -> None:
        super().__init__(4, 4)
        self.depth = depth

    def forward(self, x: torch.Tensor, at: int = 0) -> Any:
        if at == self.depth:
            raise RuntimeError("stop")
        made = super().forward(x)

        def further(own: torch.Tensor = made) -> Any:
            return self(made + own, at + 1)

        return further()


def test_to_find_what_holds_many_tensors_after_an_error_takes_as_many_looks_as_for_few() -> None:
    def looks(depth: int) -> int:
        count = 0

        def seen(frame: Any, event: str, function: Any) -> None:
            nonlocal count
            count += event == "c_call" and function is gc.get_referrers

        sys.setprofile(seen)
        try:
            with pytest.raises(ForwardError, match="stop"):
                trace(RaisesBelow(depth), torch.randn(2, 4))
        finally:
            sys.setprofile(None)
        return count

    assert 0 < looks(12) <= looks(2) + 2


def test_what_a_cache_holds_is_found_where_the_user_has_frozen_the_collectors_objects() -> None:
    """``gc.freeze`` hides from the collector what holds a tensor; it is as it was afterwards."""
    (make, layers), (twin, _) = (cases("keeping")["nested tables in an unbounded cache"] for _ in range(2))
    model, plain, x, alive = build(make), build(twin), torch.randn(2, 4), oracle.fake_tensors()
    gc.freeze()
    try:
        for _ in range(2):
            assert {use.name: use.in_degree for use in trace(model, x).layers} == layers
        assert gc.get_freeze_count() > 0
        assert oracle.survivors(alive) == []
        assert outputs(model, x) == outputs(plain, x)
    finally:
        gc.unfreeze()


class PutsHooks(nn.Module):
    """Puts hooks on its weight whenever it runs, and looks at a value, so that it is run for real."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        float(x.sum())
        self.a.weight.register_hook(lambda g: 2 * g)
        self.a.weight.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())
        return self.a(x)


def test_hooks_that_the_forward_puts_on_its_weights_are_taken_off() -> None:
    model, x = PutsHooks(), torch.randn(2, 4)
    trace(model, x)
    model.a(x).sum().backward()
    assert torch.equal(model.a.weight.grad, x.sum(0).expand(3, 4))


class Lazy(dict[str, int]):
    """A table that loads its entries when somebody asks it anything, as a library's table of models may."""

    loaded = 0

    def load(self, *_: Any) -> Any:
        Lazy.loaded += 1
        return iter(())

    __len__ = __bool__ = __iter__ = __contains__ = __eq__ = __getitem__ = load  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]
    keys = values = items = get = copy = load  # type: ignore[assignment]


TABLE = Lazy()


class Names(nn.Linear):
    """Its code names the table, and keeps another; it asks neither."""

    def __init__(self) -> None:
        super().__init__(4, 3)
        self.own = Lazy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if TABLE is not self.own else x


def test_nothing_of_the_users_is_asked_on_the_walk() -> None:
    trace(Names(), torch.randn(2, 4))
    assert Lazy.loaded == 0


def test_what_a_counter_beside_the_trace_keeps_is_not_the_models() -> None:
    """Its hooks hold autograd's record, and that the tensors of the forward, until it is done."""
    from torch.utils.flop_counter import FlopCounterMode

    alive = oracle.fake_tensors()
    with FlopCounterMode(display=False):
        graph = trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    assert graph.notes == ()
    assert oracle.survivors(alive) == []


class Asserts(nn.Linear):
    """Its forward asserts, which pytest rewrites so that it speaks of pytest's own modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) < 100, f"{len(x)} examples"
        return super().forward(x)


def test_an_assertion_under_pytest_leads_to_nothing_but_the_model() -> None:
    states = [State(model) for model in (nn.Linear(3, 3), Asserts(3, 3))]
    assert len(states[1]._saved) < len(states[0]._saved) + 20
