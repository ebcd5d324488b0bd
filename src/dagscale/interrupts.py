"""Ctrl-C and other signals wait while the model or the process is being changed."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

ENDING = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that ask a program to stop."""

AGAIN = 0.001
"""Seconds after which a signal that had to wait is tried once more."""

CHANGING = ("torch", "warnings", "dagscale.tracing", "dagscale.training", "dagscale.progress")
"""Packages whose context managers change what holds for the whole process, and take no time to do so."""


class Interrupted(BaseException):
    """Unwinds a forward because a signal waits that asks to stop. No ``except Exception`` of a model catches it."""


def uninterrupted(run: Callable[[Sequence[int]], T]) -> T:
    """``run(waiting)``, with every signal that Python code handles kept until it is over.

    PyTorch aborts the interpreter if a signal's handler raises while one of its callbacks runs, and an exception
    between two steps of putting a model back would leave it half changed. So the handlers wait: ``run`` is given
    the list of the signals that have come so far, and may raise :class:`Interrupted` where it is safe to stop.
    Signals that no Python code handles do what they always do, and threads other than the main one get none.

    Returns:
        What ``run`` returns. Where it was interrupted and the handlers chose to go on, what it returns when run
        again, patiently.
    """
    try:
        return _holding(run)
    except Interrupted:
        return _holding(lambda waiting: run(()))


def _holding(run: Callable[[Sequence[int]], T]) -> T:
    came: list[int] = []
    waiting: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number in ENDING:
            waiting.append(number)

    try:
        with _handled(keep):
            return run(waiting)
    finally:
        _deliver(came)


@contextmanager
def between_changes() -> Iterator[None]:
    """Inside, signals wait while a context manager of PyTorch's or of dagscale is entered or left.

    One that has turned a switch of the process, and is stopped before it has returned, is never told to turn it back.
    In destructors they wait too, since Python drops what those raise. The handlers are called as soon as they have
    returned; at the latest on leaving, where all signals wait.
    """
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def again() -> None:
        time.sleep(AGAIN)
        with contextlib.suppress(IndexError):  # all were delivered on leaving
            number = came.pop()
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(main, number)
            else:
                _thread.interrupt_main(signal.Signals(number))

    def meet(number: int, frame: FrameType | None) -> None:
        if _changing(frame):
            came.append(number)
            with contextlib.suppress(RuntimeError):  # no thread is to be had; then it waits until all is over
                _thread.start_new_thread(again, ())
        else:
            handlers[number](number, frame)

    main = threading.main_thread().ident or 0
    try:
        with _handled(meet, handlers):
            yield
    finally:
        _deliver(came)


def _changing(frame: FrameType | None) -> bool:
    """Whether a manager of `CHANGING` is being entered or left, or a destructor runs, on the way to this frame."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        if frame.f_code.co_name in ("__enter__", "__exit__"):
            variables = frame.f_globals
            if variables is vars(contextlib):  # the code is that of the generator
                generator = getattr(getattr(frame.f_locals.get("self"), "gen", None), "gi_frame", None)
                variables = generator.f_globals if generator is not None else {}
            if f"{variables.get('__name__')}.".startswith(_PREFIXES):
                return True
        frame = frame.f_back
    return False


_PREFIXES = tuple(f"{name}." for name in CHANGING)


@contextmanager
def _handled(ours: Callable[[int, FrameType | None], None], handlers: dict[int, Any] | None = None) -> Iterator[None]:
    """Inside, all signals that Python code handles go to ``ours``; then to those that had them, those excepted whose
    handlers the code inside has set.

    Args:
        handlers: gets the handlers that were there.
    """
    handlers = {} if handlers is None else handlers
    if threading.current_thread() is threading.main_thread():
        handlers.update({n: h for n in signal.valid_signals() if callable(h := signal.getsignal(n))})
    try:
        for number in handlers:
            signal.signal(number, ours)
        yield
    finally:
        _put_back(handlers, ours)


def _put_back(handlers: dict[int, Any], ours: Any) -> None:
    """The handlers as they were; again if a signal comes between."""
    try:
        for number, handler in handlers.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, handler)
    except BaseException:
        _put_back(handlers, ours)
        raise


def _deliver(numbers: list[int]) -> None:
    """Raise each kind of signal once; the later ones too if the handler of an earlier one raises."""
    if numbers:
        number = numbers.pop(0)
        numbers[:] = [other for other in numbers if other != number]
        try:
            signal.raise_signal(number)
        finally:
            _deliver(numbers)
