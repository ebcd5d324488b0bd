"""The sweep's store at size, and what a second worker brings.

    python benchmarks/store.py [--runs 150000] [--no-dask]

First table: a store of made-up results; each line is a process of its own, in seconds of a processor, which other
work on the machine changes little, and by the clock; its memory is the peak above what the interpreter holds after
importing dagscale. Second table: a small CPU-bound load in this process, in two processes
(their start included), and on two warm Dask workers. Medians of repetitions, with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

SINGLY = 2_000
"""Results recorded in a transaction each; all others ``TOGETHER``."""

TOGETHER = 100

STEPS = ("ask", "record singly", "record", "resume", "status", "export csv", "export parquet")


def made_up(count: int) -> Iterator[Any]:
    """Runs like those of a study: many architectures, rates and seeds."""
    from dagscale.bench.sweep import Run

    for k in range(count):
        yield Run(f"mlp:{k // 60:06d}", 2.0 ** (-(k % 20) / 2), seed=k % 3, options={"width": 128}, version="made-up")


def refuse(run: Any) -> Mapping[str, Any]:
    """An execute that must not be called."""
    raise AssertionError("a finished run was executed again")


def step(name: str, file: str, count: int) -> None:
    """One line of the first table, measured in this process: seconds and MiB on stdout."""
    import resource

    import pyarrow.parquet  # noqa: F401  not the store's
    import rich.progress  # noqa: F401

    from dagscale.bench.sweep import Store, export, sweep
    from dagscale.bench.sweep.run import encode
    from dagscale.bench.sweep.store import Outcome

    result = encode({"loss": 1.2345678, "curve": [1.0 / (k + 1) for k in range(10)], "steps": 156, "diverged": False})
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, used = time.perf_counter(), time.process_time()
    if name == "ask":
        with Store(file, write=True) as store:
            store.ask(made_up(count))
    elif name.startswith("record"):
        with Store(file, write=True) as store:
            store.ask(made_up(count))
            start, used = time.perf_counter(), time.process_time()
            waiting = (Outcome(key, "finished", result, None, 1.0) for key, _ in store.waiting())
            if name == "record singly":
                waiting, together = islice(waiting, SINGLY), 1
            else:
                together = TOGETHER
            done = 0
            while outcomes := list(islice(waiting, together)):
                store.record(outcomes)
                done += len(outcomes)
            count = done
    elif name == "resume":
        assert sweep(made_up(count), refuse, file).executed == 0
    elif name == "status":
        with Store(file) as store:
            assert store.status().counts.finished == count
    else:
        export(file, Path(file).with_suffix(f".{name.split()[1]}"))
    taken, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    print(json.dumps({"seconds": taken, "processor": used, "mib": peak / 1024, "runs": count}))


def compute(run: Any) -> Mapping[str, Any]:
    """About 0.1 s of plain arithmetic."""
    total = 0.0
    for k in range(1_500_000):
        total += k % 7 * run.lr
    return {"total": total}


def stores(counts: list[int]) -> None:
    """Print the first table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="store")
    for name in (
        "runs",
        "step",
        "seconds of a processor",
        "by the clock",
        "runs/s",
        "peak MiB above start",
        "file MiB",
    ):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            file = Path(folder, f"{count}.db")
            for name in STEPS:
                command = [sys.executable, __file__, "--step", name, "--file", str(file), "--runs", str(count)]
                got = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                table.add_row(
                    f"{count:,}", name, f"{got['processor']:.2f}", f"{got['seconds']:.2f}",
                    f"{got['runs'] / got['processor']:,.0f}", f"{got['mib']:.1f}",
                    f"{file.stat().st_size / 2**20:.1f}",
                )  # fmt: skip
    Console().print(table)


def workers(count: int, repetitions: int) -> None:
    """Print the second table."""
    from rich.console import Console
    from rich.table import Table

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": here}
    started = [subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port)], **quiet)]
    started += [subprocess.Popen([*dask, "worker", address, "--nthreads", "1"], **quiet) for _ in "12"]
    seconds: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            time.sleep(5)
            for again in range(-1, repetitions):  # the first warms up
                kinds: dict[str, dict[str, Any]] = {
                    "this process": {"jobs": 1}, "2 processes": {"jobs": 2}, "2 Dask workers": {"scheduler": address},
                }  # fmt: skip
                for name, how in kinds.items():
                    taken = timed(Path(folder, f"{name}{again}.db"), count if again >= 0 else 4, how)
                    if again >= 0:
                        seconds.setdefault(name, []).append(taken)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()
    table = Table(title=f"{count} runs of plain arithmetic")
    for name in ("where", "seconds, median (range)", "against this process"):
        table.add_column(name, justify="right")
    alone = statistics.median(seconds["this process"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        table.add_row(name, f"{middle:.2f} ({min(taken):.2f}–{max(taken):.2f})", f"{alone / middle:.2f}×")
    Console().print(table)


def timed(file: Path, count: int, how: dict[str, Any]) -> float:
    """Seconds of one sweep, the start of its processes included."""
    import store as importable  # this file, as the workers know it

    from dagscale.bench.sweep import Run, sweep

    runs = [Run("mlp:2", 1.0, seed=k, version="made-up") for k in range(count)]
    start = time.perf_counter()
    assert sweep(runs, importable.compute, file, **how).ok
    return time.perf_counter() - start


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=150_000)
    parser.add_argument("--load", type=int, default=200, help="runs of the second table")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-dask", action="store_true")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        step(given.step, given.file, given.runs)
        return
    import sqlite3

    import torch

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end="")
    print(f"SQLite {sqlite3.sqlite_version}, torch {torch.__version__}")
    stores([given.runs // 10, given.runs])
    if not given.no_dask:
        workers(given.load, given.repetitions)


if __name__ == "__main__":
    main()
