"""``dagscale sweep``: look into the store of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagscale.cli.app import STUDIES, Json, app, option, print_json, print_text, screen
from dagscale.shown import cell, line, load_rich, plain

if TYPE_CHECKING:
    from rich.table import Table

    from dagscale.bench.sweep import Counts

SHOWN = 40
"""Architectures and kinds of error in the readable tables; ``--json`` has all."""

sweep_app = typer.Typer(help="Look into the store of a sweep.", no_args_is_help=True)
app.add_typer(sweep_app, name="sweep", rich_help_panel=STUDIES)
File = Annotated[Path, typer.Argument(help="The sweep's file.", metavar="FILE")]


@sweep_app.command()
def status(file: File, json: Json = False) -> None:
    """Count its runs: in all, by code version, by architecture, and what failures were of."""
    from dagscale.bench.sweep import Store

    with Store(file) as store:
        found, checked = store.status(), store.checked
    if json:
        print_json(found.to_dict() | {"checked": checked})
        return
    console = screen()
    console.print(_table("in all", {str(file): found.counts}))
    console.print(_table("by code version", found.by_version))
    console.print(_table("by architecture", found.by_architecture))
    for error, count in list(found.errors.items())[:SHOWN]:
        console.print(f"{count:>8,} × {line(error)}", markup=False, highlight=False)
    if not checked:
        console.print("note: a store without checksums; the next sweep into it adds them", highlight=False)


@sweep_app.command()
def export(
    file: File,
    out: Annotated[Path, typer.Argument(help="A .parquet or .csv file.", metavar="OUT")],
    version: Annotated[str | None, option("Code version of the runs, or 'all'.")] = None,
    timing: Annotated[bool, option("Add the seconds each run took.", name="--timing")] = False,
    json: Json = False,
) -> None:
    """Write its finished and failed runs as one table, sorted by key."""
    from dagscale.bench.sweep import export as write

    rows = write(file, out, version=version, timing=timing)
    if json:
        print_json({"out": str(out), "rows": rows})
    else:
        print_text(f"{rows:,} runs written to {plain(str(out))}")


def _table(title: str, groups: dict[str, Counts]) -> Table:
    from rich.table import Table

    more = len(groups) - SHOWN
    load_rich()
    table = Table(title=title, caption=f"and {more:,} more: --json has them" if more > 0 else None)
    table.add_column("", overflow="fold")
    for name in ("total", "finished", "failed", "pending"):
        table.add_column(name, justify="right")
    for name, counts in list(groups.items())[:SHOWN]:
        table.add_row(cell(name), *(f"{count:,}" for count in counts.to_dict().values()))
    return table
