"""Runs a function in a fork, so that nothing it leaves behind is seen here."""

from __future__ import annotations

import ctypes
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of ``prctl`` (Linux)."""


def in_a_fork(make: Callable[[], Any], timeout: float | None = None) -> Any:
    """What ``make()`` gives in a process that is as this one is now; what it leaves behind goes with that process.

    Args:
        timeout: seconds; forks that the child makes end with it.

    Raises:
        TimeoutError: if there is no answer in time, or the process dies.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reading)
            ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(make(), pipe)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    got, end = b"", time.monotonic() + (timeout or 1e6)
    try:
        while ready := select.select([reading], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reading, 1 << 20)
            if not part:
                break
            got += part
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not ready:
        raise TimeoutError(f"no answer within {timeout:g} s")
    if not got:
        raise TimeoutError("the process died (out of memory?)")
    return pickle.loads(got)
