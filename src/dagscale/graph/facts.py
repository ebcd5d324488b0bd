"""What ``dagscale inspect`` says of a graph: as plain data, and as tables to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagscale.graph.model import Graph
from dagscale.graph.paths import kernel_size, path_sums
from dagscale.graph.repeats import Folded, fold_rows
from dagscale.shown import cell, load_rich

if TYPE_CHECKING:
    from rich.console import Group


def inspect(graph: Graph) -> dict[str, Any]:
    """The graph's figures as JSON-safe data.

    ``paths`` and ``sum_depth_cubed`` are exact integers, written as strings because they outgrow a float.
    ``parameters.total`` and ``.reached`` count scalars, tied weights once.
    """
    sums = path_sums(graph)
    return {
        "paths": str(sums.paths),
        "sum_depth_cubed": str(sums.depth_cubed),
        "depth": {"min": sums.min_depth, "max": sums.max_depth, "mean": sums.mean_depth},
        "kernel": kernel_size(graph),
        "parameters": {
            "total": sum(p.numel for p in graph.parameters),
            "reached": sum(p.numel for p in graph.parameters if p.reached),
            "unreached": [p.name for p in graph.parameters if not p.reached],
        },
        "layers": [
            {
                "name": use.name,
                "op": use.op.name,
                "fan_in": use.layer.fan_in,
                "fan_out": use.layer.fan_out,
                "kernel": list(use.layer.kernel),
                "in_degree": use.in_degree,
            }
            for use in graph.layers
        ],
        "notes": list(graph.notes),
    }


def tables(graph: Graph, title: str = "", *, full: bool = False) -> Group:
    """The same, to print with rich: the layers, then the figures.

    Args:
        full: one row a layer, instead of one for all repeats of a block (``layers.0–31 ×32``).
    """
    load_rich()
    from rich import box
    from rich.console import Group
    from rich.table import Table

    facts = inspect(graph)
    layers = Table(title=cell(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    layers.add_column("layer", overflow="fold")
    layers.add_column("op")
    for name in ("fan-in", "fan-out", "kernel", "in-degree"):
        layers.add_column(name, justify="right")
    shown = [_figures(row) for row in facts["layers"]]
    names = [row["name"] for row in facts["layers"]]
    for row in [Folded(name, 1, i) for i, name in enumerate(names)] if full else fold_rows(names, shown):
        name = f"{row.name} ×{row.times}" if row.times > 1 else row.name
        layers.add_row(*map(cell, (name, *shown[row.index])))
    depth, parameters = facts["depth"], facts["parameters"]
    lines = [
        f"paths       {shorten(facts['paths'])}",
        f"depth       {depth['min']} to {depth['max']}, mean {depth['mean']:.4g} activations",
        f"Σ L³        {shorten(facts['sum_depth_cubed'])}",
        f"kernel      {facts['kernel']:.4g}",
        f"parameters  {parameters['total']:,}, {parameters['reached']:,} on a path",
    ]
    if parameters["unreached"]:
        unreached = fold_rows(parameters["unreached"], [()] * len(parameters["unreached"]))
        lines.append(f"not on any path: {', '.join(row.name for row in unreached)}")
    lines += [f"note: {note}" for note in facts["notes"]]
    return Group(layers, *map(cell, lines))


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    """A layer's cells after its name."""
    kernel = "×".join(map(str, row["kernel"]))
    return row["op"], str(row["fan_in"]), str(row["fan_out"]), kernel, str(row["in_degree"])


def shorten(digits: str) -> str:
    """An exact integer, or its leading digits and size if it is too long to read."""
    if len(digits) <= 15:
        return f"{int(digits):,}"
    return f"{digits[0]}.{digits[1:4]}e{len(digits) - 1} (exact with --json)"
