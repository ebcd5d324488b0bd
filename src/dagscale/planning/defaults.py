"""Whether a target can be planned from its base as it is: by width and depth rules, without a step on it.

What is measured (docs/evidence/transfer.md) is pre-norm residual networks under AdamW: there the base's rate, carried
over by these rules, is the best of the target's own grid, at depths and widths at which one rate for all loses.
"""

from __future__ import annotations

from dagscale.errors import DagscaleError
from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.graph.roles import roles
from dagscale.inits import Init
from dagscale.network import Network
from dagscale.scaling.depth import depth_scaling
from dagscale.scaling.width import pattern, width_scaling

WIDTH, DEPTH, LAW = "mup", "completep", "none"

CARRIED = (
    f"width={WIDTH!r}, depth={DEPTH!r}, law={LAW!r} by default: base and target are pre-norm residual networks of one "
    "kind, the target not the smaller one (docs/evidence/transfer.md); name law= or width= for another way, and clip "
    "with dagscale.clip_grad_norm_"
)


def carries_over(base: Network, target: Network, init: Init) -> bool:
    """Whether base and target differ in depth and width alone, and in a way that the rules are known to hold for.

    That is: the step is of one size whatever the gradient's, and decay apart from it, as AdamW's; the init draws
    weights ∝ fan-in^-½; every residual branch has a norm inside and an end that takes the multiplier; both have
    parameters in the same places, with as many dimensions and the same roles; nothing is smaller than in the base; and
    where the width grows, no size inside stays as it was (a router's, an adapter's), and no tied readout is without a
    norm before it.
    """
    optimizer = target.recipe.optimizer
    if (optimizer.step, optimizer.decay, optimizer.eps) != ("sign", "decoupled", True):
        return False
    if not init.draws or init.width != "standard" or not all(map(_pre_norm, (base.graph, target.graph))):
        return False
    places, others = _places(target.graph), _places(base.graph)
    if places.keys() != others.keys() or any(places[p][0] != others[p][0] for p in places):
        return False
    if any(new < old for p in places for new, old in zip(places[p][1], others[p][1], strict=True)):
        return False
    role = roles(target.graph)
    try:
        width = width_scaling(base.graph, target.graph, optimizer)
        depth = depth_scaling(base.graph, target.graph, optimizer, DEPTH)
    except DagscaleError:
        return False
    fixed = any(s.kind == "output" and role[n] in ("hidden", "embedding") for n, s in width.items())
    return not fixed and all(scaling.depth_mult >= 1 for scaling in depth.values())


def _pre_norm(graph: Graph) -> bool:
    """Whether it has residual branches, each with a norm inside, and all of them can be multiplied."""
    found = find_branches(graph)
    ops = ((op for e in branch.edges for op in graph.edges[e].ops) for branch in found.branches)
    normed = all(any(op.kind == "norm" and "softmax" not in op.name for op in inside) for inside in ops)
    return bool(found.branches) and normed and not found.unclear and not any(b.note for b in found.branches)


def _places(graph: Graph) -> dict[str, tuple[tuple[int, str, bool], tuple[int, ...]]]:
    """Name with numbers left open → dimensions, role, whether it is trained; and the largest sizes there."""
    role = roles(graph)
    found: dict[str, tuple[tuple[int, str, bool], tuple[int, ...]]] = {}
    for p in graph.parameters:
        kind, shape = (len(p.shape), role[p.name], p.trainable), p.shape
        place = pattern(p.name)
        if place in found and found[place][0] == kind:
            shape = tuple(map(max, found[place][1], shape))
        found[place] = kind, shape
    return found
