"""``decay=True``: the weight decay that goes with the rate, in few runs.

What training sees of a decay is mostly its product with the rate: the share of a weight that a step takes away. On
finished runs of others the best rate goes like decay^-0.8 (``docs/evidence/replay.md``). So after the rate was found
under the recipe's own decay, larger and smaller decays are tried, each with rates between the one that keeps that
product and the one that was best before; as soon as a decay is no better than the last one, that side is left.
"""

from __future__ import annotations

from collections.abc import Callable

from dagscale.errors import SearchError
from dagscale.planning.base import Pair
from dagscale.training.recipe import Recipe

APART = 4.0
"""Ratio of the decays that are tried one after the other: two octaves."""

FURTHEST = 4
"""Most decays that are tried on one side."""

WORTH = 0.002
"""A decay whose loss is not lower than the last one's by this part of it is no better: seeds differ by as much."""


def walk(run: Callable[[float, float], float], decay: float, lr: float, loss: float) -> list[Pair]:
    """Decays above the first one while they are better, else below, each with its best rate; ascending.

    Args:
        run: final loss of a run at (decay, rate); ``inf`` if it diverged.
        decay, lr, loss: where to begin.
    """
    first = Pair(decay, lr, loss)
    found = [first]
    for factor in (APART, 1 / APART):
        last = first
        for _ in range(FURTHEST):
            more = last.weight_decay * factor
            rates = [last.lr / factor**share for share in (1.0, 0.5, 0.0)]
            last, before = min((Pair(more, rate, run(more, rate)) for rate in rates), key=lambda pair: pair.loss), last
            found.append(last)
            if not last.loss < before.loss - WORTH * abs(before.loss):
                break
        if min(found, key=lambda pair: pair.loss) is not first:
            break
    return sorted(found, key=lambda pair: pair.weight_decay)


def check_decay(recipe: Recipe, held: bool) -> float:
    """The decay to begin with.

    Args:
        held: whether the loss is that on data which are not trained on.

    Raises:
        SearchError: if the recipe has none, or the loss would always ask for less of it.
    """
    if not recipe.weight_decay:
        raise SearchError("decay=True looks around the recipe's weight decay, which is not given: say weight_decay=")
    once = recipe.source.steps(1)
    if not held and once is not None and recipe.total_steps * recipe.accumulate > once:
        raise SearchError(
            "a run passes over the data more than once, and a training loss then asks for ever less decay: give "
            "validation=, data that are not trained on"
        )
    return recipe.weight_decay
