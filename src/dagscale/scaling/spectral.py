"""Width under Muon: the rate of each hidden matrix, with its implementation's own shape factor taken into account."""

from __future__ import annotations

from math import isclose, prod

from dagscale.graph.matrices import hidden_matrices
from dagscale.graph.model import Graph
from dagscale.scaling.width import width_growth
from dagscale.training.muon import shape_correction


def matrix_rates(base: Graph, target: Graph, implementation: str = "match_rms_adamw") -> dict[str, float]:
    """The factor on the rate of every hidden matrix of ``target``, for a rate that was found on ``base``.

    A spectral step moves a layer's output by as much at every width if it is ``√(d_out/d_in)`` large; the rest that
    the implementation's shape factor leaves to be done, against the base's, is the factor. What is no hidden matrix
    takes AdamW's width rule. Matrices are matched by name; one that the base lacks, or has of a shape that does not go
    with its growth (:func:`dagscale.scaling.width.width_growth`), has the shape there that this says.

    Raises:
        UnknownNameError: for an implementation that is not registered.
        PlanError: if base and target share no layer.
    """
    before, growths = _matrices(base), width_growth(base, target)

    def origin(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        m_in, m_out = growths.get(name, (1.0, 1.0))
        if len(before.get(name, ())) == len(shape) and isclose(prod(before[name]) * m_in * m_out, prod(shape)):
            return before[name]
        return max(1, round(shape[0] / m_out)), max(1, round(shape[1] / m_in)), *shape[2:]

    return {
        name: shape_correction(shape, implementation, origin(name, shape)) for name, shape in _matrices(target).items()
    }


def _matrices(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: own.shape for name, own in hidden_matrices(graph).items()}


__all__ = ["matrix_rates"]
