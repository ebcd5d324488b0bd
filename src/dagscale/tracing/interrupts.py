"""Ctrl-C and other signals wait until a borrowed model is as it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ENDING = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that ask a program to stop."""


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
    if threading.current_thread() is not threading.main_thread():
        return run(())
    came: list[int] = []
    waiting: list[int] = []

    def keep(number: int, frame: Any) -> None:
        came.append(number)
        if number in ENDING:
            waiting.append(number)

    handlers: dict[int, Any] = {n: h for n in signal.valid_signals() if callable(h := signal.getsignal(n))}
    try:
        for number in handlers:
            signal.signal(number, keep)
        return run(waiting)
    finally:
        _put_back(handlers, keep)
        _deliver(list(dict.fromkeys(came)))


def _put_back(handlers: dict[int, Any], ours: Any) -> None:
    """The handlers as they were, those that the forward itself has set excepted; again if a signal comes between."""
    try:
        for number, handler in handlers.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, handler)
    except BaseException:
        _put_back(handlers, ours)
        raise


def _deliver(numbers: list[int]) -> None:
    """Raise each signal; the later ones too if the handler of an earlier one raises."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _deliver(numbers[1:])
