"""The verify study: its arithmetic on made-up curves, and the command end to end."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from dagscale.errors import DagscaleError, UnknownNameError
from dagscale.studies.verify import METHODS, SUITES, Truth, _row, _truth, noise_floor, verify

GRID = [2.0**k for k in range(-6, 1)]


def valley(best: float, seeds: int = 2) -> list[list[float]]:
    """Losses with their minimum at ``best``, the same for every seed."""
    return [[1 + 0.1 * abs(math.log2(lr / best))] * seeds for lr in GRID]


def test_truth_reads_band_and_argmin_off_the_curve() -> None:
    truth = _truth(GRID, valley(2.0**-3))
    assert truth.argmin == 2.0**-3
    assert truth.edge == pytest.approx(2.0**-2.5)
    assert truth.middle == pytest.approx(2.0**-3)
    assert truth.regret(2.0**-3) == 0
    assert truth.regret(2.0**-1.5) == pytest.approx(0.15)
    assert truth.regret(2.0**9) == truth.regret(GRID[-1])


def test_a_perfect_prediction_scores_perfectly_and_a_shifted_one_shows_it() -> None:
    truth = [_truth(GRID, valley(2.0**k)) for k in (-5, -4, -3, -2, -1)]
    perfect = _row("s", "m", [t.middle for t in truth], truth, 7)
    assert perfect.pearson_r == pytest.approx(1)
    assert perfect.slope == pytest.approx(1)
    assert (perfect.rms_octaves, perfect.within_half_octave) == (pytest.approx(0), 1)
    assert perfect.regret_max == pytest.approx(0)
    shifted = _row("s", "m", [4 * t.middle for t in truth[:-1]], truth[:-1], 7)
    assert shifted.pearson_r == pytest.approx(1)
    assert shifted.rms_octaves == pytest.approx(2)
    assert shifted.within_half_octave == 0
    assert shifted.regret_mean > 0.1


def test_one_rate_for_all_has_no_correlation() -> None:
    truth = [_truth(GRID, valley(2.0**k)) for k in (-5, -3, -1)]
    row = _row("s", "m", [0.1] * 3, truth, 0)
    assert row.pearson_r is None
    assert row.slope is None


def test_diverged_predictions_have_no_finite_regret() -> None:
    losses = valley(2.0**-3)
    losses[-1] = [math.inf, math.inf]
    truth = [_truth(GRID, losses)] * 3
    assert _row("s", "m", [1.0] * 3, truth, 0).regret_max is None


def test_noise_floor_compares_the_two_halves_of_the_seeds() -> None:
    def truth(a: float, b: float) -> Truth:
        return Truth((1.0,), (1.0,), 1.0, 1.0, 1.0, (a, b))

    r, rms = noise_floor([truth(1, 2), truth(2, 4), truth(8, 16)])
    assert r == pytest.approx(1)
    assert rms == pytest.approx(1)


@pytest.mark.parametrize("suite", list(SUITES))
def test_suites_have_distinct_members(suite: str) -> None:
    members = SUITES[suite].members(6, 0)
    assert len(set(members)) == 6


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown suite"):
        verify("mlp-dags", store=tmp_path / "s")
    with pytest.raises(DagscaleError, match="at least 3 architectures"):
        verify("mlp-dag", architectures=2, store=tmp_path / "s")


@pytest.mark.slow
def test_quick_runs_every_method_and_resumes_to_the_same_answer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dagscale", "verify", "mlp-depth", "--quick", "--json"]
    runs = [
        subprocess.run(
            [*command, "--store", str(tmp_path / "runs.sqlite")], capture_output=True, text=True, timeout=600
        )
        for _ in range(2)
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    rows = json.loads(runs[0].stdout)
    assert {row["method"] for row in rows} >= {method.name for method in METHODS}
    assert {"suite", "method", "pearson_r", "slope", "rms_octaves", "regret_mean", "regret_max", "steps"} <= set(
        rows[0]
    )
