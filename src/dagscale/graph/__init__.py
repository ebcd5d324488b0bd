"""The computational graph as a value, and exact mathematics on its paths."""

from dagscale.graph.model import (
    Edge,
    Graph,
    Layer,
    LayerUse,
    Op,
    OpKind,
    Parameter,
    ParamUse,
    Role,
    Vertex,
    VertexKind,
)
from dagscale.graph.paths import PathSums, kernel_size, path_sums

__all__ = [
    "Edge",
    "Graph",
    "Layer",
    "LayerUse",
    "Op",
    "OpKind",
    "ParamUse",
    "Parameter",
    "PathSums",
    "Role",
    "Vertex",
    "VertexKind",
    "kernel_size",
    "path_sums",
]
