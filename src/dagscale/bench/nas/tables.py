"""Tables of a NAS benchmark: accuracies by architecture, data set and seed, checked on reading.

A table is a parquet or CSV file with one row per architecture, data set and seed: ``arch_str`` or ``code``,
``dataset``, ``seed`` (``mean`` for the average over trials) and one or more of ``test_acc``, ``valid_acc``,
``valtest_acc`` in percent, empty where there is no value. Or it is the benchmark's own Python object, ``nats:PATH``.
"""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.data.parquet import opened_parquet
from dagscale.errors import DagscaleError, DataError
from dagscale.models.nb201 import COUNT, Nb201, published_order
from dagscale.plain import check_plain
from dagscale.registry import Registry

Floats = npt.NDArray[np.float64]

COLUMNS = ("test_acc", "valid_acc", "valtest_acc")
MEAN = "mean"
PUBLISHED_MAXIMA = {"cifar10": (94.3733, 6111), "cifar100": (73.5133, 9930), "ImageNet16-120": (47.3111, 857)}
"""Data set → the best mean test accuracy after 200 epochs, and the index of the architecture that has it."""

READERS: Registry[Callable[[str], Table]] = Registry("kind of table")
"""``KIND:ARGUMENT`` → a table. A new source of accuracies is one entry here."""


@dataclass(frozen=True)
class Column:
    """Accuracies under one name, in percent.

    Attributes:
        source: the table's name.
        archs: the architectures that have a value, in lexicographic order of their codes.
        values: their accuracies, in the same order.
    """

    source: str
    dataset: str
    column: str
    seed: str
    archs: tuple[Nb201, ...]
    values: Floats = field(compare=False)

    def over(self, some: Container[Nb201]) -> Column:
        """The same, of these architectures alone."""
        keep = np.array([arch in some for arch in self.archs], dtype=bool)
        archs = tuple(arch for arch in self.archs if arch in some)
        return replace(self, archs=archs, values=self.values[keep])

    @property
    def label(self) -> str:
        return f"{self.dataset} {self.column}, {'mean over trials' if self.seed == MEAN else f'seed {self.seed}'}"


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        source: where it comes from, for messages.
        archs: all architectures in it, in lexicographic order of their codes.
        values: (dataset, column, seed) → one accuracy in percent per architecture, NaN where there is none.
    """

    source: str
    archs: tuple[Nb201, ...]
    values: Mapping[tuple[str, str, str], Floats]

    @property
    def datasets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(dataset for dataset, _, _ in self.values))

    def columns(self, dataset: str) -> tuple[str, ...]:
        """The columns that have values for a data set, the test accuracy first."""
        have = {column for d, column, _ in self.values if d == dataset}
        return tuple(column for column in COLUMNS if column in have)

    def seeds(self, dataset: str, column: str) -> tuple[str, ...]:
        """The seeds that have values, ``mean`` first."""
        found = [seed for d, c, seed in self.values if (d, c) == (dataset, column)]
        return tuple(sorted(found, key=lambda seed: (seed != MEAN, seed)))

    def select(
        self, dataset: str | None = None, column: str | None = None, seed: str | None = None, *, partial: bool = False
    ) -> Column:
        """One column; what is not named is the first there is.

        Args:
            partial: accept a column that lacks some of the table's architectures.

        Raises:
            DataError: if there is no such column, or architectures are missing from it.
        """
        dataset = _chosen(self.source, "data set", dataset, self.datasets)
        column = _chosen(self.source, f"column for {dataset}", column, self.columns(dataset))
        seed = _chosen(self.source, f"seed for {dataset} {column}", seed, self.seeds(dataset, column))
        values = self.values[dataset, column, seed]
        there = ~np.isnan(values)
        if not partial and not there.all():
            lacking = self.archs[int(np.flatnonzero(~there)[0])]
            raise DataError(
                f"{self.source}: {dataset} {column} seed {seed} lacks {int((~there).sum()):,} of {len(self.archs):,} "
                f"architectures (the first is {lacking}); choose another seed, or pass --partial to use those it has"
            )
        archs = tuple(arch for arch, here in zip(self.archs, there, strict=True) if here)
        return Column(self.source, dataset, column, seed, archs, values[there])

    def check_complete(self) -> None:
        """Raises: DataError, if some of the 15,625 architectures are missing."""
        if len(self.archs) != COUNT:
            have = set(self.archs)
            first = next(arch for arch in Nb201.enumerate() if arch not in have)
            raise DataError(
                f"{self.source} has {len(self.archs):,} architectures, not {COUNT:,} (the first missing is {first}); "
                "pass --partial if it is meant to be a sample"
            )

    def check_published(self) -> None:
        """Hold a complete table's mean test accuracies against the published maxima.

        Raises:
            DataError: if a data set of the benchmark has another maximum, or another architecture has it.
        """
        if len(self.archs) != COUNT:
            return
        for dataset, (best, index) in PUBLISHED_MAXIMA.items():
            values = self.values.get((dataset, "test_acc", MEAN))
            if values is None or np.isnan(values).any():
                continue
            arch = published_order()[index]
            at = float(values[self.archs.index(arch)])
            if abs(float(values.max()) - best) > 0.001 or abs(at - best) > 0.001:
                raise DataError(
                    f"{self.source}: on {dataset} the best test accuracy is {values.max():.4f}, {arch} has {at:.4f}, "
                    f"but NAS-Bench-201 publishes {best} there as its best: not its 200-epoch table, or a damaged "
                    "one; pass --unpublished if it is a benchmark of your own"
                )


def read_table(source: str) -> Table:
    """Read and check a table: a ``.parquet`` or ``.csv`` file, or ``KIND:ARGUMENT`` with a kind in ``READERS``.

    Raises:
        DataError: in one line, if it cannot be read or is not what it should be.
    """
    kind, colon, argument = source.partition(":")
    if colon and kind in READERS:
        return READERS[kind](argument)
    if not os.path.isfile(source):
        kinds = "".join(f", {name}:PATH" for name in READERS)
        raise DataError(f"{source}: no such file; name a .parquet or .csv table{kinds}")
    return from_columns(read_columns(Path(source)), source)


def read_columns(path: Path) -> dict[str, Sequence[Any]]:
    """The columns of a ``.parquet`` or ``.csv`` file, by name.

    Raises:
        DataError: in one line, if it is no such file or cannot be read.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise DataError(f"{path}: tables are .parquet or .csv files, not {path.suffix or 'without a suffix'}")
    if not os.path.isfile(path):
        raise DataError(f"{path}: no such file")
    return _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)


def from_columns(columns: Mapping[str, Sequence[Any]], source: str) -> Table:
    """A table from equally long columns, checked.

    Raises:
        DataError: if a column is missing, an architecture or operation is unknown, ``code``, ``arch_str`` and
            ``arch_index`` disagree, a row occurs twice, or accuracies are not percentages.
    """
    accuracies = [name for name in COLUMNS if name in columns]
    for needed, there in (
        ("arch_str or code", "arch_str" in columns or "code" in columns),
        ("dataset", "dataset" in columns),
        ("seed", "seed" in columns),
        ("test_acc, valid_acc or valtest_acc", bool(accuracies)),
    ):
        if not there:
            raise DataError(f"{source} has no column {needed}; it has {', '.join(columns) or 'none'}")
    archs = _architectures(columns, source)
    datasets, seeds = (list(map(_text, columns[name])) for name in ("dataset", "seed"))
    if not archs:
        raise DataError(f"{source} has no rows")
    for name, texts in (("dataset", datasets), ("seed", seeds)):
        if "" in texts:
            raise DataError(f"{source} row {texts.index('') + 1}: {name} is empty")
    _check_unique(archs, datasets, seeds, source)
    order = tuple(sorted(set(archs), key=lambda arch: arch.ops))
    place = {arch: i for i, arch in enumerate(order)}
    where = np.array([place[arch] for arch in archs])
    keys: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(datasets, seeds, strict=True)):
        keys.setdefault(key, []).append(row)
    values: dict[tuple[str, str, str], Floats] = {}
    for name in accuracies:
        numbers = _numbers(columns[name], name, source)
        for (dataset, seed), rows in keys.items():
            taken = np.array(rows)
            if np.isnan(numbers[taken]).all():
                continue
            _check_percent(numbers[taken], f"{source}: {name} on {dataset}, seed {seed}")
            full = np.full(len(order), np.nan)
            full[where[taken]] = numbers[taken]
            full.setflags(write=False)
            values[dataset, name, seed] = full
    if not values:
        raise DataError(f"{source} has no accuracies: {', '.join(accuracies)} are empty")
    return Table(source, order, MappingProxyType(values))


def from_api(api: Any, source: str = "NATS-Bench", *, epochs: int = 200) -> Table:
    """A table from the official NATS-Bench (topology) or NAS-Bench-201 object.

    What is asked of it: ``len(api)``, ``api[i]`` (the architecture string) and ``api.get_more_info(i, dataset,
    hp=…, is_random=…)``, which averages with ``is_random=False`` and takes one trial with a seed, raising
    ValueError where there is none.

    Args:
        epochs: 200 or 12, the benchmark's two training lengths.

    Raises:
        DataError: if the object does not answer so.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("arch_str", "arch_index", "dataset", "seed", *COLUMNS)}
    try:
        for i in range(len(api)):
            text = str(api[i])
            for dataset in PUBLISHED_MAXIMA:
                for seed in (False, 777, 888, 999):
                    found = _ask(api, i, dataset, epochs, seed)
                    if found:
                        for name, value in {"arch_str": text, "arch_index": i, "dataset": dataset,
                                            "seed": seed or MEAN, **found}.items():  # fmt: skip
                            rows[name].append(value)
    except DagscaleError:
        raise
    except Exception as error:  # the object is foreign code
        raise DataError(
            f"{source}: the object does not answer as NATS-Bench does ({type(error).__name__}: {error})"
        ) from error
    return from_columns(rows, source)


def _ask(api: Any, index: int, dataset: str, epochs: int, seed: int | bool) -> dict[str, float | None]:
    """One row's accuracies; empty where the benchmark has no such trial.

    CIFAR-10's validation accuracy stands under a data set of its own, ``cifar10-valid``, trained on half.
    """
    found: dict[str, float | None] = {}
    for name, wanted in (("cifar10-valid", {"valid_acc"}), (dataset, set(COLUMNS))):
        if name == "cifar10-valid" and dataset != "cifar10":
            continue
        try:
            info = api.get_more_info(index, name, hp=str(epochs), is_random=seed)
        except (ValueError, KeyError):
            continue
        for column in wanted:
            value = info.get(f"{column.removesuffix('_acc')}-accuracy")
            if value is not None:
                found[column] = float(value)
    return {column: found.get(column) for column in COLUMNS} if found else {}


@READERS.add("nats")
def _nats(path: str) -> Table:
    try:
        create = importlib.import_module("nats_bench").create
    except ImportError as error:
        raise DataError("nats:PATH reads the official benchmark files: pip install nats_bench") from error
    try:
        if os.path.exists(path):
            check_plain(Path(path), DataError, sys.maxsize)
        api = create(path, "tss", fast_mode=True, verbose=False)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"nats:{path}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return from_api(api, f"nats:{path}")


# --- reading and checking -------------------------------------------------------------------------


def _read_parquet(path: Path) -> dict[str, Sequence[Any]]:
    with opened_parquet(path) as opened:
        columns: dict[str, Sequence[Any]] = opened.read().to_pydict()
        return columns


def _read_csv(path: Path) -> dict[str, Sequence[Any]]:
    with parsing(f"{path} is no CSV table"):
        lines = list(csv.reader(io.StringIO(read_all(path).decode("utf-8-sig"), newline="")))
    if not lines:
        raise DataError(f"{path} is empty")
    header, *rows = lines
    if (twice := next((name for k, name in enumerate(header) if name in header[:k]), None)) is not None:
        raise DataError(f"{path} has two columns {twice!r}: leave one out")
    for i, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise DataError(f"{path} line {i} has {len(row)} fields, the header has {len(header)}")
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _architectures(columns: Mapping[str, Sequence[Any]], source: str) -> list[Nb201]:
    """Each row's architecture; ``code``, ``arch_str`` and ``arch_index`` must agree where there are several."""
    parsed: list[list[Nb201]] = []
    for name in ("code", "arch_str", "arch_index"):
        if name not in columns or (name == "arch_index" and not parsed):
            continue
        known: dict[str, Nb201] = {}
        for row, value in enumerate(columns[name], 1):
            text = _text(value)
            if text in known:
                continue
            try:
                known[text] = Nb201.parse(text)
            except DagscaleError as error:
                raise DataError(f"{source} row {row}: {error}") from None
        parsed.append([known[_text(value)] for value in columns[name]])
    for other in parsed[1:]:
        for row, (a, b) in enumerate(zip(parsed[0], other, strict=True), 1):
            if a != b:
                raise DataError(
                    f"{source} row {row}: code, arch_str and arch_index disagree ({a} and {b}); if the index is your "
                    "own, leave the column out"
                )
    return parsed[0]


def _check_unique(archs: list[Nb201], datasets: list[str], seeds: list[str], source: str) -> None:
    seen: dict[tuple[Nb201, str, str], int] = {}
    for row, key in enumerate(zip(archs, datasets, seeds, strict=True), 1):
        if seen.setdefault(key, row) != row:
            raise DataError(
                f"{source} rows {seen[key]} and {row} are both {key[0]} on {key[1]}, seed {key[2]}: keep one of them"
            )


def _numbers(values: Iterable[Any], name: str, source: str) -> Floats:
    numbers = []
    for row, value in enumerate(values, 1):
        try:
            number = math.nan if value is None or value == "" else float(value)
        except (TypeError, ValueError):
            raise DataError(f"{source} row {row}: {name} is {value!r}, not a number") from None
        if math.isinf(number):
            raise DataError(f"{source} row {row}: {name} is infinite")
        numbers.append(number)
    return np.array(numbers)


def _check_percent(values: Floats, where: str) -> None:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0 or high > 100:
        raise DataError(f"{where}: {low if low < 0 else high:g} is no percentage: accuracies lie between 0 and 100")
    if high <= 1:
        raise DataError(
            f"{where}: accuracies lie between {low:g} and {high:g}: give percent (93.5), not fractions (0.935)"
        )


def _chosen(source: str, what: str, wanted: str | None, known: Sequence[str]) -> str:
    if wanted is None:
        return known[0]
    if wanted not in known:
        raise DataError(f"{source} has no {what} {wanted!r}; it has {', '.join(known)}")
    return wanted
