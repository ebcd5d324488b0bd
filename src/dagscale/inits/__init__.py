"""Initialisations: one network → a mean and a standard deviation for each parameter. One file each, found by itself."""

import importlib
import pkgutil

from dagscale.inits.base import DEFAULT, INITS, WITHOUT_DATA, Init, init
from dagscale.training.draws import Fill

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["DEFAULT", "INITS", "WITHOUT_DATA", "Fill", "Init", "init"]
