"""What names, modules and patterns mean: the parameters of a model that a user speaks of."""

from __future__ import annotations

from collections.abc import Iterable

from dagscale.errors import PlanError
from dagscale.tracing.wrappers import meant

Patterns = str | Iterable[str] | None


def named(known: dict[str, str], patterns: str | Iterable[str], what: str) -> set[str]:
    """The parameters that one of ``patterns`` means: a name itself, a module that it lies in, or a glob pattern.

    Args:
        known: see `dagscale.tracing.wrappers.known_names`.

    Raises:
        PlanError: if a pattern means none.
    """
    return {name for _, own in by_pattern(known, patterns, what) for name in own}


def by_pattern(known: dict[str, str], patterns: str | Iterable[str], what: str) -> list[tuple[str, set[str]]]:
    """Each pattern with the parameters that it means, see `named`."""
    found: list[tuple[str, set[str]]] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not isinstance(pattern, str):
            raise PlanError(f"{what}= holds {pattern!r}: give names of parameters or modules, or patterns")
        own = meant(known, pattern)
        if not own:
            some = list(known)
            shown = ", ".join(some[:3]) + (", …" if len(some) > 3 else "")
            raise PlanError(f"{what}={pattern!r} names no parameter of the model: it has {shown}")
        found.append((pattern, own))
    return found


def chosen_alone(known: dict[str, str], only: Patterns, keep: Patterns, reset: Patterns) -> tuple[set[str], set[str]]:
    """The parameters that are asked to be initialised by name, and those that are to stay.

    ``keep`` makes exceptions of what ``only`` and ``reset`` name.

    Raises:
        PlanError: if both ``only`` and ``reset`` are given, one of them names nothing, or ``keep`` leaves nothing of
            what they name.
    """
    if reset is not None and only is not None:
        raise PlanError("only= and reset= both say what alone is initialised: give one of them")
    kept = set() if keep is None else named(known, keep, "keep")
    what, chosen = ("only", only) if only is not None else ("reset", reset)
    if chosen is None:
        return set(), kept
    parts = by_pattern(known, chosen, what)
    if not parts:
        raise PlanError(f"{what}= is empty, so that nothing would be initialised: name something, or give init='keep'")
    for pattern, own in parts:
        if own <= kept:
            raise PlanError(
                f"{what}={pattern!r} asks to initialise what keep= says to leave as it is, {', '.join(sorted(own)[:3])}"
                f"{', …' if len(own) > 3 else ''}: take it out of one of them"
            )
    asked = {name for _, own in parts for name in own} - kept
    return asked, kept | (set(known.values()) - asked)
