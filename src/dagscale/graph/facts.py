"""What ``dagscale inspect`` says of a graph: as plain data, and as tables to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dagscale.graph.branches import find_branches
from dagscale.graph.model import Graph
from dagscale.graph.paths import kernel_size, path_sums
from dagscale.graph.repeats import Folded, fold_rows
from dagscale.shown import cell, load_rich

if TYPE_CHECKING:
    from rich.console import Group


def inspect(graph: Graph) -> dict[str, Any]:
    """The graph's figures as JSON-safe data.

    ``paths`` and ``sum_depth_cubed`` are exact integers, written as strings because they outgrow a float.
    ``parameters.total`` and ``.reached`` count scalars, tied weights once. ``residual.additions`` counts those on each
    trunk (:func:`dagscale.graph.branches.find_branches`).
    """
    sums = path_sums(graph)
    residuals = find_branches(graph)
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
        "residual": {
            "additions": list(residuals.additions),
            "branches": [
                {"trunk": b.trunk, "ends": list(b.ends), "inside": list(b.inside), "note": b.note}
                for b in residuals.branches
            ],
            "unclear": len(residuals.unclear),
        },
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
    lines += _residual(facts["residual"])
    if parameters["unreached"]:
        unreached = fold_rows(parameters["unreached"], [()] * len(parameters["unreached"]))
        lines.append(f"not on any path: {', '.join(row.name for row in unreached)}")
    lines += [f"note: {note}" for note in facts["notes"]]
    return Group(layers, *map(cell, lines))


def _residual(facts: dict[str, Any]) -> list[str]:
    """How many residual branches there are, and the layers that they end in."""
    branches = facts["branches"]
    if not branches:
        return []
    ends = [name.removesuffix(".weight") for b in branches for name in b["ends"] if not name.endswith(".bias")]
    shown = ", ".join(row.name for row in fold_rows(ends, [()] * len(ends)))
    added = " + ".join(map(str, facts["additions"]))
    word = "branch" if len(branches) == 1 else "branches"
    lines = [f"residual    {added} {word}{', ending in ' + shown if shown else ''}"]
    notes = dict.fromkeys(b["note"] for b in branches if b["note"])
    return lines + [f"note: no multiplier can be folded into some branches: {note}" for note in notes]


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a layer's row that follow its name."""
    kernel = "×".join(map(str, row["kernel"]))
    return row["op"], str(row["fan_in"]), str(row["fan_out"]), kernel, str(row["in_degree"])


def shorten(digits: str) -> str:
    """An exact integer, or its leading digits and size if it is too long to read."""
    if len(digits) <= 15:
        return f"{int(digits):,}"
    return f"{digits[0]}.{digits[1:4]}e{len(digits) - 1} (exact with --json)"
