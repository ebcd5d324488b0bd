"""The closed-form laws against hand-worked chains and against simulation of one SGD step."""

import math

import numpy as np
import pytest

import dagscale
from dagscale.laws.covariance import update_moment
from dagscale.laws.walk import weighted_cubes
from dagscale.spaces import Dag, targets
from dagscale.studies import simulation


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


def test_covariance_on_a_chain_by_hand() -> None:
    """One hidden layer: t = (1+... worked out) gives 17/8 in units of the stem's own update squared."""
    # s = (1, ½), A = 1: t = (1, 3/2); Ω: a_0 = 2, g_0 = 1, Θ_00 = ½ → Ω_00 = 1, Ω_01 = Θ_01·2 = ½, Ω_10 = ½, Ω_11 = ½.
    # κ = 1: overlap = diag(1, 3/2): 1·1 + ½·9/4 = 17/8.
    assert update_moment(graph_of("2")) == pytest.approx(17 / 8)


def test_covariance_grows_as_the_cube_of_depth_on_long_chains() -> None:
    a, b = update_moment(graph_of(chain(48))), update_moment(graph_of(chain(96)))
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
        predicted.append(math.log2(update_moment(graph_of(str(dag)))))
        found.append(math.log2(simulation.update_moment(str(dag), width=96, seeds=24)))
    assert np.corrcoef(predicted, found)[0, 1] > 0.98
    assert np.polyfit(found, predicted, 1)[0] == pytest.approx(1, abs=0.1)


def test_laws_disagree_where_paths_carry_little_signal() -> None:
    """Eight parallel paths of equal depth: the path sum counts eight, the walk one."""
    code = "2_22_222"
    ratio = dagscale.path_sums(graph_of(code)).depth_cubed / weighted_cubes(graph_of(code))
    assert ratio > 3
