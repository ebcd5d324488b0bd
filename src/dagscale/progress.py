"""Progress on stderr: what is being done, how much of it is done, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from dagscale.shown import load_rich

AFFECTS_RESULTS = False

LINES_APART = 10.0
"""Seconds between lines where stderr is no terminal and progress was asked for, and before the first."""

PATIENCE = 1.0
"""Seconds before a bar is shown: what is over by then needs no progress."""


class Progress:
    """Says what is being done; by itself it shows nothing."""

    def say(self, text: str) -> None:
        """What is being done now."""

    def expect(self, count: int) -> None:
        """So many more pieces of work are to come."""

    def advance(self) -> None:
        """A piece of work is done."""

    def close(self) -> None:
        """Take it away."""


_current: ContextVar[Progress] = ContextVar("progress")


def current() -> Progress:
    """The progress of the call that is running, for what is deep inside it; one that shows nothing outside of any."""
    return _current.get(Progress())


@contextmanager
def shown(what: str, asked: bool | None) -> Iterator[Progress]:
    """Show progress inside; a call inside another one's progress reports to that.

    Args:
        what: the whole, such as ``planning``.
        asked: True shows it, a line now and then where stderr is no terminal; False does not; None shows it where
            stderr is a terminal.
    """
    outer = _current.get(None)
    if outer is not None and asked is not True:
        yield outer
        return
    made = _made(what, asked)
    with _heard_by(made):
        yield made


@contextmanager
def counted(what: str, total: int, asked: bool | None) -> Iterator[Progress]:
    """Show how many of so many pieces of work are done; what calls inside say of themselves is not shown."""
    made = _made(what, asked, patience=0.0)
    made.expect(total)
    try:
        with _heard_by(Progress()):
            yield made
    finally:
        made.close()


def _made(what: str, asked: bool | None, patience: float = PATIENCE) -> Progress:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    if asked is False or (asked is None and not terminal):
        return Progress()
    return _Bar(what, patience) if terminal else _Lines(what)


@contextmanager
def _heard_by(progress: Progress) -> Iterator[None]:
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)
        progress.close()


class _Counted(Progress):
    def __init__(self, what: str) -> None:
        self.what, self.text = what, ""
        self.done = self.total = 0
        self.begun = time.monotonic()

    def say(self, text: str) -> None:
        self.text = text
        self.show()

    def expect(self, count: int) -> None:
        self.total += count
        self.show()

    def advance(self) -> None:
        self.done += 1
        self.show()

    @property
    def description(self) -> str:
        return f"{self.what}: {self.text}" if self.text else self.what

    def show(self) -> None:
        """Bring what is seen up to date."""


class _Lines(_Counted):
    """A line now and then, for logs."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.last = self.begun

    def show(self) -> None:
        now = time.monotonic()
        if now - self.last < LINES_APART:
            return
        self.last = now
        count = f", {self.done} of {self.total}" if self.total else f", {self.done} done" if self.done else ""
        print(f"dagscale: {self.description}{count}, {now - self.begun:.0f} s", file=sys.stderr, flush=True)


class _Bar(_Counted):
    """A bar that goes away when all is done."""

    def __init__(self, what: str, patience: float) -> None:
        super().__init__(what)
        load_rich()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.bar = Bar(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600)
        self.task = self.bar.add_task(what, total=None)
        self.started, self.patience = False, patience

    def show(self) -> None:
        if not self.started and time.monotonic() - self.begun >= self.patience:
            self.started = True
            self.bar.start()
        self.bar.update(self.task, description=self.description, completed=self.done, total=self.total or None)

    def close(self) -> None:
        if self.started:
            self.bar.stop()
