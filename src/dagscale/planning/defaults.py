"""What a plan takes where nobody names it: the init; and width and depth rules, where a target can be planned from its
base as it is, without a step on it.

*The init.* ``moments`` gives outputs the second moment 1. Under a squared error that adds as much to the loss as all
that there is to learn, and networks train better from a readout that starts at a quarter (``small-readout``), under
Adam and under momentum; under plain SGD, where hidden layers then wait for the readout to grow, as often worse. Under
cross-entropies they train worse from it, and other losses have no side (docs/evidence/regression.md). A search does not
try other inits by itself, as a base mostly does not know which is better for its targets
(docs/evidence/default-init.md).

*Without a step.* What is measured is small networks. Where the depth grows, the base's rate, carried over by the rules
for width and depth, is near the best of the target's own grid for residual networks, wherever their norms stand, under
Adam and its kin (docs/evidence/transfer.md, docs/evidence/kinds.md) and under SGD (docs/evidence/sgd-depth.md), at
depths and widths at which one rate for all loses. For layers behind one another it does not always
(docs/evidence/plain.md). Where the width alone grows, that holds under Adam and its kin for every kind of network
(docs/evidence/kinds.md); under SGD, on ResNets in short runs, measuring ends lower (docs/evidence/real-recipes.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from dagscale.errors import DagscaleError
from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.graph.roles import output_factors, positions, roles
from dagscale.inits import DEFAULT, WITHOUT_DATA, Init
from dagscale.network import Network
from dagscale.planning.prepare import initialised
from dagscale.planning.trained import own_rms
from dagscale.scaling.depth import depth_scaling
from dagscale.scaling.width import WidthScaling, pattern, width_scaling
from dagscale.training.engine import final_loss
from dagscale.training.seeds import seeded

SQUARED = "small-readout"
"""The init under a squared error."""

QUIET = (
    f"init {SQUARED!r} by default: the loss grows as the square of the outputs, and networks that begin with small "
    f"ones end lower; name init={DEFAULT!r} for larger ones"
)


def why_init(name: str) -> tuple[str, ...]:
    """Notes on an init that was taken because nobody named one."""
    return (QUIET,) if name == SQUARED else ()


LARGE, EXAMPLES = (8.0, 16.0), 16
"""How many times as large a readout is drawn to see how the loss grows, and on how many examples."""


def init_for(network: Network) -> str:
    """The name of the init for a network: without data, under a squared error, and else; plain SGD has one for all
    losses.

    A loss is a squared error if it grows about as the square of large outputs: with one readout 16 times as large as
    ``moments`` draws it, the loss is nearly four times as high as with 8 times, where a cross-entropy, an absolute
    error or Huber's loss is at most twice as high, and one with an exponential far higher. That takes targets no more
    than some times as large as outputs of second moment 1; beside larger ones the size of outputs is of no account. A
    loss that is a training step's own is not looked at, nor a readout that stays as it is or is an embedding too.

    Raises:
        DagscaleError: if ``moments`` cannot be measured on the network.
    """
    recipe, optimizer = network.recipe, network.recipe.optimizer
    if recipe.data is None:
        return WITHOUT_DATA
    plain = optimizer.step == "gradient" and not optimizer.settings.get("momentum")
    if plain or (recipe.step is not None and recipe.loss is None):
        return DEFAULT
    own = initialised(network, DEFAULT)
    readouts = [name for name in (*_readouts(network.graph), *output_factors(network.graph)) if name in own.fills]
    return SQUARED if any(1.5 < _growth(own, name) < 2.5 for name in readouts) else DEFAULT


def _readouts(graph: Graph) -> list[str]:
    """The weights that make outputs and nothing else."""
    uses: dict[str, set[str]] = {}
    for _, name, position in positions(graph):
        uses.setdefault(name, set()).add(position)
    return [name for name, found in uses.items() if found == {"readout"}]


def _growth(network: Network, readout: str) -> float:
    """The power of a readout's size that the loss grows as; NaN where it cannot be told."""
    losses = []
    for times in LARGE:
        fills = {**network.fills, readout: network.fills[readout].times(times)}
        try:
            with seeded(network.seed):
                losses.append(final_loss(network.copy.reset(fills, network.seed), network.recipe, EXAMPLES))
        except DagscaleError:  # a loss that such outputs cannot be given to
            return math.nan
        finally:
            network.copy.give_back()
    low, high = losses
    return math.log(high / low, LARGE[1] / LARGE[0]) if 0 < low < high < math.inf else math.nan


WIDTH, LAW = "mup", "none"


class Way(NamedTuple):
    """How a target is planned from its base: by these rules for width and depth, without a law.

    Attributes:
        depth: the rule for depth.
        why: for the reader of the plan.
    """

    depth: str
    why: str


DEEPER = Way(
    "completep",
    f"width={WIDTH!r}, depth='completep', law={LAW!r} by default: base and target are residual networks of one "
    "kind, the target not the smaller one; name law= or width= for another way, and "
    "clip with dagscale.clip_grad_norm_",
)
WIDER = Way(
    "none",
    f"width={WIDTH!r}, law={LAW!r} by default: the target is the base with more channels; "
    "name law= or width= for another way",
)


def way_over(base: Network, target: Network, init: Init) -> Way | None:
    """How to plan a target that differs from its base in depth and width alone, in a way that the rules are known to
    hold for; None if it does not.

    That is: the step is of one size whatever the gradient's, and decay, if there is any, apart from it, as AdamW's; or
    it is along the gradient, and the depth grows; weights are drawn ∝ fan-in^-½, by the init or by the model's author,
    if that is kept; both have parameters in the same places, with as many dimensions, and the target has there the
    roles that the base has; nothing is smaller than in the base; and where the width grows, places are not mixed as an
    MLP-Mixer does, no tied readout is without a norm before it, and along the gradient no size inside stays as it was.
    To be deeper, every residual branch must have an end that takes the multiplier, and norms must stand where the base
    has them.
    """
    optimizer, decay = target.recipe.optimizer, target.recipe.weight_decay
    decays = bool(optimizer.own_decay if decay is None else decay) and optimizer.decay != "decoupled"
    along = optimizer.step == "gradient"
    if not along and (optimizer.step != "sign" or not optimizer.eps or decays):
        return None
    if init.draws and init.width != "standard":
        return None
    places, others = _places(target.graph), _places(base.graph)
    if places.keys() != others.keys() or any(not others[p][0] <= places[p][0] for p in places):
        return None
    if any(new < old for p in places for new, old in zip(places[p][1], others[p][1], strict=True)):
        return None
    try:
        width = width_scaling(base.graph, target.graph, optimizer)
    except DagscaleError:
        return None
    stays = _stays(target.graph, width)
    if stays and (along or _crosses(target.graph, width, stays)):
        return None
    if all(places[p][1] == others[p][1] for p in places) and any(s.lr != 1 for s in width.values()):
        return None  # nothing is larger, so that parameters were compared with others than their own
    factors = {pattern(name) for name in output_factors(target.graph)}
    if _units(base.graph, factors) != _units(target.graph, factors):
        return None  # how much a dot product moves goes with its length, of which the width rule knows nothing
    if not init.draws and not (_as_fan_in(base, target) and _same(base.graph, target.graph, _tied(target.graph))):
        return None
    names = [{p.name for p in network.graph.parameters} for network in (base, target)]
    grown = names[0] == names[1] and base.graph.parameters != target.graph.parameters
    wider = WIDER if grown and not along else None
    norms = [_norms(graph) for graph in (base.graph, target.graph)]
    if None in norms or norms[0] != norms[1]:
        return wider
    try:
        depth = depth_scaling(base.graph, target.graph, optimizer, DEEPER.depth)
    except DagscaleError:
        return wider
    growth = [scaling.depth_mult for scaling in depth.values()]
    return DEEPER if min(growth) >= 1 and (max(growth) > 1 or not along) else None


def _stays(graph: Graph, width: Mapping[str, WidthScaling]) -> set[str]:
    """Layers inside that lead from the width to a size that stays: a code's, a router's, an adapter's."""
    role = roles(graph)
    return {name for name, s in width.items() if s.kind == "output" and role[name] in ("hidden", "embedding")}


def _crosses(graph: Graph, width: Mapping[str, WidthScaling], stays: Collection[str]) -> bool:
    """Whether a layer whose fan-in grows reads what one of those leads to, whose size ``stays``: that size is no code
    of the signal then but another axis of it, as the places are that an MLP-Mixer mixes.

    There the rules for width end above a rate that is measured (``docs/evidence/real-recipes.md``), and not where the
    size that stays is a code's, a router's or a gate's (``docs/evidence/bottlenecks.md``).
    """
    ahead: list[set[str]] = [set() for _ in graph.vertices]  # the layers that read what stands there, past no product
    found: dict[str, set[str]] = {}
    for v in reversed(range(len(graph.vertices))):
        for edge in (graph.edges[e] for e in graph.out_edges[v] if graph.live[e]):
            reading = set() if graph.vertices[edge.dst].kind == "product" else ahead[edge.dst]
            for op in reversed(edge.layers):
                found.setdefault(op.weight, set()).update(reading)
                reading = {op.weight}
            ahead[v] |= reading
    return any(
        width[reader].kind in ("hidden", "output") and width[reader].width_mult != 1
        for name in stays
        for reader in found.get(name, set()) & width.keys()
    )


FAN_IN = 2**0.25
"""A weight that is so many times larger or smaller than fan-in^-½ has it is of another rule. One of the same size at
all widths is told where the fan-in has grown to 1.4 times, the square of this, or more."""


def _as_fan_in(base: Network, target: Network) -> bool:
    """Whether the weights of layers that both have from their authors go as fan-in^-½ from one to the other: what is
    left without it is found at the same place of the base, to within chance."""
    known: dict[str, list[float]] = {}
    for name, size in _without_fan_in(base).items():
        known.setdefault(pattern(name), []).append(size)
    entries = {p.name: math.prod(p.shape) for p in target.graph.parameters}

    def alike(name: str, size: float) -> bool:
        chance = 2 / math.sqrt(entries[name])
        return any(
            size == other or (size and other and abs(math.log(size / other)) <= math.log(FAN_IN) + chance)
            for other in known.get(pattern(name), ())
        )

    own = _without_fan_in(target)
    return bool(own) and all(alike(name, size) for name, size in own.items())


def _without_fan_in(network: Network) -> dict[str, float]:
    """The root mean square of each layer's weight times √fan-in."""
    rms = own_rms(network)
    found = {name: use.layer.fan_in for use, name, _ in positions(network.graph)}
    return {name: rms[name] * math.sqrt(fan_in) for name, fan_in in found.items() if name in rms}


def _tied(graph: Graph) -> set[str]:
    """Embeddings that are readouts too: the width rule scales the norm before them."""
    role = roles(graph)
    return {name for _, name, position in positions(graph) if position == "readout" and role[name] == "embedding"}


def _units(graph: Graph, names: set[str]) -> dict[str, set[int]]:
    """How many units the layers at these places have: if outputs are their products, the length of these."""
    found: dict[str, set[int]] = {}
    for use, name, _ in positions(graph):
        if pattern(name) in names:
            shape = graph.parameter[name].shape
            found.setdefault(pattern(name), set()).add(shape[-1] if use.op.looks_up else shape[0])
    return found


def _same(base: Graph, target: Graph, names: set[str]) -> bool:
    """Whether these parameters are as large in the base."""
    shapes = {p.name: p.shape for p in base.parameters}
    return all(target.parameter[name].shape == shapes.get(name) for name in names)


def _norms(graph: Graph) -> tuple[bool, bool] | None:
    """Whether all residual branches have norms inside, and whether there are norms at all; None if there are no
    branches, or one that cannot be multiplied."""
    found = find_branches(graph)
    if not found.branches or found.unclear or any(branch.note for branch in found.branches):
        return None
    normed = {e for e, edge in enumerate(graph.edges) if any(op.normalises for op in edge.ops)}
    return all(normed & branch.edges for branch in found.branches), bool(normed)


Place = tuple[str, int, bool]
"""A name with numbers left open, the number of dimensions, and whether it is trained."""


def _places(graph: Graph) -> dict[Place, tuple[set[str], tuple[int, ...]]]:
    """The roles that parameters have at each place, and their largest sizes."""
    role = roles(graph)
    found: dict[Place, tuple[set[str], tuple[int, ...]]] = {}
    for p in graph.parameters:
        place = pattern(p.name), len(p.shape), p.trainable
        known, sizes = found.get(place, (set(), p.shape))
        found[place] = known | {role[p.name]}, tuple(map(max, sizes, p.shape))
    return found
