"""Width under Muon: the rate of each hidden matrix, with its implementation's own shape factor taken into account."""

from __future__ import annotations

from math import prod

from dagscale.graph.matrices import hidden_matrices
from dagscale.graph.model import Graph
from dagscale.scaling.width import nearest
from dagscale.training.muon import shape_correction


def matrix_rates(base: Graph, target: Graph, implementation: str = "match_rms_adamw") -> dict[str, float]:
    """The factor on the rate of every hidden matrix of ``target``, for a rate that was found on ``base``.

    A spectral step moves a layer's output by as much at every width if it is ``√(d_out/d_in)`` large; the rest that
    the implementation's shape factor leaves to be done, against the base's, is the factor. What is no hidden matrix
    takes AdamW's width rule. Matrices are matched by name, as layers are in `dagscale.scaling.width`; one that the base
    lacks takes the factor of the matrices that have grown as it has: by its number of entries, else 1.

    Raises:
        UnknownNameError: for an implementation that is not registered.
    """
    before = _matrices(base)
    rates: dict[str, float] = {}
    for name, shape in _matrices(target).items():
        match = nearest(name, before)
        if match is not None and len(before[match]) == len(shape):
            rates[name] = shape_correction(shape, implementation, before[match])
    known = {prod(_matrices(target)[name]): rate for name, rate in rates.items()}
    return {name: rates.get(name, known.get(prod(shape), 1.0)) for name, shape in _matrices(target).items()}


def _matrices(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: own.shape for name, own in hidden_matrices(graph).items()}


__all__ = ["matrix_rates"]
