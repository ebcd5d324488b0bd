"""Tables and files of a comparison of settings, and of variance components."""

from __future__ import annotations

from pathlib import Path

from dagscale.bench.nas.agreement import SMALLEST, Gain
from dagscale.bench.nas.components import LEVEL, POWER, Components
from dagscale.bench.nas.rerank_page import SHOWN_KS, Rows, interval, json_text, write_files
from dagscale.bench.nas.settings import Shared

AFFECTS_RESULTS = False


def write(found: Shared, folder: Path) -> dict[str, Path]:
    """Write ``settings.json``; what was written, by name.

    Raises:
        DagscaleError: if the folder cannot be written.
    """
    return write_files(folder, {"json": ("settings.json", json_text(found.to_dict()))})


def rows(found: Shared) -> list[Rows]:
    """The tables as (title, column names, rows of text)."""
    gains: Rows = (
        "Mean gain of each one's best setting over the shared one in points, with 95 % intervals",
        ("architectures", "n", "gain", "the shared setting, seed against seed"),
        [
            (f"top {g.top} %" if g.top < 100 else "all", str(g.gain.n), gain_text(g), f"{g.noise or 0.0:+.2f}")
            for g in found.gains
        ],
    )
    kendall: Rows = (
        "Kendall τ between single seeds over the top K %, with 95 % intervals",
        ("K", "n", "shared against best", "floor: between seeds", "floor − τ"),
        [
            (
                f"{k} %",
                str(found.between[k].n),
                interval(found.between.get(k), ".2f"),
                interval(found.within.get(k), ".2f"),
                interval(found.excess.get(k), "+.2f"),
            )
            for k in SHOWN_KS
            if k in found.between
        ],
    )
    chosen: Rows = (
        "Settings that are best for an architecture, the most frequent ones",
        ("setting", "architectures"),
        [(name, str(count)) for name, count in found.chosen[:10]],
    )
    return [gains, kendall, chosen, *([] if found.components is None else [component_rows(found.components)])]


def legend(found: Shared) -> list[str]:
    """What the tables' readers must know, one sentence or two each."""
    lines = [
        f"{found.source}: {found.column}; {found.archs:,} architectures, {found.settings} settings, {found.seeds} "
        "seeds.",
        f"The shared setting is {found.setting}.",
        "Each one's best setting is chosen by the other seeds than the one that it is judged by.",
    ]
    if found.components is not None:
        lines.append(power_line(found.components, "setting"))
    return lines


def component_rows(found: Components) -> Rows:
    """Standard deviations, in points; a negative one stands for a variance that was estimated below 0."""
    return (
        "Variance components of one run's accuracy, as standard deviations in points, with 95 % intervals",
        ("architecture", "training", "interaction", "seed", "interaction's p"),
        [
            (
                *(
                    interval(part, ".2f")
                    for part in (found.architecture, found.training, found.interaction, found.seed)
                ),
                f"{found.p:.2g}",
            )
        ],
    )


def power_line(found: Components, training: str) -> str:
    """What a study of this size could have seen."""
    return (
        f"Power: this size finds an interaction of architecture and {training} of {found.seen:.2f} points or more, and "
        f"a mean gain over all architectures of {found.gain:.2f} or more, with a probability of {POWER:.0%} at the "
        f"level {LEVEL:.0%}."
    )


def gain_text(gain: Gain) -> str:
    """A gain with its interval, where there are enough architectures."""
    return f"n too small ({gain.gain.n})" if gain.gain.n < SMALLEST else interval(gain.gain, "+.2f")
