"""Ctrl-C, other signals and threads at any moment of a trace: the model and the process stay as they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dagscale.tracing import trace

SCRIPT = """
import random, signal, sys, time
sys.path.insert(0, sys.argv[1])
import oracle, torch
from torch import nn
import dagscale

number, times = int(sys.argv[2]), int(sys.argv[3])

class Stopped(Exception):
    pass

def stop(*_):
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped

timers = {signal.SIGALRM: signal.ITIMER_REAL, signal.SIGVTALRM: signal.ITIMER_VIRTUAL}
signal.signal(number, stop)
if number not in timers:
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))

def looks(module, args, out):
    if out.sum().item() > 1e9:
        raise ValueError

def build():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.ReLU()) for _ in range(12)]
    return nn.Sequential(*layers)

model, x = build(), torch.randn(4, 8)
real = build()
real[0].register_forward_hook(looks)
for m in (model, real):
    dagscale.trace(m, x)

def timed():
    start = time.perf_counter()
    dagscale.trace(model, x)
    return time.perf_counter() - start

length = min(timed() for _ in range(3))  # of a busy machine the least, or most signals come too late
before = oracle.of_model(model), oracle.of_model(real), oracle.of_process(), signal.getsignal(number)
chance = random.Random(1)
came = 0
for i in range(times):
    signal.setitimer(signal.ITIMER_REAL, max(chance.random() * 1.2 * length, 1e-6))
    try:
        dagscale.trace((model, real)[i % 2], x)
    except (KeyboardInterrupt, Stopped):
        came += 1
    else:
        try:
            time.sleep(0 if signal.getitimer(signal.ITIMER_REAL)[0] == 0 else 2 * length)
        except (KeyboardInterrupt, Stopped):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    after = oracle.of_model(model), oracle.of_model(real), oracle.of_process(), signal.getsignal(number)
    changed = [k for b, a in zip(before[:3], after[:3]) for k in b if a[k] != b[k]]
    assert not changed and after[3] is before[3], (i, changed)
assert oracle.survivors([]) == []
print(came)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGALRM], ids=["INT", "TERM", "ALRM"])
def test_signals_at_random_moments(number: signal.Signals) -> None:
    """Fifty of them, and the interpreter lives."""
    fixtures = str(Path(__file__).parent / "fixtures")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, fixtures, str(int(number)), "50"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 20


@pytest.mark.parametrize(("model", "kind"), [("borrowed", "interrupt"), ("copied", "raise")])
def test_plan_search_and_check_stopped_at_random_moments(model: str, kind: str) -> None:
    """A sample of what `benchmarks/interrupts.py` tries fifty times each."""
    script = Path(__file__).parent / "fixtures" / "moments.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), "plan,search,check,measure", model, kind, "4", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert (row["changed"], row["survivors"]) == ([], 0), row
        assert row["stopped"] >= 2, row


class Signalling(nn.Linear):
    """Sends a signal from inside its forward."""

    def forward(self, x: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return super().forward(torch.relu(x))


def test_the_forward_stops_at_the_next_operator_and_the_signal_is_delivered() -> None:
    ran: list[str] = []
    model = nn.Sequential(Signalling(4, 4), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda module, args: ran.append("second layer"))
    with pytest.raises(KeyboardInterrupt):
        trace(model, torch.randn(2, 4))
    assert ran == []
    assert type(model[0].weight) is nn.Parameter
    assert type(model[0].weight.data) is Tensor


def test_a_handler_that_goes_on_gets_its_graph() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        graph = trace(Signalling(4, 4), torch.randn(2, 4))
    finally:
        signal.signal(signal.SIGINT, before)
    assert [use.name for use in graph.layers] == [""] or len(graph.layers) == 1
    assert set(seen) == {signal.SIGINT}


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), *[nn.Linear(4, 4) for _ in range(seed)])


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "a model each"])
def test_eight_threads(shared: bool) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parent / "fixtures" / "oracle.py")
    assert spec is not None
    assert spec.loader is not None
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    x = torch.randn(2, 4)
    models = [build(1)] * 8 if shared else [build(seed) for seed in range(8)]
    serial = [trace(model, x) for model in models]
    before = [oracle.of_model(model) for model in models], oracle.of_process()
    found: list[Any] = [None] * 8
    gate = threading.Barrier(8)

    def work(i: int) -> None:
        gate.wait()
        for _ in range(5):
            found[i] = trace(models[i], x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == serial
    assert ([oracle.of_model(model) for model in models], oracle.of_process()) == before


def test_other_threads_forwards_are_not_recorded() -> None:
    """Global hooks see every module of the process; only those that the traced forward runs count."""
    other, stop = nn.Linear(4, 4), threading.Event()

    def work() -> None:
        while not stop.is_set():
            other(torch.zeros(1, 4))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        model, x = build(3), torch.randn(2, 4)
        assert len({str(trace(model, x)) for _ in range(10)}) == 1
    finally:
        stop.set()
        thread.join()
