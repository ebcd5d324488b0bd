"""How the command line and the sweep's store take faults: counts for docs/how/robustness.md.

    python benchmarks/faults.py fuzz --count 1000 --out docs/evidence/tables/fuzz.csv
    python benchmarks/faults.py flips --count 300
    python benchmarks/faults.py interrupts --count 40 --jobs 2
    python benchmarks/faults.py stops --count 200
    python benchmarks/faults.py threads --count 50

Each prints rows of one table: what was tried, how often, what came of it. ``--seed`` draws other inputs. ``fuzz --out``
adds a line a surface to a file as well, so that many short calls add up.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.util
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

FUZZ = Path(__file__).parent.parent / "tests" / "fuzz"


def part(name: str) -> ModuleType:
    """A module of the fuzz suite."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", FUZZ / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row(what: str, tried: int, result: str) -> None:
    print(f"| {what} | {tried:,} | {result} |", flush=True)


# --- fuzzed inputs


def fuzz(count: int, seed: int, only: str | None, out: Path | None) -> None:
    """So many inputs, spread evenly over the surfaces, or all to one."""
    oracle, surfaces, documents = part("oracle"), part("surfaces").SURFACES, part("documents")
    oracle.preload()
    documents.documents()
    chosen = [name for name in surfaces if only in (None, name)]
    for name in chosen:
        line = fuzz_surface(name, count // len(chosen), seed)
        words = [
            f"{name} {value}" for name, value in line.items() if name not in ("surface", "seed", "sources") and value
        ]
        row(f"fuzz: {line['surface']}", line["inputs"], ", ".join(words))
        if out is not None:
            new = not out.exists()
            with out.open("a", newline="") as file:
                table = csv.DictWriter(file, line)
                if new:
                    table.writeheader()
                table.writerow(line)


def fuzz_surface(name: str, count: int, seed: int) -> dict[str, Any]:
    """What came of so many inputs; what is wrong goes to stderr."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    oracle, surface = sys.modules["fuzz_oracle"], sys.modules["fuzz_surfaces"].SURFACES[name]
    statuses: Counter[int] = Counter()
    faults: Counter[str] = Counter()
    slowest, largest = 0.0, 0

    @seeded(seed)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def one(data: Any) -> None:
        nonlocal slowest, largest
        with tempfile.TemporaryDirectory() as folder:
            done = oracle.run(surface(data.draw, Path(folder)), Path(folder))
        statuses[done.status] += 1
        slowest, largest = max(slowest, done.seconds), max(largest, done.peak)
        if (what := oracle.fault(done)) is not None:
            faults[what] += 1
            print(oracle.report(done), file=sys.stderr, flush=True)

    one()
    return {
        "surface": name, "seed": seed, "sources": sources(), "inputs": statuses.total(),
        **{f"status {status}": statuses[status] for status in sorted(oracle.STATUS)},
        "slowest seconds": round(slowest, 1), "largest MiB": largest >> 20,
        "faults": "; ".join(f"{n} × {what}" for what, n in faults.items()),
    }  # fmt: skip


def sources() -> str:
    """A digest of the package's sources, which tells which of the counts are of the same ones."""
    import dagscale

    folder, sha = Path(dagscale.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        sha.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return sha.hexdigest()[:12]


# --- bits of a store


def flips(count: int, seed: int) -> None:
    """One bit flipped in a finished store, then status and both exports."""
    from dagscale.bench.sweep import Store, export
    from dagscale.errors import SweepError

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "s.db"
        part("surfaces").make_store(file)

        def tables() -> tuple[bytes, ...]:
            outs = [file.with_suffix(suffix) for suffix in (".csv", ".parquet")]
            for out in outs:
                export(file, out)
            return tuple(out.read_bytes() for out in outs)

        def look() -> tuple[Any, ...]:
            with Store(file) as store:
                return store.status().to_dict(), tables()

        content, good = file.read_bytes(), look()
        chance = random.Random(seed)
        found: Counter[str] = Counter()
        for _ in range(count):
            at, bit = chance.randrange(len(content)), chance.randrange(8)
            file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                found["no effect" if look() == good else "ANOTHER TABLE, UNSEEN"] += 1
            except SweepError as error:
                found["refused in one line" if "\n" not in str(error) else "REFUSED IN SEVERAL LINES"] += 1
            except Exception as error:
                found[f"RAW {type(error).__name__}"] += 1
        row("bits flipped in a finished store", count, ", ".join(f"{n} {what}" for what, n in found.most_common()))


# --- interrupts


COMMANDS = {
    "search": ["search", "mlp:2_22_222?width=128", "--epochs", "200", "--seeds", "1"],
    "verify": ["verify", "mlp-depth", "--method", "one-rate", "--epochs", "100", "--store", "s.db", "--jobs"],
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupts(count: int, seed: int, jobs: int) -> None:
    """Ctrl-C (to the whole group, as a terminal sends it) and SIGTERM at random moments, those in which torch is
    imported among them, each to a process of its own; the last call of ``verify`` goes on and must find the store
    sound."""
    oracle, chance = part("oracle"), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for name, command in COMMANDS.items():
            words = [sys.executable, "-m", "dagscale", *command, *([str(jobs)] if name == "verify" else [])]
            for number in SIGNALS:
                found: Counter[str] = Counter()
                slowest = 0.0
                for _ in range(count // (len(COMMANDS) * len(SIGNALS))):
                    process = subprocess.Popen(
                        words, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                        start_new_session=True,
                    )  # fmt: skip
                    time.sleep(0.3 + chance.random() * chance.choice((3, 15)))
                    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
                    begin = time.monotonic()
                    out, err = process.communicate(timeout=120)
                    slowest = max(slowest, time.monotonic() - begin)
                    found[_answer(oracle, process.returncode, out, err)] += 1
                answers = ", ".join(f"{n} × {what}" for what, n in found.most_common())
                row(f"{number.name} to {name}", sum(found.values()), f"{answers}; gone after {slowest:.1f} s at most")
        left = sorted(set(os.listdir(folder)) - {"s.db", "s.db-wal", "s.db-shm", "s.db.lock"})
        connection = sqlite3.connect(Path(folder) / "s.db")
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
        row("the store after them, and other files left over", 1, f"{sound}; {left or 'none'}")


STOPPED = {
    "inspect (trace)": ["inspect", "resnet:20", "--json"],
    "plan": ["plan", "mlp:2_22_222", "--base", "mlp:2", "--base-lr", "0.1", "--data", "digits", "--law", "curvature"],
    "search": ["search", "mlp:2_02", "--data", "digits", "--limit", "64", "--steps", "8", "--seeds", "1"],
    "check": ["check", "mlp:2", "mlp:2_02", "--data", "digits", "--limit", "64"],
    "verify (sweep)": ["verify", "mlp-depth", "--quick", "--method", "one-rate", "--store", "s.db", "--jobs"],
}


def stops(count: int, seed: int, jobs: int) -> None:
    """SIGINT and SIGTERM at random moments to forks that have torch already, so that many cost little; those that the
    signal came too late for do not count. The store of ``verify`` goes on from one to the next until it is full."""
    oracle, chance = part("oracle"), random.Random(seed)
    oracle.preload()
    for name, command in STOPPED.items():
        words = [*command, str(jobs)] if name.startswith("verify") else command
        found: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            done = oracle.run(words, Path(folder))
            whole = done.seconds
            while found.total() < count // len(STOPPED):
                if done.status == 0:
                    for file in Path(folder).iterdir():
                        file.unlink()
                number, after = chance.choice(SIGNALS), chance.random() * whole
                done = oracle.run(words, Path(folder), started=partial(_stop, number=number, after=after))
                if done.status != 0:
                    found[_answer(oracle, done.status, done.out, done.err)] += 1
            left = {file.name for file in Path(folder).iterdir()} - {"s.db", "s.db-wal", "s.db-shm", "s.db.lock"}
            found["FILES LEFT OVER"] += len(left)
        answers = ", ".join(f"{n} × {what}" for what, n in found.most_common() if n)
        row(f"SIGINT or SIGTERM to {name}", found.total(), answers)


def _stop(pid: int, number: signal.Signals, after: float) -> None:
    def send() -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    threading.Timer(after, send).start()


def _answer(oracle: ModuleType, status: int, out: str, err: str) -> str:
    lines = [line for line in err.replace("\r", "\n").splitlines() if not oracle.PROGRESS.fullmatch(line)]
    said = [line for line in lines if line.startswith("dagscale: ")]
    if status != 130 or len(said) != 1 or out or "Traceback" in err:
        return f"STATUS {status}: {err[-800:]!r}"
    return "status 130 and how to go on" if "goes on from there" in said[0] else "status 130 and one line"


# --- threads


def threads(count: int, seed: int) -> None:
    """Plans from 8 threads at once, half of them of models of their own, half of four that they share; and a third as
    many searches, and checks."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from torch import nn

    import dagscale

    def make(width: int) -> nn.Module:
        torch.manual_seed(width)
        layer = nn.TransformerEncoderLayer(4 * width, 2, 4 * width, batch_first=True, dropout=0.0)
        return nn.Sequential(nn.Linear(4, 4 * width), layer, nn.Flatten(), nn.Linear(4 * width * 3, 3))

    data = (torch.randn(32, 3, 4), torch.arange(32) % 3)
    shared = [make(width) for width in (1, 2, 3, 4)]
    laws = ("none", "covariance", "curvature")

    def one(k: int) -> str:
        model = shared[k % 4] if k % 2 else make(1 + k % 7)
        plan = dagscale.plan(
            model, data[0][:2], base=(shared[0], data[0][:2]), base_lr=0.1, data=data, law=laws[k % 3],
            loss=nn.functional.cross_entropy, init="in-degree",
        )  # fmt: skip
        return plan.to_json()

    def look(k: int) -> str:
        model = shared[k % 4] if k % 2 else make(1 + k % 7)
        return dagscale.search(model, data, seeds=1, steps=4, batch_size=16, init="in-degree").to_json()

    def judge(k: int) -> str:
        family = [shared[k % 3], shared[k % 3 + 1]] if k % 2 else [make(1 + k % 3), make(2 + k % 3)]
        return dagscale.check(family, data=data, batch_size=16, seeds=2, steps=2, init="in-degree").to_json()

    def state() -> tuple[Any, ...]:
        bits = [p.detach().numpy().tobytes() for model in shared for p in model.parameters()]
        return (
            bits, torch.backends.mkldnn.is_available(), torch._C._get_mkldnn_enabled(),
            torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), len(warnings.filters),
            {type(p) for model in shared for p in model.parameters()},
            [len(m._forward_hooks) + len(m._backward_hooks) for model in shared for m in model.modules()],
        )  # fmt: skip

    for what, call, times in (("plans", one, count), ("searches", look, count // 3), ("checks", judge, count // 3)):
        serial = [call(k) for k in range(times)]
        before = state()
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(call, range(times)))
        equal = sum(a == b for a, b in zip(serial, together, strict=True))
        kept = "as before" if state() == before else "CHANGED"
        row(f"{what} from 8 threads", times, f"{equal} equal to the serial ones; torch's state and the models {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds: Mapping[str, Callable[..., None]] = {
        "fuzz": fuzz, "flips": flips, "interrupts": interrupts, "stops": stops, "threads": threads,
    }  # fmt: skip
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="one surface of the fuzz suite")
    parser.add_argument("--out", type=Path, help="a CSV file that the counts of `fuzz` are added to")
    asked = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, as do their children
    more = {
        "interrupts": {"jobs": asked.jobs},
        "stops": {"jobs": asked.jobs},
        "fuzz": {"only": asked.only, "out": asked.out},
    }
    kinds[asked.kind](asked.count, asked.seed, **more.get(asked.kind, {}))


if __name__ == "__main__":
    main()
