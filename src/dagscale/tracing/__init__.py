"""Tracing: an unmodified ``nn.Module`` and example inputs → a :class:`~dagscale.graph.Graph`."""

from dagscale.tracing.make import trace
from dagscale.tracing.meaning import Meaning, means, rule, spelling

__all__ = ["Meaning", "means", "rule", "spelling", "trace"]
