"""The command line: each command parses, calls one public function, prints."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import typer

from dagscale.cli import app as application
from dagscale.cli import check, commands, rerank, sweep, verify  # noqa: F401  each puts its commands on the application
from dagscale.errors import DagscaleError

AFFECTS_RESULTS = False

__all__ = ["main"]


UsageError: Any = typer.BadParameter.__mro__[1]
"""Of click, which typer brings along in some versions and depends on in others."""


def main() -> None:
    """Run the command line. Exit status 0 good, 1 the answer is no, 2 the request cannot be served."""
    try:
        with application.json_alone() if "--json" in sys.argv else nullcontext():
            status = application.app(standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            where = getattr(getattr(error, "ctx", None), "command_path", "dagscale")
            message = " ".join(error.format_message().split())
            print(f"dagscale: {message} ({where} --help lists what it takes)", file=sys.stderr)
        sys.exit(2)
    except DagscaleError as error:
        print(f"dagscale: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("dagscale: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
