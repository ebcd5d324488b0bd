"""The change of layers' outputs, held against the base's: what rules for width and depth promise to keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median

from dagscale.scaling.width import pattern
from dagscale.watching.planned import Planned
from dagscale.watching.rates import listed
from dagscale.watching.report import Row, middle
from dagscale.watching.seen import Fault, Found, Seen
from dagscale.watching.sizes import FEW

FURTHER = 4.0
"""How many times as far as the base's a kind of layers may move its outputs: 99 sound trainings came to 1.34."""

JUDGED = ("embedding", "input", "hidden", "branch end")
"""Kinds that are judged. A readout's output is small where it is wide, by the rule, so that it has no such measure."""


def of_base(rows: Iterable[Row], parameters: Mapping[str, Planned]) -> dict[str, float]:
    """For each parameter how far the same one of the base moved its layer's output; if the base has no such name, the
    median over names that differ in numbers only."""
    moved = {row.name: row.signal for row in rows if row.signal}
    alike: dict[str, list[float]] = {}
    for name, signal in moved.items():
        alike.setdefault(pattern(name), []).append(signal)
    found = {name: moved.get(name) or middle(alike.get(pattern(name), [])) for name in parameters}
    return {name: signal for name, signal in found.items() if signal is not None}


def signals(seen: Seen) -> Found:
    """Kinds of layers whose steps move their outputs much further than the base's do."""
    if not seen.signals or len(seen.steps) < FEW:
        return
    kinds: dict[str, dict[str, float]] = {}
    for name, base in seen.signals.items():
        own = middle([facts[name].signal for facts in seen.steps if name in facts])
        if own is not None and seen.kinds[name] in JUDGED:
            kinds.setdefault(seen.kinds[name], {})[name] = own / base
    for kind, ratios in kinds.items():
        ratio = median(ratios.values())
        if ratio > FURTHER:
            rules = [f"{what}={rule!r}" for what, rule in (("width", "mup"), ("depth", "completep")) if
                     getattr(seen.plan, what) == "none"]  # fmt: skip
            mend = f"plan with {' and '.join(rules)} where these grow" if rules else (
                "something outside the plan scales their outputs or their inputs"
            )  # fmt: skip
            yield Fault("signal", listed(ratios), (
                f"a step moves the outputs of {kind} layers {ratio:.3g} × as far as the base's (median): {mend}"
            ))  # fmt: skip
