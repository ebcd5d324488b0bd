"""How much of an accuracy is the architecture's, the training's, their interaction's and the seed's, and what a study
of this size could have seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dagscale.bench.nas.agreement import SMALLEST, Estimate, estimate
from dagscale.bench.nas.tables import Floats

AFFECTS_RESULTS = False
Four = tuple[float, float, float, float]
"""One number each of the architectures, the trainings, their interaction and the seeds."""

POWER, LEVEL = 0.8, 0.05
"""What a study could have seen: an effect that it finds at this level with this probability."""


@dataclass(frozen=True)
class Components:
    """Variance components, as standard deviations in points of accuracy.

    A component's estimate is a difference of mean squares and can fall below 0 where there is none: then it stands here
    as a negative number, the root of its size.

    Attributes:
        architecture, training, interaction, seed: of one run's accuracy; ``seed`` is what is left within architecture
            and training, once what a seed does to all architectures is taken out.
        p: of the F test that the interaction is 0.
        seen: the smallest interaction that this size finds with a probability of ``POWER`` at level ``LEVEL``.
        gain: the smallest mean gain between two ways of training over all architectures that it finds so.
    """

    architecture: Estimate
    training: Estimate
    interaction: Estimate
    seed: Estimate
    p: float
    seen: float
    gain: float


def components(values: Floats, bootstrap: int = 200, rng: np.random.Generator | None = None) -> Components | None:
    """Components by the analysis of variance with two crossed factors and repeats [Searle et al. 1992, chapter 4].

    ``y = mean + architecture + training + interaction + seed``, each random and independent; a seed's own effect on all
    architectures, such as an unlucky order of batches, is taken out within each training first.

    Args:
        values: accuracies, (architectures, trainings, seeds), without gaps.
        bootstrap: resamples of the architectures, for the intervals.

    Returns:
        None where there are too few of something.
    """
    archs, trainings, seeds = values.shape
    if archs < SMALLEST or trainings < 2 or seeds < 2:
        return None
    rng = np.random.default_rng(0) if rng is None else rng
    squares = _squares(values)
    point = _roots(squares, values.shape)
    drawn = [_roots(_squares(values[rng.integers(0, archs, archs)]), values.shape) for _ in range(bootstrap)]
    a, t, i, e = (estimate(point[k], [one[k] for one in drawn], archs) for k in range(4))
    return Components(a, t, i, e, *_power(squares[2], squares[3], values.shape))


def _squares(values: Floats) -> Four:
    """Mean squares of architectures, trainings, their interaction, and what is left."""
    archs, trainings, seeds = values.shape
    values = values - values.mean(0, keepdims=True) + values.mean((0, 2), keepdims=True)
    cells, mean = values.mean(2), float(values.mean())
    rows, columns = cells.mean(1), cells.mean(0)
    between = float(((cells - rows[:, None] - columns[None] + mean) ** 2).sum()) * seeds
    left = float(((values - cells[:, :, None]) ** 2).sum())
    return (
        float(((rows - mean) ** 2).sum()) * trainings * seeds / (archs - 1),
        float(((columns - mean) ** 2).sum()) * archs * seeds / (trainings - 1),
        between / ((archs - 1) * (trainings - 1)),
        left / ((archs - 1) * trainings * (seeds - 1)),
    )


def _roots(squares: Four, shape: tuple[int, ...]) -> Four:
    """The components, from mean squares of values of this shape."""
    architecture, training, interaction, error = squares
    archs, trainings, seeds = shape
    variances = (
        (architecture - interaction) / (trainings * seeds),
        (training - interaction) / (archs * seeds),
        (interaction - error) / seeds,
        error,
    )
    return tuple(float(np.sign(v) * np.sqrt(abs(v))) for v in variances)  # type: ignore[return-value]


def _power(interaction: float, error: float, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """The F test's p; the smallest interaction that is seen; the smallest gain.

    An interaction of variance v multiplies the F statistic by 1 + seeds · v / error.
    """
    from scipy.stats import f, norm

    archs, trainings, seeds = shape
    between, within = (archs - 1) * (trainings - 1), (archs - 1) * trainings * (seeds - 1)
    p = float(f.sf(interaction / error, between, within)) if error else float("nan")
    ratio = float(f.isf(LEVEL, between, within) / f.isf(POWER, between, within))
    seen = float(np.sqrt((ratio - 1) * error / seeds))
    # Two means over all architectures differ by chance as the interaction's mean square says.
    chance = float(np.sqrt(2 * interaction / (seeds * archs)))
    return p, seen, float(norm.isf(LEVEL / 2) + norm.isf(1 - POWER)) * chance
