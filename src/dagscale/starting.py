"""The command line from its first moment: Ctrl-C and SIGTERM while torch is being imported, which takes seconds.

Importing this module is what guards it.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from typing import Any

AFFECTS_RESULTS = False

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of its signal."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What interrupts a command."""


def is_command(program: str, words: list[str]) -> bool:
    """Whether a program with this ``sys.argv[0]`` and these ``sys.orig_argv`` is the command line itself."""
    by_module = program == "-m" and ("-m", "dagscale") in pairwise(words)
    return by_module or os.path.basename(program) in ("dagscale", "dagscale.exe")


def leave(number: int, frame: Any) -> None:
    """End at once: nothing has begun, and an exception in the middle of an import could come out as another."""
    os.write(2, b"dagscale: interrupted\n")
    os._exit(INTERRUPTED)


came: list[int] = []
"""Interrupts of the command that runs: what goes wrong after one, such as a data loader's workers that ended too, is
no fault of its own."""

ended: list[object] = []
"""A mark for each command that has ended in this process: what was to be repeated for it no longer is."""

before: dict[int, Any] = {}
"""The handlers of signals of the program that runs a command, where it is not the command line itself."""

REMINDER = 10.0
"""Seconds after which an interrupt is repeated, in case other code has swallowed it, such as a bare ``except``."""


def interrupt(number: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, remember it, and repeat it if the command has not ended by then."""
    came.append(number)
    repeat(number, REMINDER)
    raise KeyboardInterrupt


def repeat(number: int, seconds: float) -> None:
    """Have the main thread meet a signal once more, after so many seconds, if the command still runs then."""
    so_far = len(ended)

    def remind() -> None:
        time.sleep(seconds)
        if len(ended) > so_far:
            return
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(main, number)  # which ends a wait of the system's too
        else:
            _thread.interrupt_main(signal.Signals(number))

    main = threading.main_thread().ident or 0
    _thread.start_new_thread(remind, ())


ALONE = is_command(sys.argv[0] if sys.argv else "", sys.orig_argv)
"""Whether this process is the command line itself, and no program that calls it. (Later ``sys.argv[0]`` is another.)"""


def guard() -> None:
    """Until `interruptible`, interrupts of the command line end it with one line. Other programs stay as they are."""
    if ALONE:
        _handle(leave)


def interruptible() -> None:
    """From now on both signals are `KeyboardInterrupt`, so that everything is put back and closed on the way out."""
    replaced = _handle(interrupt)
    if not ALONE:
        before.update(replaced)


def over() -> None:
    """The command has ended: no interrupt of it is repeated, and a program that called it has its handlers back."""
    ended.append(object())
    came.clear()
    for number, handler in before.items():
        signal.signal(number, handler)
    before.clear()


def _handle(handler: Any) -> dict[int, Any]:
    """Set the handlers of signals that somebody waits for: what is ignored, as under ``nohup``, stays ignored.

    Returns:
        The handlers that were there, of those that were set.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler, leave)
    replaced: dict[int, Any] = {number: own for number in SIGNALS if (own := signal.getsignal(number)) in usual}
    for number in replaced:
        signal.signal(number, handler)
    return replaced


guard()
