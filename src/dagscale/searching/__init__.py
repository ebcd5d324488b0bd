"""Searching: training copies of a network at several learning rates, and what the curve of their losses says."""

from dagscale.searching.make import search
from dagscale.searching.methods import METHODS

AFFECTS_TRAINING = False

__all__ = ["METHODS", "search"]
