"""A week in small: plans, searches and sweeps in one long-lived process under random faults, for as long as wished.

    python benchmarks/soak.py --minutes 360

A fault is Ctrl-C at a random moment, a forward or loss that raises, a run that fails, or SIGKILL to a sweep's driver.
After each, the model must be to the bit what it was, and a sweep that is called again must end in the table of an
undisturbed one. At the end: memory, file descriptors, threads, child processes and temporary files against what they
were after the first tenth. Rows of a table for docs/robustness.md; what is wrong goes to stderr, and the exit status is
1 then.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from kills import Sweep
from torch import nn

import dagscale
from dagscale.bench.sweep import Run, export, sweep
from dagscale.errors import DagscaleError

DATA = (torch.randn(48, 6, generator=torch.Generator().manual_seed(0)), torch.arange(48) % 3)


class Fickle(nn.Module):
    """A layer that raises in one of so many forwards, and none if that is 0."""

    def __init__(self, one_in: int, chance: random.Random) -> None:
        super().__init__()
        self.one_in, self.chance = one_in, chance

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.one_in and self.chance.randrange(self.one_in) == 0:
            raise ValueError("the forward raised")
        return x


def make(chance: random.Random) -> nn.Module:
    torch.manual_seed(chance.randrange(100))
    width = chance.choice((8, 16, 24))
    fickle = Fickle(chance.choice((0, 0, 0, 5, 50)), chance)
    hidden = [part for _ in range(chance.randrange(3)) for part in (nn.Linear(width, width), nn.ReLU())]
    norm = chance.choice((nn.Identity, nn.LayerNorm, nn.BatchNorm1d))(width)
    return nn.Sequential(nn.Linear(6, width), norm, nn.ReLU(), *hidden, fickle, nn.Linear(width, 3))


def bits(model: nn.Module) -> list[Any]:
    """All that must stay: values, types, hooks, modes."""
    return [
        [(name, type(value), value.detach().numpy().tobytes()) for name, value in model.state_dict().items()],
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        torch._C._get_mkldnn_enabled(), torch.is_grad_enabled(), torch.get_num_threads(),
    ]  # fmt: skip


def interrupted(chance: random.Random, seconds: float) -> bool:
    """Arm Ctrl-C for a random moment within so many seconds, in one of three cases."""
    if chance.randrange(3):
        return False
    signal.setitimer(signal.ITIMER_REAL, 0.001 + chance.random() * seconds)
    return True


def disarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(chance: random.Random, seconds: float, what: Callable[[], object]) -> str:
    """What came of it, in a word."""
    try:
        interrupted(chance, seconds)
        try:
            what()
        finally:
            disarm()
        return "done"
    except KeyboardInterrupt:
        return "interrupted"
    except DagscaleError:
        return "refused"


def plan(chance: random.Random, home: Path) -> str:
    model, base = make(chance), make(chance)
    before = bits(model), bits(base)
    law = chance.choice(("none", "covariance", "walk", "curvature"))
    data = {"data": DATA, "loss": nn.functional.cross_entropy} if law == "curvature" else {}
    inputs, found = DATA[0][:4], []

    def run() -> None:
        found.append(
            dagscale.plan(model, inputs, base=(base, inputs), base_lr=0.1, law=law, init="in-degree", **data)
        )  # fmt: skip

    said = attempt(chance, 0.5, run)
    assert (bits(model), bits(base)) == before, f"plan, {said}: a model is not as it was"
    return f"{said}; init_: {drawn(chance, home, model, found[0])}" if found else said


def drawn(chance: random.Random, home: Path, model: nn.Module, made: dagscale.Plan) -> str:
    """Save a plan, read it back and write it into the model, wholly or not at all."""
    made.save(home / "plan.json")
    again = dagscale.Plan.load(home / "plan.json")
    assert again == made
    before = bits(model)
    said = attempt(chance, 0.003, lambda: again.init_(model))
    after = bits(model)
    again.init_(model)
    assert after in (before, bits(model)), "half a plan was written"
    return said


def search(chance: random.Random, home: Path) -> str:
    model = make(chance)
    before = bits(model)
    said = attempt(chance, 2.0, lambda: dagscale.search(model, DATA, seeds=1, steps=4, batch_size=16, init="in-degree"))
    assert bits(model) == before, f"search, {said}: the model is not as it was"
    return said


def execute(run: Run) -> dict[str, Any]:
    time.sleep(0.002)
    if run.seed % 7 == 3:
        raise ValueError("a run that fails")
    return {"drawn": torch.rand(3).tolist(), "seed": run.seed}


def swept(chance: random.Random, home: Path) -> str:
    runs = [Run("mlp:2", 0.1, seed=chance.randrange(1000), version="v") for _ in range(40)]
    calls = 0
    while True:
        calls += 1
        if attempt(chance, 0.5, lambda: sweep(runs, execute, home / "s.db", jobs=1)) == "done":
            break
    sweep(runs, execute, home / "whole.db", jobs=1)
    for name in ("s", "whole"):
        export(home / f"{name}.db", home / f"{name}.csv")
    assert (home / "s.csv").read_bytes() == (home / "whole.csv").read_bytes(), "another table"
    return "done at once" if calls == 1 else "done after interrupts"


def killed(chance: random.Random, home: Path) -> str:
    one = Sweep(home, 20, 0.02)
    for _ in range(2):
        driver = one.start("2")
        begin = time.monotonic()
        while (
            len(one.executions()) < chance.randrange(1, 15) and driver.poll() is None and time.monotonic() < begin + 60
        ):
            time.sleep(0.02)
        driver.kill()
        driver.communicate()
        time.sleep(0.5)
    for store in ("s.db", "whole.db"):
        assert one.start("1", store).wait() == 0, "a killed sweep does not go on"
    assert one.tables("s.db") == one.tables("whole.db"), "another table"
    return "done after kills"


KINDS = (plan,) * 12 + (search,) * 4 + (swept,) * 4 + (killed,)


def standing() -> dict[str, float]:
    """What must stay flat."""
    status = Path("/proc/self/status").read_text()
    children = [
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    return {
        "MiB": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=360.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    chance, begin = random.Random(asked.seed), time.monotonic()
    found: Counter[str] = Counter()
    faults, early = 0, None
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        while (gone := (time.monotonic() - begin) / 60) < asked.minutes:
            kind = chance.choice(KINDS)
            with tempfile.TemporaryDirectory() as home:
                try:
                    found[f"{kind.__name__}: {kind(chance, Path(home))}"] += 1
                except Exception:
                    faults += 1
                    with suppress(OSError):
                        traceback.print_exc()
                finally:
                    disarm()
            if early is None and gone > asked.minutes / 10:
                early = standing()
        end = standing()
    early = early or end
    for what, count in sorted(found.items()):
        print(f"| {what} | {count:,} |  |")
    for name, value in end.items():
        print(f"| {name} after {asked.minutes:g} minutes |  | {value:,.0f} (after a tenth {early[name]:,.0f}) |")
    print(f"| faults |  | {faults} |")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
