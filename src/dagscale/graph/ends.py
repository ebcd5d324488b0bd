"""Where in a graph a positive factor can be put: the parameters that multiply a signal when they are multiplied.

A layer's weight and bias, a norm's gain and bias, a branch's own gain: each is the last thing that scales what passes,
and what follows it (dropout, reshapes, averages, ReLU, an attention's average over values) hands a positive factor on.
Where the signal is read by something else as well, that reader's own weight takes the factor back: behind a
squeeze-and-excitation gate, for example, its first layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dagscale.graph.model import Graph, Op

POSITIVE = frozenset({"relu", "leaky_relu", "prelu", "_prelu_kernel", "abs"})
"""Activations that hand a positive factor on: f(c x) = c f(x) for c > 0."""
_FIXED = frozenset({"cumprod", "logcumsumexp", "floor", "ceil", "round", "trunc", "remainder", "fmod", "floor_divide",
                    "prod", "linalg_inv_ex"})  # fmt: skip
"""Passes and pools that do not."""
_LINEAR_IN: dict[str, tuple[int, ...]] = {"div": (0,), "true_divide": (0,), "divide": (0,), "grid_sampler_2d": (0,)}
"""Products that hand a factor on from some of their operands only, by position."""
_NOT_LINEAR = frozenset({"polar", "_cdist_forward", "_euclidean_dist", "xlogy", "_pdist_forward", "linalg_solve",
                         "_linalg_solve_ex", "triangular_solve", "linalg_solve_triangular"})  # fmt: skip

Place = tuple[int, int, str]
"""One use of a parameter: edge, position of the op on it, parameter."""


@dataclass
class Fold:
    """What multiplies a signal by c: the places whose parameters take the factor c, and those that take 1/c.

    Attributes:
        ends, undone: those places.
        edges: the edges that carry the factor.
        reason: why there is no such thing; "" if there is.
    """

    ends: set[Place] = field(default_factory=set)
    undone: set[Place] = field(default_factory=set)
    edges: set[int] = field(default_factory=set)
    reason: str = ""

    def powers(self) -> dict[str, int]:
        """Parameter → the power of c that it takes; what takes c and 1/c is left out."""
        powers: dict[str, int] = {}
        for places, power in ((self.ends, 1), (self.undone, -1)):
            for name in {name for _, _, name in places}:
                powers[name] = powers.get(name, 0) + power
        return {name: power for name, power in powers.items() if power}


def fold_before(graph: Graph, edges: Iterable[int], stop: frozenset[int] = frozenset()) -> Fold:
    """What multiplies the signals that the ``edges`` deliver.

    Args:
        stop: vertices whose signals must stay as they are: the trunk's.
    """
    fold = Fold()
    for edge in edges:
        _back(graph, edge, stop, fold)
    if not fold.reason:
        _undo(graph, fold)
    return fold


def fold_through(graph: Graph, edges: Iterable[int], vertex: int) -> Fold:
    """What multiplies all that the ``edges`` deliver; what reads ``vertex``, behind them, takes the factor back."""
    fold = fold_before(graph, edges)
    for e in graph.out_edges[vertex]:
        if graph.live[e] and not fold.reason:
            _forward(graph, e, fold)
    return fold


def only_whole(graph: Graph, folds: dict[int, Fold]) -> dict[int, Fold]:
    """Folds whose parameters are used nowhere but at ends, with the same power of c; the others get a reason."""
    uses: dict[str, set[Place]] = {}
    for e, edge in enumerate(graph.edges):
        if graph.live[e]:
            for i, op in enumerate(edge.ops):
                for p in op.params:
                    uses.setdefault(p.name, set()).add((e, i, p.name))
    while True:
        taken: dict[tuple[str, int], set[Place]] = {}
        for fold in folds.values():
            for places, power in ((fold.ends, 1), (fold.undone, -1)) if not fold.reason else ():
                for place in places:
                    taken.setdefault((place[2], power), set()).add(place)
        shared: dict[int, str] = {}
        for v, fold in folds.items():
            for places, power in ((fold.ends, 1), (fold.undone, -1)) if not fold.reason else ():
                for _, _, name in sorted(places):
                    if taken[name, power] != uses[name]:
                        shared.setdefault(v, name)
        if not shared:
            return folds
        folds = {
            v: replace(fold, reason=f"{shared[v]} is used elsewhere too") if v in shared else fold
            for v, fold in folds.items()
        }


def _back(graph: Graph, e: int, stop: frozenset[int], fold: Fold) -> None:
    """Walk back along an edge to the parameters that scale its signal."""
    if e in fold.edges or fold.reason:
        return
    fold.edges.add(e)
    edge = graph.edges[e]
    passed = ""  # a gain computed from a parameter: it hands a factor on, and is the reason if nothing before takes it
    for i in reversed(range(len(edge.ops))):
        op = edge.ops[i]
        if passes(op):
            continue
        names = _scaling(op)
        if names is None and op.kind == "scale" and op.params and _multiplies(op):
            passed = passed or _refusal(op)
            continue
        if names is None:
            fold.reason = passed or _refusal(op)
            return
        fold.ends.update((e, i, name) for name in names)
        if op.kind != "shift":
            return
    vertex = graph.vertices[edge.src]
    if vertex.id in stop or vertex.kind == "input":
        fold.reason = passed or "it ends in the trunk's own signal"
        return
    entering = [i for i in graph.in_edges[vertex.id] if graph.live[i]]
    if vertex.kind == "product":
        _back_through_product(graph, vertex.label.rstrip("_"), entering, stop, fold)
        return
    for i in entering:
        _back(graph, i, stop, fold)


def _back_through_product(graph: Graph, label: str, entering: list[int], stop: frozenset[int], fold: Fold) -> None:
    """One operand of a product takes the factor: the last that can."""
    if "dot_product" in label:
        order = entering[-1:]  # the values; queries and keys stand inside a softmax
    elif label in _NOT_LINEAR:
        order = []
    elif label in _LINEAR_IN:
        order = [entering[i] for i in _LINEAR_IN[label] if i < len(entering)]
    else:
        order = entering[::-1]
    reason = f"it ends in {label!r}"
    for i in order:
        trial = Fold(set(fold.ends), set(), set(fold.edges))
        _back(graph, i, stop, trial)
        if not trial.reason:
            fold.ends, fold.edges = trial.ends, trial.edges
            return
        reason = trial.reason
    fold.reason = reason


def _undo(graph: Graph, fold: Fold) -> None:
    """Give the factor back where the signal is read by what is not part of the fold."""
    stopped = {e for e, i, _ in fold.ends if graph.edges[e].ops[i].kind != "shift"}
    passing = fold.edges - stopped
    for v in sorted({graph.edges[e].src for e in passing}):
        for e in graph.out_edges[v]:
            if graph.live[e] and e not in passing and not fold.reason:
                _forward(graph, e, fold)


def _forward(graph: Graph, e: int, fold: Fold) -> None:
    edge = graph.edges[e]
    for i, op in enumerate(edge.ops):
        if passes(op):
            continue
        if op.kind in ("weight", "scale") and _scaling(op) is not None:
            fold.undone.update((e, i, p.name) for p in op.params if p.role in ("weight", "gain"))
            return
        fold.reason = f"its end is read by {_where(op)} too"
        return
    vertex = graph.vertices[edge.dst]
    if vertex.kind in ("sum", "output") or any(i in fold.edges for i in graph.in_edges[vertex.id]):
        fold.reason = "its end is read elsewhere too"
        return
    for i in graph.out_edges[vertex.id]:
        if graph.live[i] and not fold.reason:
            _forward(graph, i, fold)


def passes(op: Op) -> bool:
    """Whether an op without parameters of its own hands a positive factor on."""
    if op.kind in ("pass", "pool"):
        return op.name.rstrip("_") not in _FIXED and not op.params
    return op.kind == "activation" and op.name.rstrip("_") in POSITIVE


def _scaling(op: Op) -> list[str] | None:
    """The parameters that scale an op's output if all of them are scaled; None if there are none."""
    if not op.params or not all(p.scales for p in op.params):
        return None
    if op.kind in ("weight", "shift"):
        return [p.name for p in op.params if p.role in ("weight", "bias", "shift")]
    if op.kind == "scale" and _multiplies(op):
        return [op.params[0].name]
    if op.kind == "norm" and any(p.role == "gain" for p in op.params):
        return [p.name for p in op.params if p.role in ("gain", "bias")]
    return None


def _multiplies(op: Op) -> bool:
    return not op.name.startswith(("div", "true_div"))


def _refusal(op: Op) -> str:
    computed = next((p.name for p in op.params if not p.scales), None)
    if computed is not None:
        return f"{_where(op)} does not use {computed} itself but what is computed from it"
    if op.kind == "norm":
        return f"it ends in a norm without gain ({_where(op)})"
    return f"it ends in {_where(op)}"


def _where(op: Op) -> str:
    return f"{op.name!r} of {op.module}" if op.module else repr(op.name)
