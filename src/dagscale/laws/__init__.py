"""Laws: base and target → the factors that carry a learning rate from one to the other. One file each."""

from dagscale.laws import combined, covariance, curvature, function_change, none, paths, released, short_run, walk
from dagscale.laws.base import LAWS, Law

AFFECTS_TRAINING = False

__all__ = [
    "LAWS", "Law", "combined", "covariance", "curvature", "function_change", "none", "paths", "released", "short_run",
    "walk",
]  # fmt: skip
