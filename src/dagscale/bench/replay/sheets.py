"""What a replay shows: tables of few columns, as text or Markdown.

All of it is made from :meth:`dagscale.bench.replay.study.Replay.to_dict`, so that pages can be made again from a kept
results file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.bench.replay.pictures import draw_lost, draw_rates
from dagscale.pictures.files import save, write
from dagscale.shown import counted, load_rich

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

Document = Mapping[str, Any]
"""A part of what ``Replay.to_dict`` gives."""


@dataclass(frozen=True)
class Sheet:
    """One table: ``text`` stands under the title, ``rows`` are ready to print."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(document: Document) -> Iterator[Sheet]:
    """All tables: for the main metric everything, for others the exponents."""
    yield _overview(document)
    for i, judged in enumerate(document["metrics"]):
        unit = judged["metric"]["unit"]
        if judged["exponents"]:
            yield _exponents(judged)
        if i:
            continue
        for axis in judged["axes"]:
            yield _axis(axis, unit)
            if axis["axis"] == "network" and len(next(iter(axis["by_base"].values()), ())) > 2:
                yield _by_base(axis, unit)
        if judged["network_pairs"]:
            yield _network_pairs(judged["network_pairs"], unit)
        if judged["horizon_pairs"]:
            yield _plain(
                "To a longer run, rate and decay together",
                f"From the best pair at the shortest run. Lost against the longer run's own best pair, {unit}.",
                judged["horizon_pairs"],
            )
        if judged["formula"]:
            yield _plain(
                "The Step Law's own formula",
                f"Rate and nearest batch size for each size and horizon, {unit} lost against the best of the grid. The "
                "formula was fitted to these very runs.",
                judged["formula"],
            )


def _overview(document: Document) -> Sheet:
    main = document["metrics"][0]
    unit = main["metric"]["unit"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in main["kinds"].items())
    rows = [
        ("runs", f"{document['runs']:,}, layout {document['layout']}: {document['source']}"),
        ("judged by", f"{main['metric']['name']}, in {unit}"),
        (
            "best rates",
            f"{kinds}, {main['skipped']} skipped (fewer than three rates, or always diverged); only inner ones count",
        ),
        ("an octave off", f"costs {_number(main['octave'])} {unit} (median)"),
        *(
            (
                f"left-out runs, {one['way']}",
                f"missed by {_number(one['rms'])} (rms), {_number(one['median'])} (median) of {one['count']}",
            )
            for one in main["left_out"]
        ),
        *(("note", note) for note in document["notes"]),
    ]
    return Sheet("Replay", "", ("what", "found"), tuple(rows))


def _exponents(judged: Document) -> Sheet:
    rows = [
        (
            one["part"],
            f"{one['found']['value']:.2f}",
            _interval(one["found"]["interval"], ".2f"),
            f"{one['found']['median']:.2f}",
            "–" if one["by_bands"] is None else f"{one['by_bands']:.2f}",
            f"{one['found']['groups']} / {one['found']['optima']}",
        )
        for one in judged["exponents"]
    ]
    return Sheet(
        f"Best rate ∝ variable^exponent, by {judged['metric']['name']}",
        "Within groups that agree in all else; 95 % bootstrap over groups; the median of the groups' own; and the same "
        "from the middles of bands, whose ends cost as much as an octave off.",
        ("variable", "exponent", "95 %", "median", "bands", "groups / best rates"),
        tuple(rows),
    )


def _axis(axis: Document, unit: str) -> Sheet:
    other = {score["rule"]: score for score in axis["any_base"]}
    rows = tuple((*_score(score), _number(other[score["rule"]]["lost"])) for score in axis["smallest"])
    causes: dict[str, list[str]] = {}
    for rule, why in axis["silent"].items():
        causes.setdefault(why, []).append(rule)
    silent = "".join(f" Nothing is said by {'; '.join(rules)} for {why}." for why, rules in causes.items())
    pairs, groups = (counted(axis["smallest"][0][f"{thing}s"], thing) for thing in ("pair", "group"))
    return Sheet(
        AXIS_TITLES[axis["axis"]],
        f"The smallest as the base of all others: {pairs}, {groups}. Lost against the target's own best rate, "
        f"{unit}.{silent}",
        ("rule", "lost", "95 %", "worst", "octaves off", "bias", "any base"),
        rows,
    )


def _by_base(axis: Document, unit: str) -> Sheet:
    order = [score["rule"] for score in axis["any_base"]]
    bases = list(next(iter(axis["by_base"].values())))
    rows = []
    for rule in order:
        lost = axis["by_base"].get(rule, {})
        rows.append((rule, *(_number(lost[base]) if base in lost else "–" for base in bases)))
    return Sheet("By base", f"Mean over all other networks, {unit} lost.", ("rule", *bases), tuple(rows))


def _network_pairs(scored: Sequence[Document], unit: str) -> Sheet:
    """One row a decay: rate tuned, the base's rate, the base's product; and the pair as it is."""
    by = {score["rule"]: score for score in scored}
    decays = sorted({name.rpartition(" ")[2] for name in by if ", decay " in name}, key=float)
    ways = ("rate tuned", "base's product", "base's rate")
    rows = [(decay, *(_mean_worst(by.get(f"{way}, decay {decay}")) for way in ways)) for decay in decays]
    rows.append(("the base's, with its rate", "", _mean_worst(by.get("the base's pair")), ""))
    return Sheet(
        "Rate and decay, from the smallest network's best pair",
        f"Lost against the target's own best pair, {unit}: mean (worst) over the other networks.",
        ("decay used", "rate tuned there", "base's rate × decay kept", "base's rate kept"),
        tuple(rows),
    )


def _plain(title: str, text: str, scored: Iterable[Document]) -> Sheet:
    rows = tuple(map(_score, scored))
    return Sheet(title, text, ("rule", "lost", "95 %", "worst", "octaves off", "bias"), rows)


def _score(score: Document) -> tuple[str, ...]:
    lost = _number(score["lost"])
    lost += f", {score['diverged']} diverged" if score["diverged"] and score["lost"] is not None else ""
    lost += f" or more ({score['outside']} off the grid)" if score["outside"] else ""
    return (
        score["rule"],
        lost,
        _interval(score["interval"]),
        _number(score["worst"]),
        f"{score['octaves']:.2f}",
        f"{score['bias']:+.2f}",
    )


def _mean_worst(score: Document | None) -> str:
    return "–" if score is None else f"{_number(score['lost'])} ({_number(score['worst'])})"


def _number(value: float | None) -> str:
    """Two digits or three: 0.0013, 0.042, 0.24, 12.3."""
    if value is None:
        return "diverged"
    size = abs(value)
    return format(value, ".4f" if size < 0.01 else ".3f" if size < 0.1 else ".2f" if size < 10 else ".1f")


def _interval(interval: Sequence[float] | None, form: str = "") -> str:
    if interval is None:
        return "–"
    low, high = (format(end, form) if form else _number(end) for end in interval)
    return f"{low} … {high}"


# --- faces ----------------------------------------------------------------------------------------------------------


def tables(document: Document) -> Iterator[Table]:
    """To print."""
    load_rich()
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    for sheet in sheets(document):
        made = Table(title=sheet.title, caption=escape(sheet.text) or None, box=box.SIMPLE_HEAD, title_justify="left")
        made.caption_justify = "left"
        for i, column in enumerate(sheet.columns):
            made.add_column(escape(column), justify="right" if i and sheet.columns != ("what", "found") else "left")
        for row in sheet.rows:
            made.add_row(*map(escape, row))
        yield made


def markdown(sheet: Sheet) -> str:
    """The table, without title and text."""
    lines = [sheet.columns, ["---"] * len(sheet.columns), *sheet.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def page(document: Document) -> str:
    """All tables as Markdown, with titles and texts."""
    parts = [(f"### {sheet.title}", sheet.text, markdown(sheet)) for sheet in sheets(document)]
    return "\n\n".join(part for parts_ in parts for part in parts_ if part) + "\n"


def save_all(document: Document, folder: Path) -> list[Path]:
    """Write the data, the tables and both pictures into ``folder``, which exists."""
    write(folder / FILES[0], json.dumps(document, ensure_ascii=False, allow_nan=False).encode())
    write(folder / FILES[1], page(document).encode())
    save(lambda: draw_lost(document), folder / FILES[2])
    save(lambda: draw_rates(document), folder / FILES[3])
    return [folder / name for name in FILES]
