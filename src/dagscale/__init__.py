"""Architecture-aware initialisation and learning rates for any unmodified PyTorch model."""

from dagscale.check import Report, check
from dagscale.errors import DagscaleError
from dagscale.graph import Graph
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.paths import PathSums, kernel_size, path_sums
from dagscale.plan import Plan
from dagscale.planning import plan
from dagscale.search import Found, search
from dagscale.trace import trace

__version__ = "0.1.0"

__all__ = [
    "INITS",
    "LAWS",
    "DagscaleError",
    "Found",
    "Graph",
    "PathSums",
    "Plan",
    "Report",
    "check",
    "kernel_size",
    "path_sums",
    "plan",
    "search",
    "trace",
]
