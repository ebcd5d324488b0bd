"""How the command line and the sweep's store take faults: counts for docs/robustness.md.

    python benchmarks/faults.py fuzz --count 1000
    python benchmarks/faults.py flips --count 300
    python benchmarks/faults.py kills --count 30 --jobs 1
    python benchmarks/faults.py interrupts --count 30

Each prints rows of one table: what was tried, how often, what came of it. ``--seed`` draws other inputs.
"""

from __future__ import annotations

import argparse
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
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
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


def fuzz(count: int, seed: int, only: str | None) -> None:
    """So many inputs, spread evenly over the surfaces, or all to one."""
    oracle, surfaces, documents = part("oracle"), part("surfaces").SURFACES, part("documents")
    oracle.preload()
    documents.documents()
    chosen = [name for name in surfaces if only in (None, name)]
    for name in chosen:
        fuzz_surface(name, count // len(chosen), seed)


def fuzz_surface(name: str, count: int, seed: int) -> None:
    """A row on one surface; what is wrong goes to stderr."""
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
        slowest, largest = max(slowest, done.seconds), max(largest, done.memory)
        if (what := oracle.fault(done)) is not None:
            faults[what] += 1
            print(oracle.report(done), file=sys.stderr)

    one()
    found = ", ".join(f"{n} × {what}" for what, n in faults.items()) or "no fault"
    answers = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
    result = f"{found}; exit statuses {answers}; slowest {slowest:.1f} s, {largest / 2**20:.0f} MiB at most"
    row(f"fuzz: {name}", sum(statuses.values()), result)


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


# --- killed drivers

DRIVER = """
import os, sys, time
from dagscale.bench.sweep import Run, sweep

def runs(log, count, nap):
    return [Run("mlp:2", 2.0**-(k % 9), seed=k, options={"log": log, "nap": nap}, version="v") for k in range(count)]

def execute(run):
    import torch

    descriptor = os.open(run.options["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{run.key}\\n".encode())
    os.close(descriptor)
    time.sleep(run.options["nap"])
    return {"drawn": torch.rand(3).tolist(), "seed": run.seed}

if __name__ == "__main__":
    store, log, count, nap, jobs = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    sweep(runs(log, count, nap), execute, store, jobs=jobs)
"""


def kills(count: int, seed: int, jobs: int) -> None:
    """SIGKILL to the driver at random moments; what was finished must stay, and run no second time."""
    from dagscale.bench.sweep import Store, export, sweep

    chance = random.Random(seed)
    lost = repeated = extra = 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "driver.py").write_text(DRIVER)
        sys.path.insert(0, folder)
        import driver  # type: ignore[import-not-found]

        log, file, total, nap = home / "log", home / "s.db", 15 * count, 0.05
        arguments = [sys.executable, "driver.py", str(file), str(log), str(total), str(nap), str(jobs)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        for _ in range(count):
            before, begun = _finished(file, Store), _lines(log)
            process = subprocess.Popen(arguments, cwd=home, env=environment)
            goal, deadline = len(begun) + chance.randrange(1, 12), time.monotonic() + 60
            while len(_lines(log)) < goal and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.random() * 2 * nap)
            process.kill()
            process.wait()
            time.sleep(0.5 if jobs > 1 else 0)
            lost += len(before - _finished(file, Store))
            repeated += len(before & set(_lines(log)[len(begun) :]))
        subprocess.run(arguments, cwd=home, env=environment, check=True)
        extra = len(_lines(log)) - total
        whole = home / "whole.db"
        sweep(driver.runs(str(log), total, nap), driver.execute, whole, jobs=1)
        same = all(_table(export, file, suffix) == _table(export, whole, suffix) for suffix in (".csv", ".parquet"))
    tables = "the same to the byte" if same else "DIFFERENT"
    result = f"{lost} lost, {repeated} finished runs executed again, {extra} unfinished ones; tables {tables}"
    row(f"SIGKILL of a driver, jobs={jobs}", count, result)


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def _finished(file: Path, store: Any) -> set[str]:
    if not file.exists() or file.stat().st_size == 0:
        return set()
    with store(file) as book:
        return {line[0] for line in book.rows()}


def _table(export: Callable[..., int], file: Path, suffix: str) -> bytes:
    export(file, file.with_suffix(suffix))
    return file.with_suffix(suffix).read_bytes()


# --- interrupts


def interrupts(count: int, seed: int) -> None:
    """SIGINT to ``search`` and ``verify`` at random moments of their first seconds."""
    oracle = part("oracle")
    oracle.preload()
    chance = random.Random(seed)
    commands = {
        "search": ["search", "mlp:2_22_222?width=128", "--epochs", "200", "--seeds", "1"],
        "verify": ["verify", "mlp-depth", "--method", "one-rate", "--epochs", "200", "--jobs", "1", "--store", "s.db"],
    }
    for name, command in commands.items():
        found: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(count // len(commands)):
                after = 0.05 + 4 * chance.random()

                def strike(pid: int, after: float = after) -> None:
                    threading.Timer(after, _signal, (pid,)).start()

                done = oracle.run(command, Path(folder), strike)
                said = [line for line in done.err.splitlines() if line.startswith("dagscale: interrupted")]
                good = done.status == 130 and len(said) == 1 and "Traceback" not in done.err
                found["130 and one line" if good else f"STATUS {done.status}: {done.err[-300:]}"] += 1
            if (store := Path(folder) / "s.db").exists():
                connection = sqlite3.connect(store)
                found["store sound"] = connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
                connection.close()
        row(f"SIGINT to {name}", count // len(commands), ", ".join(f"{n} {what}" for what, n in found.items()))


def _signal(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds: Mapping[str, Callable[..., None]] = {"fuzz": fuzz, "flips": flips, "kills": kills, "interrupts": interrupts}
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", help="one surface of the fuzz suite")
    asked = parser.parse_args()
    more = {"kills": {"jobs": asked.jobs}, "fuzz": {"only": asked.only}}
    kinds[asked.kind](asked.count, asked.seed, **more.get(asked.kind, {}))


if __name__ == "__main__":
    main()
