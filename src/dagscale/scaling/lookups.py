"""Embeddings that the model multiplies by a number which grows with its width, as √width.

With ``y = c E[x]``, a table of entries 1/c gives what a table of entries 1 gives without the factor, and a step of the
table moves ``y`` by c times as much. A width rule that lets the table's rate stay where it is, as μP does, says so of
``y``: where the target's factor is r times the base's, 1/r is folded into the table's rate, eps and weight decay. Its
init is the init's own affair, since ``moments`` sees the factor, and an author draws with it in mind.
"""

from __future__ import annotations

from dataclasses import replace

from dagscale.graph import Graph
from dagscale.graph.roles import lookup_factors, roles
from dagscale.scaling.folding import Factors, fold
from dagscale.scaling.width import nearest
from dagscale.training.optimizers import Optimizer


def lookup_scaling(base: Graph, target: Graph, optimizer: Optimizer) -> dict[str, tuple[Factors, float, str]]:
    """Embedding's weight → the factors on its settings, the multiplier 1/r, and a note; for those with another factor
    than in the base only.

    Raises:
        OptimizerError: if there is one, and nothing is known of the optimiser's step or decay.
    """
    own, before = lookup_factors(target), lookup_factors(base)
    tables = [name for name, role in roles(base).items() if role == "embedding"]
    found = {}
    for name in {**own, **before}:
        match = nearest(name, tables)
        if name not in target.parameter or match is None:
            continue
        r = own.get(name, 1.0) / before.get(match, 1.0)
        if abs(r - 1) > 1e-6:
            note = f"the model multiplies what it looks up by {r:.4g} times the base's number: carries {1 / r:.4g}"
            found[name] = (replace(fold(optimizer, 1 / r), init=1.0), 1 / r, note)
    return found


__all__ = ["lookup_scaling"]
