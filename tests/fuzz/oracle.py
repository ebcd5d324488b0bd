"""Run the command line, or a call from Python, on one input, in a fork with bounds, and say what is wrong with how it
took it."""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

SECONDS = 20.0
"""That one input may take, the time left out that it waits for a core of a busy machine."""

MEMORY = 2 << 30
"""Bytes that it may hold at its peak, those of Python and torch among them."""

ADDRESSES = 12 << 30
"""Bytes of address space, so that what does ask for all memory does not take the machine along."""

STATUS = {0, 1, 2, 130}

PROGRESS = re.compile(r"dagscale: .*, \d+ s")
"""What is said now and then of work that takes long."""


class Call(NamedTuple):
    """A use of the package from Python, taken as a command is: what it was given, to read in a failure, and a function
    that may raise `DagscaleError` and nothing else."""

    said: str
    function: Callable[[], object]


Command = Sequence[str] | Call


@dataclass(frozen=True)
class Done:
    """What came of one command: exit status (negative: the signal that ended it), output, seconds, and bytes at its
    peak: in all, and beyond the peak of the process that it was forked from."""

    arguments: tuple[str, ...]
    status: int
    out: str
    err: str
    seconds: float
    peak: int
    memory: int


def preload() -> None:
    """Do once what commands do at their first call, so that each fork begins with it."""
    import dagscale.bench.nas.rerank_page
    import dagscale.bench.verify.study
    import dagscale.cli
    from dagscale.bench.data import load as load_data
    from dagscale.models.targets import load

    graph = dagscale.trace(*load("mlp:2_02"))
    with tempfile.TemporaryDirectory() as folder:
        dagscale.pictures.draw(graph, Path(folder) / "x.svg")
    dagscale.plan(*load("mlp:2_02"), base_lr=0.1, law="none", init="in-degree")
    load_data("digits", limit=8)
    with suppress(dagscale.DagscaleError):  # transformers may not be there
        load("hf:gpt2?layers=1&width=8&heads=1")


def learn(modules: Sequence[str]) -> None:
    """Import what a fork had to import, so that the next begin with it; a user's own files are out of reach here."""
    new = [name for name in modules if name not in sys.modules and name not in _out_of_reach]
    for name in new:
        with warnings.catch_warnings(), suppress(Exception):
            warnings.simplefilter("ignore")
            importlib.import_module(name)
        _out_of_reach.add(name)


_out_of_reach: set[str] = set()
"""Modules that `learn` has tried once."""


def run(command: Command, folder: Path, started: Callable[[int], None] = lambda pid: None) -> Done:
    """Run ``dagscale ARGUMENTS``, or make a call, in a folder.

    Args:
        started: called with the process id, for instance to send it signals.
    """
    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as imported:
        from dagscale.starting import SIGNALS

        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a fork is a command, or it is not there to be stopped
        pid = os.fork()
        if pid == 0:
            _child(command, folder, out.fileno(), err.fileno(), imported.fileno())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        started(pid)
        status, peak, seconds = _wait(pid, begin)
        texts = []
        for stream in (out, err, imported):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "surrogateescape"))
    learn(texts[2].split("\n"))
    arguments = (command.said,) if isinstance(command, Call) else tuple(command)
    return Done(arguments, status, texts[0], texts[1], seconds, peak, max(0, peak - before))


def _child(command: Command, folder: Path, out: int, err: int, imported: int) -> NoReturn:
    """In the fork: be the command."""
    from dagscale import starting

    status = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        for number in starting.SIGNALS:
            signal.signal(number, starting.leave)  # as at a command's first moment
        signal.pthread_sigmask(signal.SIG_UNBLOCK, starting.SIGNALS)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.resetwarnings()
        warnings.filterwarnings("ignore", category=UserWarning)  # torch's own, on what a user's loss or model does
        try:
            _called(command.function) if isinstance(command, Call) else _commanded(command)
            status = 0
        except SystemExit as error:
            signal.pthread_sigmask(signal.SIG_BLOCK, starting.SIGNALS)
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # a model may have left anything there
                stream.flush()
        with suppress(OSError):
            os.write(imported, "\n".join(sys.modules).encode("utf-8", "replace"))
        os._exit(status)


def _commanded(arguments: Sequence[str]) -> None:
    from dagscale.cli import main

    sys.argv = ["dagscale", *arguments]
    main()


def _called(function: Callable[[], object]) -> None:
    from dagscale.cli import say
    from dagscale.errors import DagscaleError

    try:
        function()
    except DagscaleError as error:
        say(str(error))
        sys.exit(2)


def _wait(pid: int, begin: float) -> tuple[int, int, float]:
    """Exit status, peak memory and seconds; a process over its time is killed."""
    pause, queued = 0.002, 0.0
    while True:
        queued = _queued(pid) or queued
        done, status, used = os.wait4(pid, os.WNOHANG)
        seconds = max(0.0, time.monotonic() - begin - queued)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024, seconds
        if seconds > SECONDS:
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)


def _queued(pid: int) -> float:
    """Seconds that a process was ready to run and other ones had the cores, where Linux tells."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def fault(done: Done) -> str | None:
    """What is wrong with it, if anything is."""
    if done.seconds > SECONDS:
        return f"took over {SECONDS:.0f} seconds"
    if "Traceback" in done.err or "Traceback" in done.out:
        return "a traceback"
    if done.status not in STATUS:
        return f"exit status {done.status}"
    if done.peak > MEMORY:
        return f"{done.peak / 2**30:.1f} GiB of memory"
    if done.status in (2, 130):
        lines = [line for line in done.err.splitlines() if not PROGRESS.fullmatch(line)]
        if len(lines) != 1 or not lines[0].startswith("dagscale: "):
            return f"{len(lines)} lines on stderr, not one"
        if done.out:
            return "output on stdout beside an error"
    elif "--json" in done.arguments:
        try:
            json.loads(done.out)
        except ValueError:
            return "no JSON document on stdout"
    for character in {*done.out, *done.err} - {"\n"}:
        if unicodedata.category(character) in ("Cc", "Cs"):
            return f"a raw {character!r} in the output"
    return None


def report(done: Done) -> str:
    """The input and what came of it, to read in a failure."""
    given = " ".join(ascii(word[:20_000]) for word in done.arguments)
    return (
        f"{fault(done)}: dagscale {given}\nstatus {done.status}, {done.seconds:.1f} s, {done.peak / 2**20:.0f} MiB\n"
        f"{done.out[-500:]}\n{done.err[-1500:]}"
    )
