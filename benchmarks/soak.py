"""A week in small: plans, searches, checks and sweeps in one long-lived process under random faults.

    python benchmarks/soak.py --minutes 360 --out soak.csv
    python benchmarks/soak.py --minutes 4 --calm --kinds plan     # of one kind, without interrupts

A fault is Ctrl-C at a random moment, a forward or loss that raises, a run that fails, or SIGKILL to a sweep's driver.
After each, the model must be to the bit what it was, and a sweep that is called again must end in the table of an
undisturbed one. Twice a minute a line is added to ``--out``: resident memory, what of it malloc and Python have handed
out, Python's objects, file descriptors, threads, child processes (those whose parent has died too) and temporary files.
At the end, or after SIGTERM, come rows of a table for docs/how/robustness.md, with memory's slope over what follows
the first quarter. What is wrong goes to stderr, and the exit status is 1 then; so does the stack of whatever has not
come to its end after half an hour, which ends the soak.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import faulthandler
import gc
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
from scipy.stats import theilslopes
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


def arm(chance: random.Random, seconds: float) -> None:
    """Arm Ctrl-C for a random moment within so many seconds, in half of the cases; as often early as late."""
    if chance.randrange(2):
        signal.setitimer(signal.ITIMER_REAL, seconds * 2 ** -(10 * chance.random()))


def disarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(chance: random.Random, seconds: float, what: Callable[[], object]) -> str:
    """What came of it, in a word."""
    try:
        arm(chance, seconds)
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


def check(chance: random.Random, home: Path) -> str:
    family = [make(chance), make(chance)]
    before = [bits(model) for model in family]
    said = attempt(
        chance, 2.0, lambda: dagscale.check(family, data=DATA, sizes=[1, 2], seeds=2, steps=2, init="in-degree")
    )  # fmt: skip
    assert [bits(model) for model in family] == before, f"check, {said}: a model is not as it was"
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


KINDS = (plan,) * 12 + (search,) * 4 + (check,) * 4 + (swept,) * 4 + (killed,)


class Handed(ctypes.Structure):
    """What glibc's malloc says of itself (``mallinfo2``); ``uordblks``: bytes handed out and not given back."""

    _fields_ = [
        *[(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")],
        *[(name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")],
    ]


def standing() -> dict[str, float]:
    """What must stay flat. Resident memory alone may rise: the holes between what is held are not given back."""
    gc.collect()
    malloc = ctypes.CDLL(None).mallinfo2
    malloc.restype = Handed
    status = Path("/proc/self/status").read_text()
    children = [
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    return {
        "MiB resident": int(status.split("VmRSS:")[1].split()[0]) / 1024,
        "MiB from malloc": malloc().uordblks / 2**20,
        "Python's blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


def adopt() -> None:
    """Processes whose parent dies become this one's children, so that none is overlooked."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def bury() -> None:
    """Take note of adopted children that have ended; one that has not is left over."""
    deadline = time.monotonic() + 60
    with suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=360.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak.csv"), help="what stood, twice a minute")
    names = list(dict.fromkeys(kind.__name__ for kind in KINDS))
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, help="what is done")
    parser.add_argument("--calm", action="store_true", help="no Ctrl-C")
    asked = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.__name__ in asked.kinds]
    signal.signal(signal.SIGALRM, signal.SIG_IGN if asked.calm else signal.default_int_handler)
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    adopt()
    chance, begin = random.Random(asked.seed), time.monotonic()
    found: Counter[str] = Counter()
    faults = 0
    seen: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder, asked.out.open("w", newline="") as file:
        tempfile.tempdir = folder
        table = csv.DictWriter(file, ("minutes", "processor minutes", "done", "faults", *standing()))
        table.writeheader()
        while (gone := (time.monotonic() - begin) / 60) < asked.minutes and not over.is_set():
            faulthandler.dump_traceback_later(1800, exit=True)
            kind = chance.choice(kinds)
            with tempfile.TemporaryDirectory() as home:
                try:
                    found[f"{kind.__name__}: {kind(chance, Path(home))}"] += 1
                except Exception:
                    faults += 1
                    with suppress(OSError):
                        traceback.print_exc()
                finally:
                    disarm()
            if not seen or gone > seen[-1]["minutes"] + 0.5:
                bury()
                used = sum(os.times()[:4]) / 60
                counts = {"minutes": gone, "processor minutes": used, "done": found.total(), "faults": faults}
                seen.append({**counts, **standing()})
                table.writerow({name: round(value, 2) for name, value in seen[-1].items()})
                file.flush()
    faulthandler.cancel_dump_traceback_later()
    report(found, seen, faults)
    sys.exit(1 if faults else 0)


def report(found: Counter[str], seen: list[dict[str, float]], faults: int) -> None:
    minutes = seen[-1]["minutes"]
    settled = [line for line in seen if line["minutes"] > minutes / 4] or seen
    print(f"| minutes, and minutes of a processor |  | {minutes:.0f}, {seen[-1]['processor minutes']:.0f} |")
    for what, count in sorted(found.items()):
        print(f"| {what} | {count:,} |  |")
    for name in list(seen[-1])[4:]:
        now, then = seen[-1][name], settled[0][name]
        print(f"| {name} after {minutes:.0f} minutes |  | {now:,.0f} (after a quarter {then:,.0f}) |")
    hours = [line["minutes"] / 60 for line in settled]
    if len(settled) > 10:  # with fewer there is nothing to tell
        for name in ("MiB resident", "MiB from malloc"):
            slope, _, low, high = theilslopes([line[name] for line in settled], hours)
            print(f"| {name}, slope after the first quarter, an hour |  | {slope:.1f} ({low:.1f} to {high:.1f}) |")
    print(f"| faults |  | {faults} |")


if __name__ == "__main__":
    main()
