"""The sweep: every run once, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from dagscale.bench.sweep.run import Run
from dagscale.bench.sweep.store import Store
from dagscale.bench.sweep.workers import Execute, attempts, count_jobs, open_pool
from dagscale.progress import counted

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Summary:
    """What a sweep came to.

    Args:
        total: different runs asked for.
        finished: of these, with a result in the store.
        failed: of these, with an error in the store.
        executed: runs executed by this call; the others were in the store already.
        duplicates: runs that were given more than once.
        longest: seconds of the longest run of this call, or what one takes by the estimate where there was no time for
            a single one.
    """

    total: int
    finished: int
    failed: int
    executed: int
    duplicates: int
    longest: float = 0.0

    @property
    def ok(self) -> bool:
        """Every run has its result."""
        return self.finished == self.total

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def __str__(self) -> str:
        twice = f", {self.duplicates:,} given twice" if self.duplicates else ""
        return (
            f"{self.finished:,} of {self.total:,} runs finished, {self.failed:,} failed "
            f"({self.executed:,} executed now{twice})"
        )


def sweep(
    runs: Iterable[Run],
    execute: Execute,
    store: str | Path,
    *,
    jobs: int = -1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = False,
    until: float | None = None,
    estimate: Callable[[Run], float] | None = None,
) -> Summary:
    """Execute every run that has no result in the store yet, and write its result there.

    It may be killed at any moment and called again: what was finished is kept and not executed again, and in the end
    the store holds what an undisturbed sweep would have written. A run that raises is recorded as failed with
    its error, and the others go on; but what raises `DataError` or `SweepError` says that something is wrong which is
    not its own (the data are gone, an option serves no run): the sweep ends, and nothing is recorded of it.

    Args:
        runs: what to execute; read once, and never held in memory all together.
        execute: ``execute(run)`` → a mapping of names to plain data (numbers, strings, lists, mappings; NaN and
            infinity too); a function of a module's top level. Same run, same result: torch has one thread in it,
            and the global random states are seeded by the run.
        store: the SQLite file; made if it does not exist, added to if it does. On a local disk.
        jobs: processes on this machine; -1 for one a core, 1 to execute in this process.
        scheduler: address of a Dask scheduler, as ``tcp://host:8786``, to execute there instead.
        retry_failed: execute the runs again that failed in an earlier call.
        progress: show on stderr how many runs are done and have failed; a line now and then where that is no terminal.
        until: moment of ``time.monotonic`` by which to end; what was not begun then stays pending, for the next call.
            A run is begun only while there is time for the longest one so far, in other processes for twice that.
        estimate: a run → about how many seconds it takes, asked of the first one where there is ``until``.

    Raises:
        SweepError: if the store, the scheduler or the workers cannot be used, or a run meets a fault that all share.
            What is finished is kept.
    """
    if scheduler is None:
        count_jobs(jobs)
    with Store(store, write=True) as book:
        given = book.ask(runs)
        before = book.asked()
        todo = before.pending + (before.failed if retry_failed else 0)
        executed = 0
        taken: list[float] = []
        if todo:
            waiting = book.waiting(failed=retry_failed)
            if until is not None:
                # Workers that have yet to start, and share the cores, take longer than the time of a run says.
                ahead = 1 if jobs == 1 and scheduler is None else 2
                waiting = _in_time(waiting, until, ahead, taken, estimate or (lambda run: 0.0))
            first = next(waiting, None)
        if todo and first is not None:
            pool = open_pool(jobs, scheduler)
            batches = attempts(pool, chain([first], waiting), execute)
            failed = 0
            with closing(pool), closing(batches), counted("sweeping", todo, progress) as bar:
                for outcomes in batches:
                    book.record(outcomes)
                    executed += len(outcomes)
                    taken.extend(outcome.seconds for outcome in outcomes)
                    failed += sum(outcome.state == "failed" for outcome in outcomes)
                    bar.say(f"{failed} failed" if failed else "")
                    for _ in outcomes:
                        bar.advance()
            book.check_place(fully=True)
        after = book.asked()
    return Summary(after.total, after.finished, after.failed, executed, given - after.total, max(taken, default=0.0))


def _in_time(
    waiting: Iterator[tuple[str, str]], until: float, ahead: int, taken: list[float], estimate: Callable[[Run], float]
) -> Iterator[tuple[str, str]]:
    """Runs for as long as there is time for ``ahead`` times the longest of those ``taken`` so far; see `sweep`."""
    for key, text in waiting:
        if not taken:
            taken.append(estimate(Run.from_json(text)))
        if monotonic() + ahead * max(taken) > until:
            return
        yield key, text
