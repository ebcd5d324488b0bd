"""A signal at every instant at which Python can meet one, while models and switches of the process are changed."""

from __future__ import annotations

import copy
import gc
import importlib.util
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dagscale
from dagscale.bench.sweep.store import Store
from dagscale.interrupts import between_changes
from dagscale.tracing.forward import ONE_AT_A_TIME, eagerly, plain_eager
from dagscale.training.copies import WorkingCopy, all_put_back
from dagscale.training.seeds import seeded


def fixture(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "fixtures" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle, pending = fixture("oracle"), fixture("pending")


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def uncopyable() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


def modes(model: WorkingCopy) -> None:
    """What dagscale's measurements enter, one in the other."""
    with seeded(3), eagerly(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Mode():
        torch.rand(1)


def kernels(model: WorkingCopy) -> None:
    with plain_eager(), torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        torch.rand(1)


def loan(copied: WorkingCopy) -> None:
    model = copied.reset(seed=1)
    with torch.no_grad():
        model(torch.rand(4, 2))
        model[0].weight.add_(1)
    copied.give_back()


def optimiser(copied: WorkingCopy) -> None:
    model = copied.reset()
    model(torch.rand(4, 2)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()


def stopped_at(number: int, call: Callable[[], object], check: Callable[[], object] = bool) -> bool:
    """Call with a signal at the so-many-th instant, and check while the exception lives. Whether one is so late.

    Without the garbage collector, in whose callbacks, such as those of PyTorch's compiler, Python drops exceptions."""
    gc.disable()
    sys.settrace(pending.at_instant(number, signal.SIGINT))
    try:
        call()
    except KeyboardInterrupt:
        gc.enable()
        check()  # as in an interactive session
        return True
    finally:
        sys.settrace(None)
        gc.enable()
    return False


def at_every_instant(call: Callable[[], object], check: Callable[[], object]) -> int:
    """Call anew, with a signal at one instant after the other, and check after each; how many there are."""
    number = 0
    while stopped_at(number, call, check):
        number += 1
    return number


@pytest.mark.parametrize("body", [modes, kernels, loan, optimiser])
def test_every_instant(body: Callable[[WorkingCopy], None]) -> None:
    """Nothing is left behind, and the next call finds the lock open."""
    model = uncopyable()
    copied = WorkingCopy(model)
    assert copied.borrowed

    def call() -> None:
        with all_put_back():
            body(copied)

    def check() -> None:
        assert {**oracle.of_model(model), **oracle.of_process()} == before
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not ONE_AT_A_TIME._is_owned()  # type: ignore[attr-defined]

    call()
    before = {**oracle.of_model(model), **oracle.of_process()}
    assert at_every_instant(call, check) > 100  # places where Python looks for signals


def test_every_instant_of_writing_a_plan() -> None:
    """The model is as it was or as planned, and never in between."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plan = dagscale.plan(model, torch.zeros(1, 2), base_lr=0.1, law="none")
    start = copy.deepcopy(model.state_dict())
    planned = copy.deepcopy(plan.init_(model).state_dict())
    seen = set()

    def check() -> None:
        assert oracle.of_process() == before
        found = [all(torch.equal(t, state[n]) for n, t in model.state_dict().items()) for state in (start, planned)]
        assert any(found)
        seen.add(found[0])
        model.load_state_dict(start)

    model.load_state_dict(start)
    before = oracle.of_process()
    at_every_instant(lambda: plan.init_(model), check)
    assert seen == {True, False}


def test_what_had_to_wait_is_delivered_at_once() -> None:
    """A signal that comes while a manager is entered stops what follows, not only the whole."""

    entered: list[str] = []

    class Signalling(random.Random):
        def getstate(self) -> Any:
            if not entered:
                entered.append("it came")
                signal.raise_signal(signal.SIGINT)
                entered.append("it waits")
            return super().getstate()

    def call() -> None:
        with between_changes(), seeded(0, [Signalling()]):
            time.sleep(20)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert entered == ["it came", "it waits"]
    assert time.monotonic() - start < 10


def test_one_that_comes_in_a_destructor_is_not_lost() -> None:
    """As where a loader's workers are ended. Python drops what a destructor raises."""

    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def call() -> None:
        ending = Ending()
        with between_changes():
            del ending
            time.sleep(20)

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        call()
    assert time.monotonic() - start < 10


def test_managers_of_the_users_own_are_stopped_as_ever() -> None:
    @contextmanager
    def download() -> Any:
        signal.raise_signal(signal.SIGINT)
        yield

    with pytest.raises(KeyboardInterrupt), between_changes(), download():
        pytest.fail("it came too late")


def test_a_handler_that_goes_on_and_one_that_the_code_inside_sets() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    own = lambda number, frame: None  # noqa: E731
    try:
        with between_changes():
            signal.raise_signal(signal.SIGINT)
            with between_changes():
                signal.raise_signal(signal.SIGINT)
        assert seen == [signal.SIGINT] * 2
        with between_changes():
            signal.signal(signal.SIGINT, own)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_trace_inside_of_a_plan_is_stopped_at_once() -> None:
    """It is not run to its end first because its signals are delivered to another guard."""
    ran: list[str] = []

    class Signalling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            signal.raise_signal(signal.SIGINT)
            return super().forward(torch.relu(x))

    model = nn.Sequential(Signalling(4, 4), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda module, args: ran.append("second layer"))
    with pytest.raises(KeyboardInterrupt):
        dagscale.plan(model, torch.randn(2, 4), base_lr=0.1, law="none")
    assert ran == []


def test_every_instant_of_a_store(tmp_path: Path) -> None:
    """No lock is left, by which this process would take itself for another one that sweeps; nor a file held open."""
    path, held = tmp_path / "s.db", Path("/proc/self/fd")

    def store() -> None:
        with Store(path, write=True):
            pass

    store()
    before = len(list(held.iterdir())) if held.exists() else 0
    number = 0
    gc.collect()
    gc.disable()  # what a signal raises in a function that is called at a collection, Python drops
    while stopped_at(number, store):
        store()  # when the exception is gone: where ``__exit__`` begins, nothing else can help
        number += 1
    gc.enable()
    assert number > 50
    assert not held.exists() or len(list(held.iterdir())) <= before
