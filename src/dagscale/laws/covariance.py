"""The second moment of one SGD step's update, exact at leading order in 1/width."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from dagscale.errors import GraphError
from dagscale.graph import Graph
from dagscale.laws.base import FADING, LAWS, SGD, Law
from dagscale.laws.dag import MeanField, mean_field
from dagscale.subject import Subject

LARGEST = 4000
"""Vertices beyond which the cubic cost is refused."""


def update_moment(graph: Graph, multipliers: Mapping[str, float] | None = None) -> float:
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

    Raises:
        GraphError: if there are more than ``LARGEST`` vertices.
    """
    moments = _update_moments(mean_field(graph, multipliers))
    return sum(moments.values()) / len(moments)


def _update_moments(dag: MeanField) -> dict[int, float]:
    """Of each vertex that an output reads."""
    import numpy as np

    n = dag.size
    if n > LARGEST:
        raise GraphError(f"law 'covariance' is cubic in the {n} vertices of this graph: use law 'walk' or 'curvature'")
    kappa = dag.kappa()
    moments = (kappa * dag.own_moment()) @ kappa.T
    scale = np.sqrt(np.maximum(np.diag(moments), 1e-300))
    theta = 0.5 - np.arccos(np.clip(moments / np.outer(scale, scale), -1, 1)) / (2 * np.pi)
    omega, spread = np.zeros((n, n)), np.zeros((n, n))
    strength = np.array(dag.stems)
    for edge in dag.weights:
        # Var W is set so that the edge brings 1/d: n Var W = 1 / (d E σ(z)²), E σ(z)² = ½ E z².
        variance = 2 / (dag.degree[edge.dst] * moments[edge.src, edge.src])
        omega[edge.src, edge.dst] += variance
        spread[edge.src, edge.dst] += variance / edge.fan_in
        strength[edge.dst] += edge.strength * moments[edge.src, edge.src] / 2
    carried = (kappa**2).T @ omega / 2  # A
    t = np.linalg.solve(np.eye(n) - carried.T, strength)
    overlap = (kappa * t) @ kappa.T  # Σ_b t_b κ_vb κ_v'b
    found = {}
    for u in sorted({end.vertex for end in dag.ends}):
        j = np.linalg.solve(np.eye(n) - carried, kappa[u] ** 2)
        gamma = np.linalg.solve(np.eye(n) - carried, kappa[u] ** 2 / 2)
        a, g = dag.width[u] * spread @ j, omega @ gamma
        fluctuation = theta * np.outer(a, g)
        fluctuation[:, u] += theta[:, u] * a
        fluctuation[u] += g / 2
        fluctuation[u, u] += 0.5
        found[u] = float((fluctuation * overlap**2).sum())
    return found


def hidden_change(subject: Subject, by_unit: bool = False) -> float:
    """``E‖Δz‖²`` at the vertices that outputs read, or of one unit: :func:`update_moment` with readouts as the init
    draws them; where it leaves them as they are, with variance ``1/n²`` (mean field, Eq. 12 of the paper)."""
    dag = mean_field(subject.graph, subject.multipliers)
    moments = _update_moments(dag)
    found = []
    for end in dag.ends:
        width = dag.width[end.vertex]
        fan_in = end.readout.layer.fan_in if end.readout is not None and end.readout.layer is not None else width
        fill = subject.fills.get(end.readout.params[0].name) if end.readout is not None else None
        variance = 1 / fan_in**2 if fill is None else fill.std**2 + fill.mean**2
        found.append(moments[end.vertex] * fan_in * variance / (width if by_unit else 1))
    return sum(found) / len(found)


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝ (E‖Δz‖²)^(-p/2)``: the paper's principle, without its path-by-path approximation, for the first step;
    for a whole run, what is left of it, ``p = 3/4`` (``FADING``).

    With rates by layer (μP) it is each unit that moves by Θ(1) at any width; under one rate for all layers, with
    readouts of norm Θ(1), all units of a vertex together.
    """
    by_unit = bool(target.multipliers)
    changes = {"base": hidden_change(base, by_unit), "target": hidden_change(target, by_unit)}
    for network, change in changes.items():
        if not change > 0:
            raise GraphError(f"the {network} trains no hidden layer, so law 'covariance' has no answer: use law 'none'")
    return {"covariance": sqrt(changes["base"] / changes["target"]) ** FADING}


LAWS.add("covariance")(Law(factors, SGD))
