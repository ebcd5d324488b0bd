"""Embeddings whose output the model multiplies by a number that grows with its width, as √width.

With ``y = c E[x]``, a table of entries 1/c gives what a table of entries 1 gives without the factor, and a step of the
table moves ``y`` by c times as much. A width rule that lets the table's rate stay where it is, as μP does, says so of
``y``: where the target's factor is r times the base's, 1/r is folded into the table's rate, eps and weight decay. The
init ``moments`` and its like see the factor themselves. Under another init the table stays as large, so that a step of
it stays as large a part, and nothing is folded.

A table that is the readout too has 1/m of the width rule in the norm before the readout, and the rule's init makes up
for ``moments``, which draws it for the readout. There 1/r goes into its init as well, and the norm takes it back.
"""

from __future__ import annotations

from dataclasses import replace

from dagscale.graph import Graph
from dagscale.graph.roles import lookup_factors, positions, roles
from dagscale.scaling.folding import Carried, Factors, fold
from dagscale.scaling.width import nearest, norm_before
from dagscale.training.optimizers import Optimizer


def lookup_scaling(base: Graph, target: Graph, optimizer: Optimizer) -> dict[str, Carried]:
    """What embeddings with another factor than in the base carry, and what takes it back before a readout that is the
    same table; for those parameters only.

    Raises:
        OptimizerError: if there is one, and nothing is known of the optimiser's step.
    """
    own, before = lookup_factors(target), lookup_factors(base)
    tables = [name for name, role in roles(base).items() if role == "embedding"]
    layers = {op.weight for edge in target.edges for op in edge.layers if not op.looks_up}
    readouts = {name: use for use, name, position in positions(target) if position == "readout"}
    found = {}
    for name in {**own, **before}:
        match = nearest(name, tables)
        if name not in target.parameter or match is None or not target.parameter[name].trainable:
            continue
        r = own.get(name, 1.0) / before.get(match, 1.0)
        if abs(r - 1) < 1e-6:
            continue
        note = (
            f"the model multiplies the embedding by a number that is {r:.4g} times as large as in the base: init, rate "
            "and eps allow for it"
        )
        if name not in layers:
            found[name] = Carried(replace(_fold(optimizer, 1 / r), init=1.0), 1 / r, note)
        elif name in readouts and (gains := norm_before(target, readouts[name])) is not None:
            found[name] = Carried(_fold(optimizer, 1 / r), 1 / r, note)
            back = f"takes back {1 / r:.4g}, which {name} carries as an embedding"
            found.update({gain: Carried(_fold(optimizer, r), r, back) for gain in gains})
    return found


def _fold(optimizer: Optimizer, c: float) -> Factors:
    """`fold`, which a kind of weight decay that nobody knows stands in the way of; then the decay stays as it is."""
    if optimizer.decay is not None:
        return fold(optimizer, c)
    return replace(fold(replace(optimizer, decay="decoupled"), c), weight_decay=1.0)


__all__ = ["lookup_scaling"]
