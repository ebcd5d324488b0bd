"""A store as one table, sorted by key: parquet or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from dagscale.bench.sweep.run import Run, decode, encode
from dagscale.bench.sweep.store import Store, error_line
from dagscale.errors import SweepError
from dagscale.replacing import replacing, same_file
from dagscale.shown import for_spreadsheet

ROWS = 2_000
"""Rows of a parquet row group, and in memory at once."""

Row = dict[str, Any]


def export(store: str | Path, out: str | Path, *, version: str | None = None, timing: bool = False) -> int:
    """Write the finished and failed runs of one code version as a table, one row a run, sorted by key.

    The columns are ``key``, what the run is (``architecture``, ``lr``, …, ``options.NAME``), ``state``, ``error``, and
    ``result.NAME``; whatever is neither a number, a truth value nor a string stands as JSON. Nothing in it depends
    on when, where or in which order the runs were executed: same runs, same bytes.

    Args:
        store: the sweep's file.
        out: a ``.parquet`` or ``.csv`` file; replaced only when the new one is complete.
        version: code version of the runs; needed if the store holds several. ``"all"`` takes all, with a column that
            tells them apart.
        timing: add a column ``seconds``, the time each run took.

    Returns:
        Number of rows.

    Raises:
        SweepError: if the store cannot be read, has several versions, or the table cannot be written.
    """
    out = Path(out)
    writers = {".parquet": _parquet, ".csv": _csv}
    if out.suffix.lower() not in writers:
        raise SweepError(f"cannot export to {out}: its suffix must be .parquet or .csv")
    with Store(store) as book, book.snapshot():
        if same_file(out, book.path):
            raise SweepError(f"{out} is the store itself: give the table another name")
        version = _choose(book, version)
        kinds = _kinds(_rows(book, version, timing))
        try:
            with replacing(out) as file:
                return writers[out.suffix.lower()](_rows(book, version, timing), kinds, file)
        except OSError as error:
            raise SweepError(f"cannot write {out}: {error.strerror or error}") from error


def _choose(book: Store, version: str | None) -> str | None:
    """The version to export; None for all."""
    known = [name for name, counts in book.status().by_version.items() if counts.finished or counts.failed]
    if not known:
        raise SweepError(f"{book.path} holds no results yet: there is nothing to export")
    if version == "all":
        return None
    if version is None and len(known) > 1:
        raise SweepError(
            f"{book.path} holds results of {len(known)} versions of the code ({', '.join(known)}): "
            "choose one with --version, or --version all"
        )
    if version is not None and version not in known:
        raise SweepError(f"{book.path} holds no results of version {version} (it has {', '.join(known)})")
    return version


def _rows(book: Store, version: str | None, timing: bool) -> Iterator[Row]:
    """The table's rows, flat."""
    for key, run, state, result, error, seconds in book.rows(version):
        parts = decode(run)
        options = parts.pop("options")
        row = {"key": key, **{f.name: parts[f.name] for f in fields(Run) if f.name in parts}}
        row |= {f"options.{name}": value for name, value in options.items()}
        row |= {"state": state, "error": error_line(error) or None}
        row |= {"seconds": seconds} if timing else {}
        yield row | {f"result.{name}": value for name, value in (decode(result) if result else {}).items()}


def _kinds(rows: Iterator[Row]) -> dict[str, str]:
    """Column → kind, in the order of columns: the run's own in their order, options and results by name."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            kinds[name] = _join(kinds.get(name, "null"), _kind(value))
    fixed = [name for name in kinds if "." not in name]
    options = sorted(name for name in kinds if name.startswith("options."))
    results = sorted(name for name in kinds if name.startswith("result."))
    middle = fixed.index("state")
    return {name: kinds[name] for name in (*fixed[:middle], *options, *fixed[middle:], *results)}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "json"
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value), "json")


def _join(one: str, other: str) -> str:
    """The kind that holds values of both."""
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    return "float" if {one, other} == {"int", "float"} else "json"


def _value(value: Any, kind: str) -> Any:
    """A value as its column's kind has it."""
    if value is None:
        return None
    if kind == "json":
        return encode(value)
    return float(value) if kind == "float" else value


def _parquet(rows: Iterator[Row], kinds: Mapping[str, str], file: BinaryIO) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise SweepError("parquet needs pyarrow: pip install dagscale[images], or export to .csv") from error
    types = {
        "null": pyarrow.null(), "bool": pyarrow.bool_(), "int": pyarrow.int64(), "float": pyarrow.float64(),
        "str": pyarrow.string(), "json": pyarrow.string(),
    }  # fmt: skip
    schema = pyarrow.schema([(name, types[kind]) for name, kind in kinds.items()])
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while group := list(islice(rows, ROWS)):
            columns = {name: [_value(row.get(name), kind) for row in group] for name, kind in kinds.items()}
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(group)
    return count


def _csv(rows: Iterator[Row], kinds: Mapping[str, str], file: BinaryIO) -> int:
    count = 0
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, kinds))
    for row in rows:
        writer.writerow([_cell(_value(row.get(name), kind)) for name, kind in kinds.items()])
        count += 1
    text.detach()  # written out, and left open
    return count


def _cell(value: Any) -> Any:
    """A value as CSV has it: text that a spreadsheet would take for a formula gets a ``'`` in front."""
    if isinstance(value, bool):
        return str(value).lower()
    return for_spreadsheet(value) if isinstance(value, str) else value
