"""Initialisations: a network → a mean and a standard deviation for each parameter. One file each."""

from dagscale.inits import in_degree, keep, moments, released
from dagscale.inits.base import INITS, Init, padding_rows
from dagscale.training.draws import Fill

__all__ = ["INITS", "Fill", "Init", "in_degree", "keep", "moments", "padding_rows", "released"]
