"""How far off laws are, by kind of network: what the evidence says, as a value.

``python benchmarks/intervals.py write`` makes what stands below from recorded results (``docs/evidence/intervals.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from dagscale.laws.combined import pictured
from dagscale.network import Network
from dagscale.training.optimizers import Optimizer

Kind = Literal["dense", "convolutions", "norms"]


class Accuracy(NamedTuple):
    """The distribution of a law's error, log2 of the rate that it gives over the one that a search finds.

    Families differ in how well a law does. The error on a network of a family that was never looked at is therefore
    Student's t rather than normal: its tails are those of families on which the law does worse than on most.

    Attributes:
        octaves: the scale of the t-distribution.
        freedom: its degrees of freedom; the fewer, the more families differ.
        families: how many the scale was estimated from, those of other kinds not counted.
    """

    octaves: float
    freedom: float
    families: int


# made by benchmarks/intervals.py
ACCURACY: Mapping[str, Mapping[Kind, Accuracy]] = {
    "combined": {
        "dense": Accuracy(0.32, 4.6, 13),
        "convolutions": Accuracy(0.47, 4.2, 8),
    },
    "covariance": {
        "dense": Accuracy(0.4, 4.6, 11),
        "convolutions": Accuracy(0.59, 4.2, 7),
        "norms": Accuracy(0.77, 2.4, 1),
    },
    "curvature": {
        "dense": Accuracy(0.43, 4.9, 11),
        "convolutions": Accuracy(1.01, 4.1, 5),
        "norms": Accuracy(0.66, 4.8, 10),
    },
    "function-change": {
        "dense": Accuracy(0.55, 6.2, 11),
        "convolutions": Accuracy(0.91, 5.6, 7),
        "norms": Accuracy(0.83, 6.4, 13),
    },
    "no base": {
        "dense": Accuracy(0.69, 4.1, 19),
        "convolutions": Accuracy(0.71, 3.5, 9),
        "norms": Accuracy(0.99, 4.3, 32),
    },
    "none": {
        "dense": Accuracy(0.4, 4.4, 16),
        "convolutions": Accuracy(0.87, 4.0, 8),
        "norms": Accuracy(1.1, 4.2, 11),
    },
    "none, by layer": {
        "dense": Accuracy(0.33, 2.0, 4),
        "convolutions": Accuracy(0.17, 2.0, 4),
        "norms": Accuracy(0.24, 3.0, 24),
    },
    "none, by layer, SGD": {
        "dense": Accuracy(0.46, 2.4, 3),
        "convolutions": Accuracy(0.63, 2.5, 4),
        "norms": Accuracy(0.31, 3.2, 10),
    },
    "none, own init": {
        "dense": Accuracy(1.21, 7.0, 10),
        "convolutions": Accuracy(1.1, 4.8, 3),
        "norms": Accuracy(1.43, 7.6, 15),
    },
    "none, plain depth": {
        "dense": Accuracy(1.51, 4.0, 6),
        "convolutions": Accuracy(0.78, 2.6, 2),
        "norms": Accuracy(1.33, 3.3, 4),
    },
    "paths": {
        "dense": Accuracy(1.73, 4.3, 4),
        "convolutions": Accuracy(1.36, 3.5, 2),
        "norms": Accuracy(3.02, 2.7, 1),
    },
    "short-run": {
        "dense": Accuracy(0.28, 3.4, 26),
        "convolutions": Accuracy(0.5, 3.1, 11),
        "norms": Accuracy(0.38, 3.3, 18),
    },
}
"""Law, with how it is used where that matters → kind of network → its error."""

SEARCH = 0.24
"""Octaves that the rate of a search with one seed is off, however narrow its band."""
BAND_SHARE = 0.11
"""What it is off beside that, as a part of half its band's width."""
BASE = 0.20
"""Octaves that a base's rate is usually off, where nothing is known of its search."""
BASE_SIDE = 0.53
"""Part of the variance of a law's error that is the base's."""
POWER_SPREAD = 0.35
"""Standard deviation over families of the power of a law's factors that fits best."""
# end


def kind_of(network: Network) -> Kind:
    """What the evidence tells apart: networks with norms, gates or attention; of the others, those that convolve."""
    if not pictured(network.graph):
        return "norms"
    return "convolutions" if any(use.layer.kernel_size > 1 for use in network.graph.layers) else "dense"


def by_layer_row(optimizer: Optimizer) -> str:
    """How rates that are scaled layer by layer are used: under SGD they are off by more than under Adam and its kin."""
    return "by layer, SGD" if optimizer.step == "gradient" else "by layer"


def accuracy(law: str, network: Network, *, alone: bool = False, use: str = "") -> Accuracy | None:
    """What is known of a law's error on such a network; None where nothing is.

    How a law is used has a row of its own where that matters: a rate without a base; one rate as it is, where each
    parameter's own is scaled by rules for width and depth (under SGD and else), by the depth rule for plain networks,
    and where networks keep their authors' inits, which make them less alike than one init for all.

    Args:
        law: its name.
        network: the target, under its init.
        alone: the law gives the rate itself, without a base.
        use: how the depth rule has it used, where its errors are recorded apart (`dagscale.scaling.depth.DepthEntry`).
    """
    if alone:
        rows = ["no base"]
    else:
        uses = {
            use: bool(use), by_layer_row(network.recipe.optimizer): network.by_layer, "own init": not network.fills
        }  # fmt: skip
        rows = [*(f"{law}, {use}" for use, so in uses.items() if so), law]
    found = next((ACCURACY[row] for row in rows if row in ACCURACY), {})
    return found.get(kind_of(network))
