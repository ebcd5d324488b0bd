"""The closed-form laws against hand-worked chains and against simulation of one SGD step."""

import itertools
import math
from statistics import fmean, geometric_mean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench import simulation
from dagscale.bench.data import load as load_data
from dagscale.laws.covariance import update_moment
from dagscale.laws.walk import weighted_cubes
from dagscale.models import Dag, targets


def graph_of(code: str, **options: object) -> dagscale.Graph:
    text = "&".join(f"{k}={v}" for k, v in {"order": "pre", "width": 8, **options}.items())
    return dagscale.trace(*targets.load(f"mlp:{code}?{text}"))


def chain(n: int) -> str:
    return "_".join("0" * v + "2" for v in range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_walk_on_chains_is_the_path_sum(n: int) -> None:
    assert weighted_cubes(graph_of(chain(n))) == pytest.approx((n + 1) ** 3)


def test_walk_weighs_paths_by_the_share_of_signal_they_carry() -> None:
    """2_22: vertex 2 reads 0 and 1: depths 2 and 3 with weight ½ each."""
    assert weighted_cubes(graph_of("2_22")) == pytest.approx((2**3 + 3**3) / 2)


def small_dags() -> st.SearchStrategy[Dag]:
    """Those with a layer on some path; half of them without identity edges."""
    drawn = st.builds(
        lambda n, seed, ops: Dag.sample(n, seed, ops=ops),
        st.integers(2, 6), st.integers(0, 2**30), st.sampled_from([(0, 2), (0, 1, 2)]),
    )  # fmt: skip
    return drawn.filter(lambda dag: any(op == 2 for *_, op in dag.live_edges))


class Enumerated:
    """A DAG's mean-field picture by enumeration of paths: no recursion over vertices, no matrix.

    Edge −1 → 0 is the stem. What only an identity edge reads melts into the sum that it leads to.
    """

    def __init__(self, dag: Dag, inputs: int, width: int) -> None:
        edges = [(-1, 0, 2), *dag.live_edges]
        for v in range(dag.vertices):
            out = [edge for edge in edges if edge[0] == v]
            if len(out) == 1 and out[0][2] == 1:
                edges.remove(out[0])
                edges = [(src, out[0][1] if dst == v else dst, op) for src, dst, op in edges]
        self.edges, self.inputs, self.width = edges, inputs, width
        self.vertices = sorted({dst for _, dst, _ in edges})
        self.last = self.vertices[-1]
        self.degree = {v: sum(dst == v for _, dst, _ in edges) for v in self.vertices}

    def paths(self, start: int, end: int, ops: tuple[int, ...]) -> list[list[tuple[int, int, int]]]:
        """All paths, as lists of edges of these kinds."""
        if start == end:
            return [[]]
        edges = [edge for edge in self.edges if edge[0] == start and edge[2] in ops]
        return [[edge, *rest] for edge in edges for rest in self.paths(edge[1], end, ops)]

    def kappa(self, v: int, b: int) -> int:
        return len(self.paths(b, v, (1,)))

    def own(self, b: int) -> float:
        return sum(dst == b and op == 2 for _, dst, op in self.edges) / self.degree[b]

    def moment(self, v: int, w: int) -> float:
        """Both read the same own layers through identity paths: from each ``b`` what its layers bring."""
        return sum(self.kappa(v, b) * self.kappa(w, b) * self.own(b) for b in self.vertices)

    def walk(self) -> float:
        """``Σ_p w_p L_p³``: a path's weight is the product of its summands' shares, taken as uncorrelated."""
        moment = {v: sum(self.kappa(v, b) * self.own(b) for b in self.vertices) for v in self.vertices}
        total = 0.0
        for path in self.paths(-1, self.last, (1, 2)):
            weight, layers = 1.0, sum(op == 2 for *_, op in path)
            for u, v, op in path:
                weight *= (1 / self.degree[v] if op == 2 else moment[u]) / moment[v]
            total += weight * layers**3
        return total

    def ladders(self, b: int) -> list[tuple[int, float]]:
        """From ``b`` upwards, any number of layers, each entered through an identity path on both of its sides."""
        found = [(b, 1.0)]
        for v, c, op in self.edges:
            if op == 2 and v >= 0:
                carried = self.kappa(v, b) ** 2 * self.omega(v, c) / 2
                found += [(end, carried * more) for end, more in self.ladders(c)] if carried else []
        return found

    def omega(self, v: int, c: int) -> float:
        return 2 / (self.degree[c] * self.moment(v, v))

    def update(self) -> float:
        """``Σ_bb' t_b t_b' E⟨F_b, F_b'⟩``, the docstring's sums term by term."""
        u, layers = self.last, [(v, c) for v, c, op in self.edges if op == 2 and v >= 0]
        strength = {b: float(self.inputs * ((-1, b, 2) in self.edges)) for b in self.vertices}
        for v, c in layers:
            strength[c] += self.width * self.moment(v, v) / 2
        up = {b: self.ladders(b) for b in self.vertices}
        t = {b: sum(w * strength[a] for a in self.vertices for end, w in up[a] if end == b) for b in self.vertices}
        j = {b: sum(w * self.kappa(u, end) ** 2 for end, w in up[b]) for b in self.vertices}
        a = {v: sum(self.omega(w, c) * j[c] for w, c in layers if w == v) for v in self.vertices}
        g = {v: sum(self.omega(w, c) * j[c] / 2 for w, c in layers if w == v) for v in self.vertices}

        def fluctuation(v: int, w: int) -> float:
            cosine = self.moment(v, w) / math.sqrt(self.moment(v, v) * self.moment(w, w))
            theta = (math.pi - math.acos(max(-1.0, min(1.0, cosine)))) / (2 * math.pi)
            ends = (w == u) * theta * a[v] + (v == u) * g[w] / 2 + (v == w == u) / 2
            return theta * a[v] * g[w] + ends

        return sum(
            t[b] * t[d] * self.kappa(v, b) * self.kappa(w, b) * self.kappa(v, d) * self.kappa(w, d) * fluctuation(v, w)
            for b, d, v, w in itertools.product(self.vertices, repeat=4)
        )


@settings(deadline=None)
@given(small_dags())
def test_walk_equals_enumeration(dag: Dag) -> None:
    assert weighted_cubes(graph_of(str(dag))) == pytest.approx(Enumerated(dag, 64, 8).walk())


@settings(deadline=None)
@given(small_dags())
def test_covariance_equals_enumeration(dag: Dag) -> None:
    assert update_moment(graph_of(str(dag))) == pytest.approx(Enumerated(dag, 64, 8).update())


@pytest.mark.parametrize("width", [8, 64, 256])
def test_covariance_on_a_chain_by_hand(width: int) -> None:
    """One hidden layer of ``n`` units after a stem with 64 inputs."""
    # s = (64, n/2), A = 1: t = (64, 64 + n/2); Ω: a_0 = 2 n_u/n = 2, g_0 = 1, Θ_00 = ½ → Ω_00 = 1, and Ω_11 = ½.
    # κ = 1: overlap = diag(t).
    assert update_moment(graph_of("2", width=width)) == pytest.approx(64**2 + (64 + width / 2) ** 2 / 2)


def exact_on_a_chain(n: int, layers: int) -> float:
    """``E‖Δz‖²`` after a stem with 64 inputs and ``layers`` layers of ``n`` units, exact at any width.

    ``T_l = c I + W D T_(l-1) D Wᵀ`` takes the error at layer ``l`` to the update there, ``W`` Gaussian of variance
    ``1/c``, ``c`` chi-squared of ``k`` degrees of freedom, ``k`` of ``n`` units active. With ``B = D T D``, the means
    of ``tr B``, ``tr B/c``, ``(tr B)²/c²`` and ``tr B²/c²`` close: ``E W B Wᵀ W B Wᵀ = ((tr B)² + (n+1) tr B²)/c²``.
    """
    k = np.arange(5, n + 1)
    share = np.array([math.comb(n, int(i)) for i in k]) / 2.0**n
    over, over_square = 1 / (k - 2), 1 / ((k - 2) * (k - 4))  # E 1/c, E 1/c²
    trace, trace_c, square, of_square = (
        float(share @ v) for v in (64 * k, 64 * k * over, 64**2 * k**2 * over_square, 64**2 * k * over_square)
    )
    for _ in range(layers - 1):
        whole = n * (n + 5) / 4 + 2 * trace + square
        trace, trace_c, square, of_square = (
            float(share @ k) * (n / 2 + trace_c),
            float(share @ (k * over)) * (n / 2 + trace_c),
            float(share @ (k**2 * over_square)) * whole + 2 * float(share @ (k * over_square)) * of_square,
            float(share @ (k * over_square)) * whole + float(share @ (k * (k + 1) * over_square)) * of_square,
        )
    return (n * (n + 5) / 4 + 2 * trace + square + (n + 1) * of_square) / 2


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("width", [64, 128, 256])
def test_covariance_at_finite_width_on_chains(width: int, layers: int) -> None:
    """Leading order is up to 2 octaves below the mean there."""
    graph = graph_of(chain(layers), width=width)
    exact = exact_on_a_chain(width, layers)
    assert math.log2(update_moment(graph, finite_width=True) / exact) == pytest.approx(0, abs=0.11)
    assert update_moment(graph) < exact


@pytest.mark.slow
def test_the_typical_update_is_of_leading_order_and_the_mean_of_finite_width() -> None:
    graph = graph_of(chain(5), width=64)
    found = simulation.updates(*simulation.network(Dag.parse(chain(5)), 64), seeds=400)
    assert math.log2(exact_on_a_chain(64, 5) / fmean(found)) == pytest.approx(0, abs=0.5)
    assert math.log2(update_moment(graph) / geometric_mean(found)) == pytest.approx(0, abs=0.3)


class Stems(nn.Module):
    """``stems`` layers from the input into one sum, and layers of the given widths after it."""

    def __init__(self, widths: tuple[int, ...], stems: int = 1) -> None:
        super().__init__()
        self.stems = nn.ModuleList(nn.Linear(64, widths[0], bias=False) for _ in range(stems))
        pairs = itertools.pairwise(widths)
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in pairs)
        self.readout = nn.Sequential(nn.ReLU(), nn.Linear(widths[-1], 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = sum(stem(x) for stem in self.stems)
        for layer in self.layers:
            z = layer(z.relu())  # type: ignore[attr-defined]
        return self.readout(z)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_covariance_knows_widths_and_several_stems() -> None:
    """By up to a factor of 20. Corrections of order 1/width are up to 0.4 octaves here."""
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    shapes = [
        ((128,) * 3, 1),
        ((512, 128, 128), 1),
        ((128, 512, 128), 1),
        ((128, 128, 512), 1),
        ((128, 128), 2),
        ((128, 128), 4),
    ]
    errors = []
    for widths, stems in shapes:
        model = Stems(widths, stems)
        errors.append(
            math.log2(update_moment(dagscale.trace(model, x)) / fmean(simulation.updates(model, x, seeds=100)))
        )
    assert np.std(errors) < 0.2
    assert -0.5 < np.mean(errors) < 0.1


@pytest.mark.parametrize("width", [32, 256])
def test_the_covariance_laws_rate_over_widths(width: int) -> None:
    """Under one rate and `moments` about that of the base, the input layer leading; under μP its own factor is 1."""
    data = load_data("digits")

    def rate(chosen: str, scaled: str) -> float:
        base, target = (targets.load(f"mlp:2_02?width={w}", data=data) for w in (64, width))
        given = {"law": chosen, "init": "moments", "width": scaled, "data": (data.x, data.y), "loss": cross_entropy}
        return dagscale.plan(*target, base=base, base_lr=0.1, **given).lr

    assert abs(math.log2(rate("covariance", "none") / 0.1)) < 1.5
    assert rate("covariance", "mup") == pytest.approx(rate("none", "mup"), rel=0.3)


def test_covariance_grows_as_the_cube_of_depth_on_long_chains() -> None:
    a, b = (update_moment(graph_of(chain(n), width=64)) for n in (48, 96))
    assert math.log2(b / a) == pytest.approx(3, abs=0.1)


@pytest.mark.slow
def test_covariance_predicts_the_simulated_update() -> None:
    """16 random DAGs, half of them with identity edges. At width 96 and 24 seeds, finite-width corrections are
    O(depth/width) ≈ 5 % and sampling errors about 10 %: r and slope leave room for twice that."""
    predicted, found = [], []
    rng = np.random.default_rng(7)
    while len(predicted) < 16:
        ops = (0, 2) if len(predicted) % 2 else (0, 1, 2)
        dag = Dag.sample(5, int(rng.integers(1 << 30)), ops=ops)
        if not any(op == 2 for _, _, op in dag.live_edges):
            continue
        model, x = simulation.network(dag, 96)
        predicted.append(math.log2(update_moment(dagscale.trace(model, x))))
        found.append(math.log2(fmean(simulation.updates(model, x, seeds=24))))
    assert np.corrcoef(predicted, found)[0, 1] > 0.98
    assert np.polyfit(found, predicted, 1)[0] == pytest.approx(1, abs=0.1)


def test_laws_disagree_where_paths_carry_little_signal() -> None:
    """Eight parallel paths of equal depth: the path sum counts eight, the walk one."""
    code = "2_22_222"
    ratio = dagscale.path_sums(graph_of(code)).depth_cubed / weighted_cubes(graph_of(code))
    assert ratio > 3
