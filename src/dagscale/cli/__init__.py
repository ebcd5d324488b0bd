"""The command line: each command parses, calls one public function, prints."""

from __future__ import annotations

import sys

from dagscale.cli.app import app
from dagscale.cli.check import check
from dagscale.cli.commands import demo, inspect, plan, search
from dagscale.cli.rerank import rerank
from dagscale.cli.sweep import sweep_app
from dagscale.cli.verify import verify
from dagscale.errors import DagscaleError

app.add_typer(sweep_app, name="sweep")

__all__ = ["app", "check", "demo", "inspect", "main", "plan", "rerank", "search", "verify"]


def main() -> None:
    """Run the command line. Exit status 0 good, 1 the answer is no, 2 the request cannot be served."""
    try:
        app()
    except DagscaleError as error:
        print(f"dagscale: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dagscale: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
