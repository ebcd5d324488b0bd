"""Architecture-aware initialisation and learning rates for any unmodified PyTorch model."""

import dagscale.starting  # noqa: F401  # isort: skip  # before torch is imported
from dagscale.checking import Report, check
from dagscale.errors import DagscaleError
from dagscale.graph import Graph, PathSums, kernel_size, path_sums
from dagscale.inits import INITS, init
from dagscale.laws import LAWS, Estimate, law
from dagscale.network import Network
from dagscale.planning import Base, Plan, plan
from dagscale.searching import search
from dagscale.tracing import trace
from dagscale.training.clipping import clip_grad_norm_
from dagscale.training.optimizers import OPTIMIZERS, Optimizer, optimizer
from dagscale.training.recipe import Recipe
from dagscale.training.schedules import Schedule, constant, cosine, linear
from dagscale.watching import Watch, WatchReport, watch

__version__ = "0.1.0"

__all__ = [
    "INITS", "LAWS", "OPTIMIZERS", "Base", "DagscaleError", "Estimate", "Graph", "Network", "Optimizer", "PathSums",
    "Plan", "Recipe", "Report", "Schedule", "Watch", "WatchReport", "check", "clip_grad_norm_", "constant",
    "cosine", "init", "kernel_size", "law", "linear", "optimizer", "path_sums", "plan", "search", "trace", "watch",
]  # fmt: skip
