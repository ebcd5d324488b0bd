"""What reports that end in a verdict have in common."""

from __future__ import annotations

from typing import Generic, TypeVar

AFFECTS_RESULTS = False

F = TypeVar("F")


class Judged(Generic[F]):
    """Gives results that have ``faults``, the first one first, their short answers."""

    faults: tuple[F, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is at fault."""
        return not self.faults

    @property
    def first(self) -> F | None:
        """The first fault: later ones may follow from it."""
        return self.faults[0] if self.faults else None

    def failed(self) -> str:
        """The verdict in one line, where something is at fault."""
        more = len(self.faults) - 1
        return f"fail: {self.faults[0]}" + (f" (and {more} more, which may follow from it)" if more else "")
