"""Architecture-aware initialisation and learning rates for any unmodified PyTorch model."""

from dagscale.checking import Report, check
from dagscale.errors import DagscaleError
from dagscale.graph import Graph, PathSums, kernel_size, path_sums
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.planning import Plan, plan
from dagscale.searching import Found, search
from dagscale.tracing import trace

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
