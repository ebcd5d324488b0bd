"""What a replay shows: tables of few columns, as text or Markdown, and everything as plain data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.bench.replay.pictures import draw_lost, draw_rates
from dagscale.bench.replay.rules import RULES
from dagscale.bench.replay.study import AxisScores, Judged, Replay
from dagscale.bench.replay.transfer import Interval, Score
from dagscale.pictures.files import check_path, save, write

if TYPE_CHECKING:
    from rich.table import Table

FILES = ("replay.json", "tables.md", "lost.png", "rates.png")

AXIS_TITLES = {
    "network": "From network to network",
    "horizon": "To a longer run, batch size unchanged",
    "batch": "To another batch size, number of examples unchanged",
    "horizon, batch": "To a longer run, each at its best batch size",
    "network, horizon, batch": "To a larger network and a longer run, each at its best batch size",
    "decay": "To another weight decay",
}


@dataclass(frozen=True)
class Sheet:
    """One table: ``text`` stands under the title, ``rows`` are ready to print."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(replay: Replay) -> Iterator[Sheet]:
    """All tables: for the main metric everything, for others the exponents."""
    yield _overview(replay)
    for i, judged in enumerate(replay.judged):
        unit = judged.metric.unit
        if judged.exponents:
            yield _exponents(judged)
        if i:
            continue
        for axis in judged.axes:
            yield _axis(axis, judged)
            if axis.axis == "network" and len(next(iter(axis.by_base.values()), ())) > 2:
                yield _by_base(axis, unit)
        if judged.network_pairs:
            yield _network_pairs(judged)
        if judged.horizon_pairs:
            yield _plain(
                "To a longer run, rate and decay together",
                f"From the best pair at the shortest run. Lost against the longer run's own best pair, {unit}.",
                judged.horizon_pairs,
            )
        if judged.formula:
            yield _plain(
                "The Step Law's own formula",
                f"Rate and nearest batch size for each size and horizon, {unit} lost against the best of the grid. The "
                "formula was fitted to these very runs.",
                judged.formula,
            )


def _overview(replay: Replay) -> Sheet:
    main = replay.judged[0]
    rows = [
        ("runs", f"{len(replay.runs.runs):,}, layout {replay.runs.name}: {replay.runs.layout.source}"),
        ("judged by", f"{main.metric.name}, in {main.metric.unit}"),
        (
            "best rates",
            ", ".join(f"{count} {kind}" for kind, count in main.kinds.items())
            + f", {main.skipped} skipped (fewer than three rates, or always diverged); only inner ones count",
        ),
        ("an octave off", f"costs {_number(main.octave)} {main.metric.unit} (median)"),
        *(
            (
                f"left-out runs, {one.way}",
                f"missed by {_number(one.rms)} (rms), {_number(one.median)} (median) of {one.count}",
            )
            for one in main.left_out
        ),
        *(("note", note) for note in replay.notes),
    ]
    return Sheet("Replay", "", ("what", "found"), tuple(rows))


def _exponents(judged: Judged) -> Sheet:
    rows = [
        (
            one.part,
            f"{one.found.value:.2f}",
            _interval(one.found.interval, ".2f"),
            f"{one.found.median:.2f}",
            "–" if one.by_bands is None else f"{one.by_bands:.2f}",
            f"{one.found.groups} / {one.found.optima}",
        )
        for one in judged.exponents
    ]
    return Sheet(
        f"Best rate ∝ variable^exponent, by {judged.metric.name}",
        "Within groups that agree in all else; 95 % bootstrap over groups; the median of the groups' own; and the same "
        "from the middles of bands, whose ends cost as much as an octave off.",
        ("variable", "exponent", "95 %", "median", "bands", "groups / best rates"),
        tuple(rows),
    )


def _axis(axis: AxisScores, judged: Judged) -> Sheet:
    other = {score.rule: score for score in axis.any_base}
    rows = tuple((*_score(score), _number(other[score.rule].lost)) for score in axis.smallest)
    silent = "".join(f" Nothing is said by {rule} for {why}." for rule, why in axis.silent.items())
    first = axis.smallest[0]
    return Sheet(
        AXIS_TITLES[axis.axis],
        f"The smallest as the base of all others: {first.pairs} pairs, {first.groups} group{'s' * (first.groups > 1)}. "
        f"Lost against the target's own best rate, {judged.metric.unit}.{silent}",
        ("rule", "lost", "95 %", "worst", "octaves off", "bias", "any base"),
        rows,
    )


def _by_base(axis: AxisScores, unit: str) -> Sheet:
    order = [score.rule for score in axis.any_base]
    bases = list(next(iter(axis.by_base.values())))
    rows = tuple((rule, *(_number(axis.by_base[rule].get(base, math.nan)) for base in bases)) for rule in order)
    return Sheet("By base", f"Mean over all other networks, {unit} lost.", ("rule", *bases), rows)


def _network_pairs(judged: Judged) -> Sheet:
    """One row a decay: rate tuned, the base's rate, the base's product; and the pair as it is."""
    by = {score.rule: score for score in judged.network_pairs}
    decays = sorted({name.rpartition(" ")[2] for name in by if ", decay " in name}, key=float)
    ways = ("rate tuned", "base's product", "base's rate")
    rows = [(decay, *(_mean_worst(by.get(f"{way}, decay {decay}")) for way in ways)) for decay in decays]
    rows.append(("the base's, with its rate", _mean_worst(by.get("the base's pair")), "", ""))
    return Sheet(
        "Rate and decay, from the smallest network's best pair",
        f"Lost against the target's own best pair, {judged.metric.unit}: mean (worst) over the other networks.",
        ("decay used", "rate tuned there", "base's rate × decay kept", "base's rate kept"),
        tuple(rows),
    )


def _plain(title: str, text: str, scored: Sequence[Score]) -> Sheet:
    rows = tuple(_score(score) for score in scored)
    return Sheet(title, text, ("rule", "lost", "95 %", "worst", "octaves off", "bias"), rows)


def _score(score: Score) -> tuple[str, ...]:
    lost = _number(score.lost) + (f", {score.diverged} diverged" if score.diverged else "")
    lost += f" or more ({score.outside} off the grid)" if score.outside else ""
    return (
        score.rule,
        lost,
        _interval(score.interval),
        _number(score.worst),
        f"{score.octaves:.2f}",
        f"{score.bias:+.2f}",
    )


def _mean_worst(score: Score | None) -> str:
    return "–" if score is None else f"{_number(score.lost)} ({_number(score.worst)})"


def _number(value: float) -> str:
    """Three digits or so: 0.0013, 0.24, 12.3."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "diverged"
    return f"{value:.4f}" if abs(value) < 0.02 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _interval(interval: Interval | None, form: str = "") -> str:
    if interval is None:
        return "–"
    low, high = (format(end, form) if form else _number(end) for end in interval)
    return f"{low} … {high}"


# --- faces ----------------------------------------------------------------------------------------------------------


def tables(replay: Replay) -> Iterator[Table]:
    """To print."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for sheet in sheets(replay):
        made = Table(title=sheet.title, caption=escape(sheet.text) or None, box=box.SIMPLE_HEAD, title_justify="left")
        made.caption_justify = "left"
        for i, column in enumerate(sheet.columns):
            made.add_column(column, justify="right" if i and sheet.columns != ("what", "found") else "left")
        for row in sheet.rows:
            made.add_row(*map(escape, row))
        yield made


def markdown(replay: Replay) -> str:
    """All tables as Markdown."""
    return "\n".join(_markdown(sheet) for sheet in sheets(replay))


def _markdown(sheet: Sheet) -> str:
    lines = [f"### {sheet.title}", "", *([sheet.text, ""] if sheet.text else [])]
    lines += [_line(sheet.columns), _line("---" for _ in sheet.columns), *map(_line, sheet.rows), ""]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in cells) + " |"


def to_dict(replay: Replay) -> dict[str, Any]:
    """Everything but the single runs, as plain data; what is infinite or unknown is None."""
    document = {
        "format": 1,
        "layout": replay.runs.name,
        "source": replay.runs.layout.source,
        "runs": len(replay.runs.runs),
        "notes": list(replay.notes),
        "rules": {name: RULES[name].source for name in RULES},
        "metrics": [_judged(judged) for judged in replay.judged],
    }
    found: dict[str, Any] = json.loads(json.dumps(document, default=str), parse_constant=lambda _: None)
    return found


def _judged(judged: Judged) -> dict[str, Any]:
    found = asdict(judged)
    del found["optima"]
    found["best_rates"] = [
        {
            **asdict(one.setting.architecture),
            **dict(one.setting.recipe),
            **{name: getattr(one.setting, name) for name in ("decay", "batch", "examples")},
            "kind": one.kind, "rate": one.rate, "cost": one.cost,
        }
        for one in judged.optima
    ]  # fmt: skip
    return found


def check_folder(folder: Path) -> None:
    """Raises: DagscaleError if pictures cannot be written there: asked before the work."""
    for name in FILES[2:]:
        check_path(folder / name)


def save_all(replay: Replay, folder: Path) -> list[Path]:
    """Write the data, the tables and both pictures into ``folder``, which exists."""
    write(folder / FILES[0], json.dumps(to_dict(replay), indent=1, allow_nan=False).encode())
    write(folder / FILES[1], markdown(replay).encode())
    save(lambda: draw_lost(replay), folder / FILES[2])
    save(lambda: draw_rates(replay), folder / FILES[3])
    return [folder / name for name in FILES]
