"""Architecture-aware initialisation and learning rates for any unmodified PyTorch model.

Public names are imported when they are first used: ``dagscale --help`` and a look at the version need no torch.
"""

from __future__ import annotations

import dagscale.starting  # noqa: F401  # isort: skip  # before torch is imported
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagscale.__about__ import __version__ as __version__

if TYPE_CHECKING:
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

_HOMES = {
    "checking": ("Report", "check"),
    "errors": ("DagscaleError",),
    "graph": ("Graph", "PathSums", "kernel_size", "path_sums"),
    "inits": ("INITS", "init"),
    "laws": ("LAWS", "Estimate", "law"),
    "network": ("Network",),
    "planning": ("Base", "Plan", "plan"),
    "searching": ("search",),
    "tracing": ("trace",),
    "training.clipping": ("clip_grad_norm_",),
    "training.optimizers": ("OPTIMIZERS", "Optimizer", "optimizer"),
    "training.recipe": ("Recipe",),
    "training.schedules": ("Schedule", "constant", "cosine", "linear"),
    "watching": ("Watch", "WatchReport", "watch"),
}
"""Module → the public names that live in it, as above."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "INITS", "LAWS", "OPTIMIZERS", "Base", "DagscaleError", "Estimate", "Graph", "Network", "Optimizer", "PathSums",
    "Plan", "Recipe", "Report", "Schedule", "Watch", "WatchReport", "check", "clip_grad_norm_", "constant",
    "cosine", "init", "kernel_size", "law", "linear", "optimizer", "path_sums", "plan", "search", "trace", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(f"dagscale.{_HOME[name]}"), name)
        globals()[name] = found
        return found
    if not name.startswith("_"):
        try:
            return import_module(f"dagscale.{name}")  # a room: dagscale.graph
        except ModuleNotFoundError as error:
            if error.name != f"dagscale.{name}":
                raise
    raise AttributeError(f"module 'dagscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
