"""The command line: each command parses, calls one public function, prints."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import typer

from dagscale.cli.app import app, json_alone
from dagscale.cli.check import check
from dagscale.cli.commands import demo, inspect, plan, search
from dagscale.cli.rerank import rerank
from dagscale.cli.sweep import sweep_app
from dagscale.cli.verify import verify
from dagscale.errors import DagscaleError

app.add_typer(sweep_app, name="sweep")

__all__ = ["app", "check", "demo", "inspect", "main", "plan", "rerank", "search", "verify"]


UsageError: Any = typer.BadParameter.__mro__[1]
"""Of click, which typer brings along in some versions and depends on in others."""


def main() -> None:
    """Run the command line. Exit status 0 good, 1 the answer is no, 2 the request cannot be served."""
    try:
        with json_alone() if "--json" in sys.argv else nullcontext():
            status = app(standalone_mode=False)
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
