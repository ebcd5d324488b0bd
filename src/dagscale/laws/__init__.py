"""Laws: base and target → the factors that carry a learning rate from one to the other. One file each."""

from dagscale.laws import none, paths, released
from dagscale.laws.base import LAWS, Law

__all__ = ["LAWS", "Law", "none", "paths", "released"]
