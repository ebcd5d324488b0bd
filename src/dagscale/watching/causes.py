"""From what was seen to what is wrong: a list of faults, the first one first, and notes."""

from __future__ import annotations

from dagscale.watching import against, settings, sizes
from dagscale.watching.seen import Fault, Seen

PARTS = (
    settings.missing, settings.frozen, settings.drawn, settings.rates, settings.decay, settings.eps,
    sizes.gradients, sizes.clipping, sizes.not_finite, sizes.steps, against.signals,
)  # fmt: skip
"""Each tells its faults and notes; what comes later may follow from what comes first."""


def find(seen: Seen) -> tuple[list[Fault], list[str]]:
    """The faults, those first from which others may follow, and notes on what is no fault."""
    faults: list[Fault] = []
    notes: list[str] = []
    for part in PARTS:
        for found in part(seen):
            (faults if isinstance(found, Fault) else notes).append(found)  # type: ignore[arg-type]
    return faults, notes
