"""The second moment of one SGD step's update, exact at leading order in 1/width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dagscale.errors import GraphError
from dagscale.graph import Graph
from dagscale.laws.base import FADING, GRADIENT, inverse_root, law
from dagscale.laws.estimate import Estimate
from dagscale.laws.mean_field import MeanField, mean_field
from dagscale.network import Network

if TYPE_CHECKING:
    from dagscale.laws.mean_field import Matrix

LARGEST = 4000
"""Vertices beyond which the cubic cost is refused."""


def update_moment(graph: Graph, multipliers: Mapping[str, float] | None = None, *, finite_width: bool = False) -> float:
    """``E‖Δz‖²`` after one SGD step with unit rate and unit error, at the vertices that outputs read.

    Write ``y_v`` for what the layers into ``v`` add up to, so that ``z_v = Σ_b κ_vb y_b`` with ``κ`` the number of
    identity paths. A step changes the output vertex ``u`` by ``Σ_b s_b J^b G^b``, with ``J^b = ∂z_u/∂y_b``,
    ``G^b = ∂f/∂y_b`` and ``s_b`` the update strength of the layers into ``b`` (rate × squared norm of the input: its
    fan-in × its second moment). Both expand over the layers that leave the vertices ``v`` with ``κ_vb ≠ 0``. In the
    product of the two sums, terms in which one layer stands on both sides concentrate (``W D Wᵀ → ½ n Var W``); all
    others are independent, of mean 0::

        X = J G:     X_b = Σ_c A_bc X_c + F_b,      A_bc = Σ_(v→c) κ_vb² ½ ω_vc,    ω_vc = n_vc Var W_vc
        E⟨F_b, F_b'⟩ = Σ_(v, v') κ_vb κ_v'b κ_vb' κ_v'b' Ω_vv'
        Ω_vv' = Θ_vv' a_v g_v' + [v'=u] Θ_vu a_v + [v=u] ½ g_v' + [v=v'=u] ½

    with ``n_vc`` the fan-in of the layer ``v→c``, ``Θ_vv' = E σ'(z_v) σ'(z_v')`` (arc-cosine kernel of degree 0 [Cho &
    Saul 2009]), ``a_v = Σ_c ω_vc j_c n_u/n_vc``, ``g_v = Σ_c ω_vc γ_c``, ``j = E‖J‖²/n_u`` and ``γ = E‖G‖²`` by their
    own recursions. Then with ``t = (1 - Aᵀ)⁻¹ s``::

        E‖Δz_u‖² = tᵀ E[F Fᵀ] t = Σ_(v,v') Ω_vv' (Σ_b t_b κ_vb κ_v'b)²

    The readout has squared norm 1, and inputs have second moment 1. Cost: cubic in the number of vertices. Several
    outputs' vertices are averaged.

    ``finite_width`` gives the mean over draws of a network of linear layers as narrow as it is, to first order in 1/n.
    With ``k`` of ``n`` units active and ``c = Σ σ(z)²``, drawn weights have variance ``1/(d c)``: a layer on both sides
    brings ``k/c``, and each factor that a term takes of it brings the root of

    * ``E (k/c)² = (1 + 12/n) (k/c)²`` in ``t``; ``E k(k+1)/c² = (1 + 14/n) (k/c)²`` in ``j`` and ``γ``, where the sides
      share the weights too; ``E c² = (1 + 5/n) (E c)²`` in ``s``;
    * ``E |v ∩ v'|/(c_v c_v')`` where the sides part: ``Θ_vv'`` grows by ``(5 - B)(1/n_v + 1/n_v') + C/√(n_v n_v')``,
      with ``C`` the covariance of ``σ(z_v)²`` and ``σ(z_v')²`` and ``B`` that of either with both being active,
      relative to their means (``C`` from the arc-cosine kernel of degree 2 [Cho & Saul 2009]); ``W Wᵀ`` makes
      ``n_u + 1`` of ``n_u``.

    The mean is that of heavy tails. What one draw typically does, the geometric mean, stays near the leading order
    (``benchmarks/laws.py``), so this is what laws use.

    Raises:
        GraphError: if there are more than ``LARGEST`` vertices.
    """
    moments = _update_moments(mean_field(graph, multipliers), finite_width)
    return sum(moments.values()) / len(moments)


def _update_moments(dag: MeanField, finite_width: bool = False) -> dict[int, float]:
    """The second moment of the update at each vertex that an output reads."""
    import numpy as np

    n = dag.size
    if n > LARGEST:
        raise GraphError(f"law 'covariance' is cubic in the {n} vertices of this graph: use law 'walk' or 'curvature'")
    kappa = dag.kappa()
    squares = kappa**2
    moments = (kappa * dag.own_moment()) @ kappa.T
    scale = np.sqrt(np.maximum(np.diag(moments), 1e-300))
    angle = np.arccos(np.clip(moments / np.outer(scale, scale), -1, 1))
    theta = (np.pi - angle) / (2 * np.pi)
    src, dst = (np.array([getattr(edge, end) for edge in dag.weights], int) for end in ("src", "dst"))
    fan_in = np.array([edge.fan_in for edge in dag.weights])
    # Var W is set so that the edge brings 1/d: n Var W = 1 / (d E σ(z)²), E σ(z)² = ½ E z².
    variance = 2 / (np.array(dag.degree)[dst] * moments[src, src])
    strengths = np.array([edge.strength for edge in dag.weights]) * moments[src, src] / 2

    def summed(values: Matrix) -> Matrix:
        """A matrix with the sum of a quantity over all edges from one vertex to another."""
        total = np.zeros((n, n))
        np.add.at(total, (src, dst), values)
        return total

    omega, spread = summed(variance), summed(variance / fan_in)
    carried = climbed = squares.T @ omega / 2  # A, as it stands in t, and in j and γ
    parted, units = theta, np.array(dag.width, float)
    if finite_width:
        carried, climbed = (squares.T @ summed(variance * np.exp(excess / fan_in)) / 2 for excess in (6, 7))
        parted = theta * np.exp(_parting(angle, units))
        strengths, units = strengths * np.exp(2.5 / fan_in), units + 1
    strength = np.array(dag.stems)
    np.add.at(strength, dst, strengths)
    t = np.linalg.solve(np.eye(n) - carried.T, strength)
    overlap = (kappa * t) @ kappa.T  # Σ_b t_b κ_vb κ_v'b
    found = {}
    for u in sorted({end.vertex for end in dag.ends}):
        j = np.linalg.solve(np.eye(n) - climbed, squares[u])
        a, g = units[u] * spread @ j, omega @ j / 2  # γ = j/2
        fluctuation = parted * np.outer(a, g)
        fluctuation[:, u] += theta[:, u] * a
        fluctuation[u] += g / 2
        fluctuation[u, u] += 0.5
        found[u] = float((fluctuation * overlap**2).sum())
    return found


def _parting(angle: Matrix, width: Matrix) -> Matrix:
    """Relative excess of ``E |v ∩ v'|/(c_v c_v')`` over its leading order, first order in 1/width. Shape (size, size).

    Args:
        angle: between two vertices' pre-activations. Shape (size, size).
    """
    import numpy as np

    rest, cosine = np.pi - angle, np.cos(angle)
    bend = np.sin(angle) * cosine
    squares = 2 / np.pi * (3 * bend + rest * (1 + 2 * cosine**2)) - 1  # C
    active = 1 + 2 * bend / np.maximum(rest, 1e-9)  # B
    excess: Matrix = (5 - active) * np.add.outer(1 / width, 1 / width) + squares / np.sqrt(np.outer(width, width))
    return excess


def hidden_change(network: Network) -> float:
    """``E‖Δz‖²`` at the vertices that outputs read, or of one unit where rates differ by layer: :func:`update_moment`
    with readouts as the init draws them; where it leaves them as they are, with variance ``1/n²`` (mean field, Eq. 12
    of the paper)."""
    dag = mean_field(network.graph, {name: own.lr for name, own in network.relative.items()})
    moments = _update_moments(dag)
    found = []
    for end in dag.ends:
        width = dag.width[end.vertex]
        fan_in = end.readout.layer.fan_in if end.readout is not None and end.readout.layer is not None else width
        fill = network.fills.get(end.readout.weight) if end.readout is not None else None
        variance = 1 / fan_in**2 if fill is None else fill.std**2 + fill.mean**2
        found.append(moments[end.vertex] * fan_in * variance / (width if network.by_layer else 1))
    return sum(found) / len(found)


@law("covariance", steps=GRADIENT)
def covariance(network: Network) -> dict[str, Estimate]:
    """From the graph alone, how far one step of SGD moves the network. ``η ∝ (E‖Δz‖²)^(-p/2)``: the paper's principle,
    without its path-by-path approximation, for the first step; for a whole run, what is left of it, ``p = 3/4``
    (``FADING``).

    With rates by layer (μP) it is each unit that moves by Θ(1) at any width; under one rate for all layers, with
    readouts of norm Θ(1), all units of a vertex together.
    """
    change = hidden_change(network)
    if not change > 0:
        raise GraphError("it trains no hidden layer, so law 'covariance' has no answer: use law 'none'")
    return {"covariance": inverse_root(change, "E‖Δz‖²") * FADING}
