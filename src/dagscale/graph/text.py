"""A graph as text that other programs draw: Graphviz's DOT, and Mermaid for READMEs and notebooks."""

from __future__ import annotations

import json
from collections.abc import Callable

from dagscale.graph.model import Edge, Graph, Vertex
from dagscale.registry import Registry
from dagscale.shown import plain

FORMATS: Registry[Callable[[Graph], str]] = Registry("format of a graph")


@FORMATS.add("dot")
def to_dot(graph: Graph) -> str:
    """The graph in Graphviz's DOT language. Vertices are nodes, edges name their ops, and dead edges are dashed."""
    lines = ["digraph {", "  rankdir=LR;", "  node [shape=box, style=rounded];"]
    lines += [f"  v{v.id} [label={json.dumps(_vertex(graph, v), ensure_ascii=False)}];" for v in graph.vertices]
    for edge, alive in zip(graph.edges, graph.live, strict=True):
        dashed = "" if alive else ", style=dashed"
        lines.append(f"  v{edge.src} -> v{edge.dst} [label={json.dumps(_edge(edge), ensure_ascii=False)}{dashed}];")
    return "\n".join([*lines, "}"])


@FORMATS.add("mermaid")
def to_mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart. Vertices are nodes, edges name their ops, and dead edges are dotted."""
    lines = ["flowchart LR"]
    lines += [f'  v{v.id}["{_escaped(_vertex(graph, v))}"]' for v in graph.vertices]
    for edge, alive in zip(graph.edges, graph.live, strict=True):
        arrow = "-->" if alive else "-.->"
        lines.append(f'  v{edge.src} {arrow}|"{_escaped(_edge(edge))}"| v{edge.dst}')
    return "\n".join(lines)


def _vertex(graph: Graph, vertex: Vertex) -> str:
    degree = f" of {graph.in_degree[vertex.id]}" if vertex.kind == "sum" else ""
    label = f" {vertex.label}" if vertex.label and vertex.label != vertex.kind else ""
    return plain(f"{vertex.kind}{degree}{label}")


def _edge(edge: Edge) -> str:
    return plain(", ".join(op.label for op in edge.ops)) or "identity"


def _escaped(text: str) -> str:
    """As Mermaid wants it inside quotes: characters that mean something there by their numbers."""
    return "".join(c if c.isalnum() or c in " .,_-–×" else f"#{ord(c)};" for c in text)
