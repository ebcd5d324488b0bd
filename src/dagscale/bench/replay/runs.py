"""Finished training runs, read from a CSV file whose header says what each column means."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dagscale.bench.data.files import read_all
from dagscale.errors import DataError
from dagscale.registry import Registry
from dagscale.shown import counted


@dataclass(frozen=True, order=True)
class Architecture:
    """What was trained, as far as the file says.

    Attributes:
        name: for people, for example ``ResNet-20×2``.
        depth: residual blocks, or layers where there are no blocks; None if unknown.
        width: growth of the hidden sizes against the narrowest network, or the hidden size itself; only ratios count.
        parameters: number of parameters without embeddings.
        network: how to build it, as the layout's ``build`` reads it; ``""`` where nothing can be built.
    """

    name: str
    depth: float | None = None
    width: float | None = None
    parameters: float | None = None
    network: str = ""


@dataclass(frozen=True)
class Setting:
    """Everything that was chosen for a run but its learning rate and seed.

    Attributes:
        recipe: what must be the same for two runs to be compared at all, as (column, value).
        decay: weight decay as the file gives it.
        batch: examples or tokens in a step.
        examples: examples or tokens seen in the whole run, epochs included.
    """

    architecture: Architecture
    recipe: tuple[tuple[str, str], ...] = ()
    decay: float | None = None
    batch: float | None = None
    examples: float | None = None


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        rate: the learning rate that counts: under momentum ``lr / (1 - momentum)``.
        costs: metric → value, the lower the better; ``inf`` where the run diverged.
        seed: number or name that tells repetitions apart.
        finished: whether it came to its end.
    """

    setting: Setting
    rate: float
    costs: Mapping[str, float]
    seed: str = ""
    finished: bool = True


@dataclass(frozen=True)
class Metric:
    """What a run is judged by.

    Attributes:
        name: as in `Run.costs`.
        unit: of a difference.
        cliff: runs that end farther than this above the best are no part of the valley around it.
    """

    name: str
    unit: str
    cliff: float


@dataclass(frozen=True)
class Layout:
    """One known kind of file.

    Attributes:
        header: the columns that must be there, and by which it is known.
        read: one row, column → text → the run; None for one that the layout leaves out, as its notes say.
        metrics: what `Run.costs` holds, the one to judge by first.
        optimizer: of all runs, as ``dagscale.plan`` takes it; ``""`` if the file does not say.
        source: where such a file is from.
        build: `Architecture.network` → (module, example inputs); None if nothing can be built.
        optional: further columns that are read where they are there.
        unread: columns that are known and not needed.
        notes: what a reader should know.
    """

    header: frozenset[str]
    read: Callable[[Mapping[str, str]], Run | None]
    metrics: tuple[Metric, ...]
    optimizer: str
    source: str
    build: Callable[[str], tuple[Any, Any]] | None = None
    optional: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


LAYOUTS: Registry[Layout] = Registry("layout of runs")
"""A new kind of file is one entry here."""


@dataclass(frozen=True)
class Runs:
    """A checked file of runs.

    Attributes:
        name: of the layout.
        runs: those that finished; a diverged one has infinite costs.
        notes: what was left out or taken for something, one line each.
    """

    name: str
    layout: Layout
    runs: tuple[Run, ...]
    notes: tuple[str, ...]


OWN = "own"
"""The layout of a user's own file."""

KIN = 2 / 3
"""A file with more than this share of a layout's columns is meant to have all of them."""


def read_runs(path: str | Path) -> Runs:
    """Read and check a file of runs; its layout is found by its header.

    Raises:
        DataError: if it cannot be read, its header fits no layout, a value is no number, recipes are mixed (runs that
            differ in nothing named end far apart, or a column that is not read sets them apart), or no setting was
            tried at more than two rates.
    """
    path = Path(path)
    header, rows = _rows(path)
    name, layout = _layout(path, header)
    unread = sorted(set(header) - layout.header - layout.optional - layout.unread)
    read: list[Run] = []
    aside: list[tuple[Setting, dict[str, str]]] = []
    for line, row in rows:
        try:
            run = layout.read(row)
        except ValueError as error:
            raise DataError(f"{path.name}, line {line}: {error}") from None
        if run is not None:
            read.append(run)
            aside.append((run.setting, row))
    finished = [run for run in read if run.finished]
    notes = list(layout.notes)
    if len(finished) < len(read):
        notes.append(f"{len(read) - len(finished)} of {counted(len(read), 'run')} did not come to their end: left out")
    if unread:
        notes.append(f"columns that are not read: {', '.join(unread)}")
    metrics = tuple(metric for metric in layout.metrics if any(metric.name in run.costs for run in finished))
    if not metrics:
        raise DataError(f"{path.name}: no run that came to its end; there is nothing to score")
    layout, first = replace(layout, metrics=metrics), metrics[0].name
    diverged = sum(math.isinf(run.costs[first]) for run in finished)
    if diverged:
        notes.append(
            f"{diverged} of {counted(len(finished), 'run')} diverged: they count as infinitely bad, never as missing"
        )
    _check_unread(path, aside, unread)
    _check_repeats(path, finished, first)
    _check_rates(path, finished, notes)
    return Runs(name, layout, tuple(finished), tuple(notes))


def in_brackets(notes: Sequence[str]) -> str:
    """What a reader should know of a file, for the end of an error."""
    return f" ({'; '.join(notes)})" if notes else ""


def number(row: Mapping[str, str], column: str, *, zero: bool = False) -> float:
    """The positive number in a column, or 0 where that may be.

    Raises:
        ValueError: if there is no such number; the message is fit for a person.
    """
    text = (row.get(column) or "").strip()
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"column {column!r} holds {text!r}, which is no number") from None
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise ValueError(f"column {column!r} holds {text}: it must be a positive number{' or 0' * zero}")
    return value


def yes(row: Mapping[str, str], column: str) -> bool:
    """Whether a column says yes.

    Raises:
        ValueError: if it says neither yes nor no; the message is fit for a person.
    """
    text = (row.get(column) or "").strip()
    if text.lower() not in SAYS:
        raise ValueError(f"column {column!r} holds {text!r}: write yes or no, y or n, true or false, 1 or 0")
    return SAYS[text.lower()]


SAYS = {text: text in ("yes", "y", "true", "1") for text in ("yes", "y", "true", "1", "no", "n", "false", "0")}
"""What a column that is a question may hold, in lower case."""


def cost(row: Mapping[str, str], column: str) -> float:
    """A loss; ``inf`` where it is ``nan``, ``inf`` or empty, as logs of diverged runs have it."""
    text = (row.get(column) or "nan").strip()
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"column {column!r} holds {text!r}, which is no number") from None
    return value if math.isfinite(value) else math.inf


def _rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with io.StringIO(read_all(path).decode("utf-8-sig"), newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [_column(name.strip()) for name in reader.fieldnames or ()]
            if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), "")):
                raise DataError(
                    f"{path.name}: is it separated by {other!r}? Separate columns by ',' and write numbers as 0.1"
                )
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"no file {str(path)!r}: give the path of a CSV file of finished runs") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(path)!r} as CSV ({error}): give a text file, one run a line") from None
    if not header:
        raise DataError(f"{path.name} is empty: its first line must name the columns")
    double = [column for column, times in Counter(header).items() if times > 1]
    if double:
        raise DataError(f"{path.name}: column {double[0]!r} stands twice in the header")
    for line, row in rows:
        if None in row or None in row.values():
            raise DataError(f"{path.name}, line {line}: not as many values as the header has columns ({len(header)})")
    if not rows:
        raise DataError(f"{path.name} names columns and has no runs")
    return header, rows


def _layout(path: Path, header: list[str]) -> tuple[str, Layout]:
    """The layout with the most columns among those that fit; one of which a column or two are missing fits nothing."""
    shares = {name: len(LAYOUTS[name].header & set(header)) / len(LAYOUTS[name].header) for name in LAYOUTS}
    likely = [name for name, share in shares.items() if share > KIN]
    if likely:
        near = max(likely, key=lambda name: len(LAYOUTS[name].header))
        if shares[near] == 1:
            return near, LAYOUTS[near]
    else:
        near = OWN
    missing = sorted(LAYOUTS[near].header - set(header))
    of = "" if near == OWN else f" of layout {near!r}"
    raise DataError(
        f"{path.name} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}{of}: it has "
        f"{', '.join(header)}; a file of your own needs lr, and loss or accuracy, and may have "
        f"{', '.join(sorted(LAYOUTS[OWN].optional - {'loss', 'accuracy'}))}"
    )


def _column(name: str) -> str:
    """A column's name as the layouts have it: those of a user's own file may have capitals."""
    own = LAYOUTS[OWN].header | LAYOUTS[OWN].optional
    return name.lower() if name.lower() in own else name


APART = 0.1
"""Runs that differ in nothing named may end so far apart, relative to the better one, and no farther."""


def _check_unread(path: Path, rows: Sequence[tuple[Setting, Mapping[str, str]]], unread: Iterable[str]) -> None:
    """Raises: DataError if a column that is not read looks like a choice: its values differ within a setting, and each
    stands there twice or more in the mean. What is measured seldom repeats."""
    for column in unread:
        within: dict[Setting, list[str]] = defaultdict(list)
        for setting, row in rows:
            within[setting].append(row[column].strip())
        for values in within.values():
            kinds = sorted(set(values))
            if 1 < len(kinds) <= len(values) / 2:
                shown = ", ".join(kinds[:3]) + (", …" if len(kinds) > 3 else "")
                raise DataError(
                    f"{path.name}: mixed recipes: column {column!r} ({shown}) is not read and parts runs that agree "
                    "in all that is: call it 'recipe', or 'seed' if it is chance, or leave it out"
                )


def _check_repeats(path: Path, runs: Iterable[Run], metric: str) -> None:
    """Raises: DataError if two runs agree in setting, rate and seed, and not in how they end."""
    seen: dict[tuple[Setting, float, str], Run] = {}
    for run in runs:
        key = run.setting, run.rate, run.seed
        other = seen.setdefault(key, run)
        ends = sorted((run.costs[metric], other.costs[metric]))
        if ends[0] != ends[1] and ends[1] - ends[0] > APART * abs(ends[0]):
            names = (run.setting.architecture.name, *(f"{column} {value}" for column, value in run.setting.recipe))
            where = ", ".join(filter(None, names))
            raise DataError(
                f"{path.name}: mixed recipes: two runs of {where or 'one network'} at rate {run.rate:g} agree in all "
                f"that is named and end at {ends[0]:.4g} and {ends[1]:.4g}: name what sets them apart in a column "
                "'recipe', or 'seed' if it is chance"
            )


def _check_rates(path: Path, runs: Iterable[Run], notes: Sequence[str]) -> None:
    """Raises: DataError if no setting was tried at three rates at least."""
    rates: dict[Setting, set[float]] = defaultdict(set)
    for run in runs:
        rates[run.setting].add(run.rate)
    most = max(map(len, rates.values()))
    if most < 3:
        tried = "one rate only" if most == 1 else "two rates only"
        raise DataError(
            f"{path.name}: {tried} for every network and recipe: a best rate needs at least three{in_brackets(notes)}"
        )
