"""Recognises, from a model's values, weights that were trained already and values that are there on purpose."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from dagscale.graph import Graph
from dagscale.graph.roles import frequencies
from dagscale.network import Network
from dagscale.scaling.together import Scaling
from dagscale.scaling.width import pattern
from dagscale.tracing._torch import is_lazy
from dagscale.tracing.forward import is_sharded, plain_parameters
from dagscale.training.draws import Fill

CHANCE = 9.2
"""``-ln`` of the chance, one in ten thousand, that a plain draw is taken for trained."""

LOOKED_AT = 1024
"""Rows and columns of a weight at most that its spectrum is taken of."""

LEAST = 8
"""Rows and columns that a spectrum needs to tell anything."""

ROUNDS = 30
"""Steps of power iteration: the singular value comes out too small, if at all."""

OUTLYING = 6.0
"""Entries further from 0, in standard deviations, are cut: one such makes a singular value of its own, and truncated
normal draws by inversion have them."""

APART = 16.0
"""So many times another spread than its author's is told of: no two usual rules for a draw are as far apart."""

SET = 2.0
"""Biases whose root mean square is so many times the bound that PyTorch draws them within were set by their author."""

NEAR_ZERO = 2.0**-8
"""Tables whose root mean square is below this begin near 0, to grow in training."""

EVEN, COLUMNS = 1e-3, 64
"""Columns of an orthogonal weight have one length and products of 0, to within this part of their squared length; and
so many of them are looked at."""

NAMED = 3
"""So many names stand in a note."""


def by_design(model: nn.Module, graph: Graph) -> set[str]:
    """Trainable parameters that no init should draw unless it is asked to: what is 0 by design, biases that are away
    from 0, weights that are set and not drawn, the frequencies and phases of sines, and layers behind tables near 0."""
    own = plain_parameters(model)
    others = frequencies(graph) | behind_near_zeros(model, graph)
    others = {n for n in others if n in own and own[n].requires_grad and _has_values(own[n])}
    return zero_by_design(model, graph) | biased_by_design(model, graph) | set_by_design(model, graph) | others


def behind_near_zeros(model: nn.Module, graph: Graph) -> set[str]:
    """Parameters of layers that read nothing but what trainable tables near 0 multiply, as the features of a hash grid
    [Müller et al. 2022]. The tables grow in training; a layer drawn to make up for their size would then be too large
    by as much as they have grown."""
    own = plain_parameters(model)
    used = {p.name for edge in graph.edges for op in edge.ops if op.kind == "scale" for p in op.params} & own.keys()
    trained = {n for n in used if own[n].requires_grad and own[n].ndim > 1 and _has_values(own[n])}
    tables = {n for n in trained if 0 < _rms(own[n]) < NEAR_ZERO}
    dim: list[bool] = []  # whether all that arrives at a vertex is multiplied by one
    found: set[str] = set()
    for vertex, entering in zip(graph.vertices, graph.in_edges, strict=True):
        arriving = []
        for edge in (graph.edges[e] for e in entering if graph.live[e]):
            here = dim[edge.src]
            for op in edge.ops:
                if here and op.layer is not None:
                    found.update(p.name for p in op.params)
                multiplied = op.kind == "scale" and any(p.name in tables for p in op.params)
                here = multiplied or (here and op.kind in ("pass", "scale", "pool"))
            arriving.append(here)
        dim.append(any(arriving) if vertex.kind == "product" else bool(arriving) and all(arriving))
    return found


def zero_by_design(model: nn.Module, graph: Graph) -> set[str]:
    """Trainable weights of layers that are 0 throughout in a model whose other weights are not: an adapter's second
    matrix, the end of a residual branch, a readout that begins at nothing."""
    weights = {name: weight for name, weight in _weights(model, graph).items() if weight.ndim > 1}
    zero = {name for name, weight in weights.items() if not bool(weight.any())}
    return {name for name in zero if weights[name].requires_grad} if len(zero) < len(weights) else set()


def set_by_design(model: nn.Module, graph: Graph) -> set[str]:
    """Trainable weights of layers that are constant or have many zeros, as an identity has, in a model where others
    are drawn. Empty for a model that looks trained."""
    weights = {n: w for n, w in _weights(model, graph).items() if w.numel() > max(w.shape, default=1)}
    found = {n for n, w in weights.items() if w.requires_grad and w.any() and (_constant(w) or _partly_zero(w))}
    return found if found and len(found) < len(weights) and not _mostly_trained(model, graph) else set()


def biased_by_design(model: nn.Module, graph: Graph) -> set[str]:
    """Trainable biases of layers that no plain draw around 0 gives: a classifier's log odds of rare classes, a gate
    that begins open, the time scales of a recurrence. Empty for a model that looks trained, whose biases are no design.

    PyTorch draws biases within one over the root of the fan-in, and within one over the root of the hidden size in
    recurrent layers: those whose root mean square is twice that are set. Of independent entries that are symmetric
    around 0, the sum is beyond ``t`` times their norm with a chance of at most ``2 exp(-t²/2)``, whatever their sizes
    [Efron 1969, after Hoeffding 1963]. Several that are equal are no draw, nor are several zeros beside what is none
    (an affine map that begins as the identity, an LSTM's forget gates).
    """
    parameters = plain_parameters(model)
    usual = _usual(model, graph)
    known = {name: parameters[name] for name in usual if name in parameters}
    biases = {n: _parts(b).double() for n, b in known.items() if b.requires_grad and _has_values(b) and bool(b.any())}
    places: dict[str, list[str]] = {}  # those of one place in their blocks are looked at together
    for name in biases:
        places.setdefault(pattern(name), []).append(name)
    least = math.sqrt(2 * (CHANCE + math.log(max(2 * len(places), 1))))
    found = {name for name, bias in biases.items() if _constant(bias) or _partly_zero(bias)}
    for names in places.values():
        entries = torch.cat([biases[name].flatten().cpu() for name in names])
        large = 0 < SET * max(usual[name] for name in names) < float(entries.square().mean().sqrt())
        if large or abs(float(entries.sum())) > least * float(entries.norm()) or _constant(entries):
            found.update(names)
    return found if found and not _mostly_trained(model, graph) else set()


def _usual(model: nn.Module, graph: Graph) -> dict[str, float]:
    """Each bias that is added to a layer's output or to a signal → how far from 0 PyTorch would draw it: one over the
    root of the fan-in of the last layer there, or of the hidden size in recurrent layers. 0 where no layer comes
    before."""
    found: dict[str, float] = {}
    behind = [0.0] * len(graph.vertices)
    for v, entering in enumerate(graph.in_edges):
        for edge in (graph.edges[e] for e in entering if graph.live[e]):
            bound = behind[edge.src]
            for op in edge.ops:
                bound = bound if op.layer is None else 1 / math.sqrt(op.layer.fan_in)
                for use in op.params if op.kind in ("weight", "shift") else ():
                    if use.role == "bias":
                        found[use.name] = max(bound, found.get(use.name, 0.0))
            behind[v] = max(behind[v], bound)
    modules = dict(model.named_modules())
    for name in found:
        owner = modules.get(name.rpartition(".")[0])
        if isinstance(owner, (nn.RNNBase, nn.RNNCellBase)):
            found[name] = max(found[name], 1 / math.sqrt(owner.hidden_size))
    return found


def _mostly_trained(model: nn.Module, graph: Graph) -> bool:
    """Whether most of what can tell looks trained: one weight that its author has set makes no trained model."""
    weights = [w for w in _weights(model, graph).values() if min(_matrix(w).shape) >= LEAST]
    return 2 * len(looking_trained(model, graph)) > len(weights) + len(_gains(graph))


def looking_trained(model: nn.Module, graph: Graph) -> list[str]:
    """Names of the weights of layers and gains of norms that no plain draw gives; empty for a fresh model.

    A weight of independent entries of one variance ``s²``, whatever their distribution, has no singular value far above
    ``s (√rows + √columns)``: for Gaussian entries the chance of ``t s`` more is below ``exp(-t²/2)`` [Davidson & Szarek
    2001, Theorem II.13]. Training adds directions that stand out. A fresh norm has equal gains; a trained one has not.
    """
    parameters = plain_parameters(model)
    found = [name for name in _gains(graph) if name in parameters and _uneven(parameters[name])]
    beyond = {name: _beyond(weight) for name, weight in _weights(model, graph).items()}
    squares = [t * t for t in beyond.values()]
    # Σ t² of k weights is below a χ² of 2k degrees of freedom, whose tail is that of [Laurent & Massart 2000, Lemma 1].
    free = 2 * len(squares)
    together = sum(squares) > free + 2 * math.sqrt(free * CHANCE) + 2 * CHANCE
    least = 1.0 if together or found else math.sqrt(2 * (CHANCE + math.log(max(len(squares), 1))))
    return [*found, *(name for name, t in beyond.items() if t > least)]


def notes_on(
    model: nn.Module, graph: Graph, fills: Mapping[str, Fill], meant: Collection[str], init: str
) -> Iterator[str]:
    """What an init overwrites that its author may want to keep, and what it leaves because its author meant it."""
    parameters = plain_parameters(model)
    sines = set(meant) & frequencies(graph)
    if sines:
        yield f"only sines read them, so that they are frequencies, left as they are: {_some(sines)}; draw with reset="
    dimmed = set(meant) & behind_near_zeros(model, graph)
    if dimmed:
        yield (
            "only what tables near 0 multiply enters them, as in a hash grid, so that they are left as they are: "
            f"{_some(dimmed)}; draw with reset="
        )
    others = set(meant) - sines - dimmed
    zeros = [name for name in others if _is_zero(parameters[name])]
    if zeros:
        yield f"all 0 and taken to be so by design, left at 0: {_some(zeros)}; draw them with reset="
    others -= set(zeros)
    if weights := others & _weights(model, graph).keys():
        yield f"constant or partly 0 by design, left as they are: {_some(weights)}; draw them with reset="
    if biases := others - weights:
        yield f"biases that are away from 0 by design, left as they are: {_some(biases)}; set them to 0 with reset="
    drawn = {p.name for p in graph.parameters if p.trainable and p.name in fills}
    trained = [name for name in looking_trained(model, graph) if name in drawn]
    if trained:
        yield (
            f"init {init!r} draws anew what looks trained, or drawn in a way of its author's: {_some(trained)}; to go "
            "on from the weights as they are, give init='keep', or reset= with what is new, as reset='head'"
        )
    if even := [name for name, w in _weights(model, graph).items() if name in drawn and _is_orthogonal(w)]:
        yield (
            f"init {init!r} draws anew what is orthogonal, as its author drew it: {_some(even)}; where that was meant, "
            "as for memory in recurrent layers, search with init=['moments', 'keep'], or leave weights with keep="
        )
    if apart := _apart(model, graph, fills, drawn - {*trained}):
        yield (
            f"init {init!r} draws {_some(apart)} with {APART:g} times another spread than its author's values have, or "
            f"more ({max(apart.values()):.3g} times at most): if these were meant, leave them with keep="
        )
    if copies := _copies(parameters, drawn, fills):
        yield (
            f"init {init!r} draws anew what {_some(copies)} are copies of, and not the copies: where training compares "
            "the two, as with a frozen reference, give init='keep' to search and plan; what is a moving average can "
            "be set equal again after init_"
        )
    gains = [n for n in _gains(graph) if n in drawn and _is_zero(parameters[n])]
    if gains:
        yield f"init {init!r} sets norm gains to 1 that are 0, maybe by design: {_some(gains)}; leave them with keep="


def _apart(model: nn.Module, graph: Graph, fills: Mapping[str, Fill], drawn: Collection[str]) -> dict[str, float]:
    """Weights that are drawn with quite another spread than their values have → how many times larger or smaller."""
    weights = {n: w for n, w in _weights(model, graph).items() if n in drawn and fills[n].std and w.numel() > 1}
    own = {name: _rms(weight) for name, weight in weights.items()}
    known = {name: std for name, std in own.items() if 0 < std < math.inf}
    times = {name: max(fills[name].std / std, std / fills[name].std) for name, std in known.items()}
    return {name: factor for name, factor in times.items() if factor > APART}


def _copies(parameters: Mapping[str, Tensor], drawn: Collection[str], fills: Mapping[str, Fill]) -> list[str]:
    """Parameters that stay and have the values of one that is drawn at random; of those that are trained, not the ones
    at the same place of another block, as layers that are cloned begin."""
    values = {n: p for n, p in parameters.items() if _has_values(p) and p.numel() > 1}
    originals: dict[tuple[torch.Size, bool | float | complex], list[str]] = {}
    for name in drawn:
        if name in values and fills[name].std:
            value = values[name].detach()
            originals.setdefault((value.shape, value.flatten()[0].item()), []).append(name)

    def copied(name: str, value: Tensor) -> bool:
        alike = originals.get((value.shape, value.detach().flatten()[0].item()), ())
        others = (o for o in alike if not value.requires_grad or pattern(o) != pattern(name))
        return any(torch.equal(value, values[o]) for o in others)

    return [name for name, value in values.items() if name not in fills and copied(name, value)]


def fresh(network: Network) -> bool:
    """Whether the network's weights are known, and as an init draws them."""
    model = network.model
    if model is None or not all(map(_has_values, plain_parameters(model).values())):
        return False
    return not looking_trained(model, network.graph)


def own_rms(network: Network) -> Mapping[str, float]:
    """Root mean square of each parameter as the model's author drew it; empty where nobody knows, or the weights are no
    fresh draw."""
    if network.own_rms or network.model is None or not fresh(network):
        return network.own_rms
    own = plain_parameters(network.model)
    return {n: _rms(p) for n, p in own.items()}


def taken_up(
    target: Network, parts: Mapping[str, Scaling], meant: Collection[str]
) -> tuple[Network, Mapping[str, Scaling]]:
    """The target and its parts, with a draw for what a width or depth rule scales and the init leaves as it is: of the
    same mean and spread as its values, before the rule's factor. What was asked to be kept, is frozen, looks trained or
    has no values stays, and a note says so.

    Args:
        meant: what is left out for being as its author wants it; what is 0 stays so under any factor.
    """
    own = {} if target.model is None else plain_parameters(target.model)
    zeros = {name for name in meant if _is_zero(own[name])}
    scaled = [n for n, part in parts.items() if part.factors.init != 1 and n not in target.fills and n not in zeros]
    if not scaled:
        return target, parts
    values = own if fresh(target) else {}
    fills, changed = dict(target.fills), dict(parts)
    for name in scaled:
        value = values.get(name)
        if value is None or not value.requires_grad or name in target.kept:
            factor = parts[name].factors
            note = f"left as it is: the plan does not draw it, so the rule's factor {factor.init:.4g} on it is left out"
            changed[name] = replace(parts[name], factors=replace(factor, init=1.0), notes=(*parts[name].notes, note))
        else:
            wide = value.detach().to(torch.promote_types(value.dtype, torch.float64))
            fills[name] = Fill(float(wide.mean().real), float(wide.std(correction=0)))
    return replace(target, fills=fills), changed


def _some(names: Collection[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _weights(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    parameters = plain_parameters(model)
    names = dict.fromkeys(p.name for use in graph.layers for p in use.op.params if p.role == "weight")
    return {n: parameters[n] for n in names if n in parameters and _has_values(parameters[n])}


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().abs().double().square().mean().sqrt())


def _is_zero(tensor: Tensor) -> bool:
    return _has_values(tensor) and not bool(tensor.any())


def _has_values(tensor: Tensor) -> bool:
    return not (tensor.is_meta or is_sharded(tensor) or is_lazy(tensor))


def _gains(graph: Graph) -> list[str]:
    ops = (op for edge, live in zip(graph.edges, graph.live, strict=True) if live for op in edge.ops)
    return list(dict.fromkeys(p.name for op in ops if op.kind == "norm" for p in op.params if p.role == "gain"))


def _constant(bias: Tensor) -> bool:
    return bias.numel() > 1 and bool((bias == bias.flatten()[0]).all())


def _partly_zero(bias: Tensor) -> bool:
    return bool(bias.any()) and int((bias == 0).sum()) >= max(2, bias.numel() // 4)


def _parts(tensor: Tensor) -> Tensor:
    """Its real numbers: of a complex one both parts of each, which a plain draw has independent."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()


def _uneven(gain: Tensor) -> bool:
    return _has_values(gain) and gain.numel() > 1 and bool((gain != gain.flatten()[0]).any())


def _matrix(weight: Tensor) -> Tensor:
    return _parts(weight).reshape(len(weight) if weight.ndim > 1 else 1, -1)


def _is_orthogonal(weight: Tensor) -> bool:
    """Whether it is one but for a factor, or each of the square blocks that stand on one another in it, as a recurrent
    layer's gates do."""
    matrix = _matrix(weight)
    rows, columns = matrix.shape
    if min(rows, columns) < LEAST or weight.is_complex():
        return False
    blocks = matrix.reshape(-1, columns, columns) if rows % columns == 0 else matrix[None]
    return _even(matrix) or (len(blocks) > 1 and all(map(_even, blocks)))


def _even(matrix: Tensor) -> bool:
    """Whether its columns are orthogonal and of one length; its rows, if these are fewer."""
    thin = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T)[:, :COLUMNS].double()
    products = thin.T @ thin
    mean = products.diagonal().mean()
    return bool(mean > 0) and bool((products - mean * torch.eye(len(products)).to(products)).abs().max() < EVEN * mean)


def _beyond(weight: Tensor) -> float:
    """By how many times ``s`` the largest singular value is above what independent entries give; 0 if it is not."""
    matrix = _matrix(weight)
    rows, columns = matrix.shape
    if min(rows, columns) < LEAST:
        return 0.0
    matrix = matrix[:: -(-rows // LOOKED_AT), :: -(-columns // LOOKED_AT)].float()
    rows, columns = matrix.shape
    rms = float(matrix.square().mean().sqrt())
    if not 0 < rms < math.inf:
        return 0.0
    matrix = matrix.clamp(-OUTLYING * rms, OUTLYING * rms)
    vector = torch.ones_like(matrix[0]) + torch.arange(columns).to(matrix) / columns
    for _ in range(ROUNDS):
        vector = matrix.T @ (matrix @ (vector / vector.norm()))
    largest = math.sqrt(float(vector.norm()))
    return max(0.0, largest / rms - math.sqrt(rows) - math.sqrt(columns))
