"""The command line: each command parses, calls one public function, prints."""

from __future__ import annotations

import atexit
import errno
import io
import os
import signal
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import typer

from dagscale.cli import app as application
from dagscale.errors import DagscaleError
from dagscale.shown import line, said
from dagscale.starting import ALONE, INTERRUPTED, SIGNALS, came, interrupt, interruptible, over, repeat

# Each puts its commands on the application, and the help lists them in this order.
# isort: off
from dagscale.cli import commands, check, verify, rerank, retrain, sweep  # noqa: F401
# isort: on

AFFECTS_RESULTS = False

__all__ = ["main"]


UsageError: Any = typer.BadParameter.__mro__[1]
"""Of click, which typer brings along in some versions and depends on in others."""


AGAIN = 0.05
"""Seconds after which an interrupt that was dropped is repeated."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""What writing to a place without room raises."""


EXTRAS = {"joblib": "bench", "matplotlib": "plot", "PIL": "images", "pyarrow": "images", "distributed": "dist"}
"""Package that is not installed with the core → the extra that brings it."""


def say(message: str) -> None:
    """One line on stderr, whatever a user's model has done to ``sys.stderr``."""
    text = f"dagscale: {message}\n"
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        with suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))


def again(lost: sys.UnraisableHookArgs) -> None:
    """Interrupt once more where Ctrl-C came inside a destructor, in which Python drops every exception."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        repeat(came[-1] if came else signal.SIGINT, AGAIN)  # not from here, where it would be dropped too
    else:
        sys.__unraisablehook__(lost)


def _answer() -> Any:
    """Do what the command line asks for; the status that typer returns."""
    try:
        return application.app(standalone_mode=False)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # no command of ours does so, but typer, where nobody reads on (`| head -1`)
        if isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE:
            raise BrokenPipeError from None
        if _by_typer(error):  # it has completed a word, or shown or installed the completion
            raise
        what = f"{type(error).__name__}: {said(error)}"
        raise DagscaleError(f"the model's own code ended the program ({what}): take that out") from None


def _by_typer(error: BaseException) -> bool:
    """Whether typer, or click on which it stands, raised it by itself, and not what it calls."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("typer.", "click."))


def _end_interrupted(message: str) -> NoReturn:
    """One line, and status 130 whatever comes now: Python's own end can turn it into death by SIGINT, and waits for the
    threads of the user's model. A second interrupt ends it at once. A program that calls the command line goes on."""
    if not ALONE:
        say(message)
        sys.exit(INTERRUPTED)
    for number in SIGNALS:
        if signal.getsignal(number) is interrupt:
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    say(message)
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line. Exit status 0 good, 1 the answer is no, 2 the request cannot be served, 130 interrupted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal's encoding has not
    hook, sys.unraisablehook = sys.unraisablehook, again
    try:
        interruptible()
        with application.own_stdout(alone="--json" in sys.argv):
            status = _answer()
        if status == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            where = getattr(getattr(error, "ctx", None), "command_path", "dagscale")
            say(f"{line(error.format_message())} ({where} --help lists what it takes)")
        sys.exit(2)
    except DagscaleError as error:
        if came:
            _end_interrupted("interrupted")
        say(line(str(error)))
        sys.exit(2)
    except application.Interrupted as error:
        _end_interrupted(line(str(error)))
    except (KeyboardInterrupt, typer.Abort):
        _end_interrupted("interrupted")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        say(f"this needs {error.name}: pip install 'dagscale[{EXTRAS[error.name]}]'")
        sys.exit(2)
    except MemoryError:
        say("out of memory: give a smaller network, fewer examples (--limit) or smaller batches")
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            say("too many files are open: allow more (ulimit -n 256)")
            sys.exit(2)
        if error.errno not in FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left over must not fail again at the end
        say(f"the answer cannot be written to stdout ({error.strerror}): give it a place with room")
        sys.exit(2)
    finally:
        over()
        if not ALONE:
            sys.unraisablehook = hook
