"""Where runs are executed: in this process, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from operator import index
from typing import Any, cast

from dagscale.bench.bounds import short
from dagscale.bench.sweep.run import Run, code_version, encode
from dagscale.bench.sweep.store import Outcome
from dagscale.errors import DataError, SweepError
from dagscale.shown import line, reason, said

Execute = Callable[[Run], Mapping[str, Any]]
"""What a sweep does with a run: a function of a module's top level, its result plain data."""

LOOK = 5.0
"""Seconds between looks at the workers, while no outcome comes."""

CONNECT = 10.0
"""Seconds to reach a scheduler, and to see a worker there."""

DESERTED = 300.0
"""Seconds that a sweep waits for a cluster whose last worker has gone."""

SPARE = 4
"""Runs more than there are workers that may die as often as one may, with no outcome between, before a sweep ends."""

FILES = 8
"""Files that a process of loky's keeps open in this one."""

CROWD = 4
"""Processes a core that may be asked for."""

LARGEST = 1 << 27
"""Characters of a run's result, as JSON, at most."""

FRAMES = 5
"""Innermost frames kept of a traceback."""

_alone = threading.Lock()


def attempt(execute: Execute, key: str, run: str, code: str) -> Outcome:
    """Execute one run, in a worker. An error in it is an outcome too.

    It runs alone in its process, with one torch thread and all global random states seeded by its key, so that its
    result depends on neither the machine's cores nor what ran there before.

    Raises:
        SweepError: if the worker has other code than the driver, ``code``; or if the run raises it, or `DataError`:
            what it then lacks, the others lack too, and it is no outcome.
    """
    if code_version() != code:
        raise SweepError(
            f"a worker runs dagscale {code_version()}, this process {code}: give both the same code (restart the "
            "workers after a change), then call again; what is finished is kept"
        )
    with _alone, _reproducible(int(key[:8], 16)):
        start = time.perf_counter()
        try:
            result = execute(Run.from_json(run))
            if not isinstance(result, Mapping):
                raise TypeError(f"execute must return a mapping, not {type(result).__name__}")
            text = encode(result)
            if len(text) > LARGEST:
                raise ValueError(f"the result has over {LARGEST >> 20} MiB: write what is large to a file of its own")
        except (DataError, SweepError) as error:
            raise SweepError(
                f"{line(str(error))} (found in a run of {line(_named(run), 100)}; every run would meet it, so none is "
                "recorded for it: mend it and call again, what is finished is kept)"
            ) from None
        except (Exception, SystemExit) as error:
            return Outcome(key, "failed", None, _error(error), time.perf_counter() - start)
        return Outcome(key, "finished", text, None, time.perf_counter() - start)


def attempts(pool: Here, runs: Iterator[tuple[str, str]], execute: Execute) -> Generator[list[Outcome], None, None]:
    """The outcomes of runs, given by key and JSON, in the order they come; together those that came together.

    A run whose worker dies is executed again, and fails after ``pool.patience`` such deaths. That outcome is held back
    until another run has come to its end: where none does, it is the workers that cannot live, and no run's fault.

    Raises:
        SweepError: if the workers cannot be used.
    """
    code = code_version()
    flying: dict[Future[Outcome], tuple[str, str]] = {}
    again: deque[tuple[str, str]] = deque()
    deaths: Counter[str] = Counter()
    lost: list[Outcome] = []
    barren = 0
    while True:
        while len(flying) < pool.width() and (following := again.popleft() if again else next(runs, None)):
            flying[pool.submit(attempt, execute, *following, code)] = following
        if not flying:
            if lost:
                yield lost
            return
        done = wait(flying, timeout=LOOK, return_when=FIRST_COMPLETED).done
        pool.check()
        outcomes, trouble = [], None
        for future in done:
            item = flying.pop(future)
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                outcomes.append(future.result())
            elif not isinstance(error, pool.lost):
                trouble = error if isinstance(error, SweepError) else SweepError(_unusable(error))
            else:
                barren += 1
                deaths[item[0]] += 1
                if deaths[item[0]] < pool.patience:
                    again.append(item)
                else:
                    lost.append(_lost(item[0]))
        if outcomes:
            yield outcomes + lost
            lost, barren = [], 0
        if trouble:
            raise trouble
        if barren >= pool.patience * (pool.width() + SPARE):
            raise SweepError(
                f"{barren} workers died one after the other, the last in a run of {line(_named(item[1]), 100)}: see "
                "that there is memory enough, or try jobs=1; what is finished is kept"
            )


def _named(run: str) -> str:
    return Run.from_json(run).architecture


class Here:
    """This process itself, and what other workers have in its place.

    Attributes:
        lost: errors of a run whose worker died. Each worker has one run at a time, so that a death is that run's own.
        patience: deaths of its worker that a run may see before it fails.
    """

    lost: tuple[type[BaseException], ...] = ()
    patience = 1

    def width(self) -> int:
        """How many runs to have under way: one a worker."""
        return 1

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Have a worker call ``function(*arguments)``; here, now."""
        future: Future[Outcome] = Future()
        future.set_result(function(*arguments))
        return future

    def check(self) -> None:
        """See that there is still someone at work. A dead process shows in its run.

        Raises:
            SweepError: if not.
        """

    def close(self) -> None:
        """Let all workers go, at once."""


class Processes(Here):
    """Processes of this machine, each in an executor of its own of joblib's loky: in a common one, a process that dies
    takes the runs of all others along.

    Args:
        jobs: how many.
    """

    patience = 3

    def __init__(self, jobs: int) -> None:
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        self.lost = (TerminatedWorkerError,)
        _allow_files(FILES * jobs)
        self._pools = [self._start() for _ in range(jobs)]
        self._last: list[Future[Outcome] | None] = [None] * jobs

    def _start(self) -> Any:
        from joblib.externals.loky import ProcessPoolExecutor

        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        return ProcessPoolExecutor(1, initializer=_begin, initargs=(os.getpid(),), env=threads)

    def width(self) -> int:
        """The number of processes."""
        return len(self._pools)

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Give it to one that has nothing to do."""
        free = next(k for k, last in enumerate(self._last) if last is None or last.done())
        with _deaf():  # it starts a process
            try:
                future = self._pools[free].submit(function, *arguments)
            except self.lost:
                self._pools[free].shutdown(wait=True, kill_workers=True)
                self._pools[free] = self._start()
                future = self._pools[free].submit(function, *arguments)
        self._last[free] = future
        return cast("Future[Outcome]", future)

    def close(self) -> None:
        """Kill the processes."""
        for pool in self._pools:
            pool.shutdown(wait=True, kill_workers=True)


class Cluster(Here):
    """The workers of a Dask scheduler.

    Neither joblib's backend for Dask nor Dask's own executor is used: both never return once a run has killed its
    workers, or its result was lost with one.

    Args:
        address: the scheduler's, as ``tcp://host:8786``.

    Raises:
        SweepError: if it cannot be reached, has no workers, or Dask is not installed.
    """

    patience = 2  # Dask itself has tried four workers before it says that one was lost

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client, KilledWorker
        except ImportError as error:
            raise SweepError("a scheduler needs Dask: pip install dagscale[dist]") from error
        self.lost = (KilledWorker,)
        self._address = address
        try:
            self._client = Client(address, timeout=CONNECT, set_as_default=False)
        except Exception as error:  # a wrong address raises whatever its parser does
            raise SweepError(
                f"no Dask scheduler at {address} ({reason(error)}): start one with `dask scheduler`, and give the "
                "address it prints, as tcp://host:8786"
            ) from None
        self._under_way: dict[Future[Outcome], Any] = {}
        try:
            self._client.wait_for_workers(1, timeout=CONNECT)
        except Exception:
            self.close()
            raise SweepError(
                f"the scheduler at {address} has no workers: start some with `dask worker {address} --nthreads 1`"
            ) from None
        self._seen = self._looked = time.monotonic()
        self._width = self._count()

    def _count(self) -> int:
        """Number of workers."""
        try:
            return len(self._client.nthreads())
        except Exception as error:
            raise SweepError(self._gone()) from error

    def _gone(self) -> str:
        return f"the Dask scheduler at {self._address} has gone: start it and call again; what is finished is kept"

    def width(self) -> int:
        """The number of workers, as of the last few seconds."""
        return max(1, self._width)

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Send it to the scheduler."""
        if self._client.status != "running":
            raise SweepError(self._gone())
        ours: Future[Outcome] = Future()

        def deliver(theirs: Any) -> None:
            try:
                ours.set_result(theirs.result())
            except BaseException as error:
                ours.set_exception(error)
            self._under_way.pop(ours, None)

        self._under_way[ours] = self._client.submit(function, *arguments, pure=False)
        self._under_way[ours].add_done_callback(deliver)
        return ours

    def check(self) -> None:
        """Count the workers now and then."""
        if self._client.status != "running":
            raise SweepError(self._gone())
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked, self._width = now, self._count()
        if self._width:
            self._seen = now
        elif now - self._seen > DESERTED:
            raise SweepError(
                f"the scheduler at {self._address} has had no workers for {DESERTED:.0f} seconds: start some with "
                f"`dask worker {self._address} --nthreads 1` and call again; what is finished is kept"
            )

    def close(self) -> None:
        """Withdraw what is under way and leave the cluster as it was."""
        with suppress(Exception):
            if self._client.status == "running":
                self._client.cancel(list(self._under_way.values()))
        with suppress(Exception):
            self._client.close(timeout=CONNECT)


def open_pool(jobs: int, scheduler: str | None) -> Here:
    """Workers for a sweep; see `dagscale.bench.sweep.sweep`.

    Raises:
        SweepError: if there can be none.
    """
    if scheduler is not None:
        return Cluster(scheduler)
    count = count_jobs(jobs)
    return Here() if count == 1 else Processes(count)


def count_jobs(jobs: int) -> int:
    """How many processes ``jobs`` is on this machine.

    Raises:
        SweepError: if none, or more than its cores could serve.
    """
    try:
        jobs = index(jobs)
    except TypeError:
        raise SweepError(f"jobs must be a whole number, got {jobs!r}") from None
    if jobs == 0:
        raise SweepError("jobs must not be 0: give a number of processes, or -1 for one a core")
    if jobs == 1:
        return 1
    from joblib import cpu_count

    try:
        cores = cpu_count()
    except ValueError as error:
        raise SweepError(f"LOKY_MAX_CPU_COUNT is no number of cores ({line(str(error))}): set it to one") from None
    if jobs > CROWD * cores:
        raise SweepError(
            f"jobs is {short(jobs)}, and this machine has {cores} core{'s' if cores > 1 else ''} for us: give at most "
            f"{CROWD * cores}, or -1 for one a core"
        )
    return jobs if jobs > 0 else max(1, cores + 1 + jobs)


def _allow_files(more: int) -> None:
    """Let this process open so many more files than it may by default, where the system has such a limit."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _deaf() -> Iterator[None]:
    """Within, Ctrl-C waits, and processes that are started never hear of it: it is the driver's, and one that still
    imports would show a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(driver: int) -> None:
    """Set up a worker process: it leaves interrupts to the driver, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(0.2)
        os._exit(1)

    if sys.platform != "win32":  # where a process keeps its parent's number after the parent's end
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One torch thread and seeded global random states within; as they were after."""
    import torch

    from dagscale.tracing.generators import repeatable

    threads = torch.get_num_threads()
    with repeatable(seed):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _error(error: BaseException) -> str:
    """An error as JSON: type, message, and the innermost frames."""
    name = type(error).__qualname__
    frames = traceback.format_list(traceback.extract_tb(error.__traceback__)[-FRAMES:])
    parts = {"type": name, "message": said(error)[:1000], "traceback": "".join(frames)[-4000:]}
    return encode({part: text.encode("utf-8", "replace").decode() for part, text in parts.items()})


def _lost(key: str) -> Outcome:
    message = "every worker that tried it died: it may need too much memory, or crash the interpreter"
    return Outcome(key, "failed", None, encode({"type": "WorkerLost", "message": message, "traceback": ""}), 0.0)


def _unusable(error: BaseException) -> str:
    return (
        f"a run could not be sent to a worker ({type(error).__name__}: {reason(error)}): execute must be a function of "
        "a module that the workers can import too"
    )
