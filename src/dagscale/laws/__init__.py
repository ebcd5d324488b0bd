"""Laws: base and target → the factors that carry a learning rate from one to the other. One file each."""

from dagscale.laws import curvature, none, paths, released
from dagscale.laws.base import LAWS, Law

__all__ = ["LAWS", "Law", "curvature", "none", "paths", "released"]
