"""Laws: one network → an estimate of its learning rate, up to what all networks share.

One file each, found by itself.
"""

import importlib
import pkgutil

from dagscale.laws.base import LAWS, Carried, Law, law
from dagscale.laws.estimate import Estimate

AFFECTS_TRAINING = False

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = ["LAWS", "Carried", "Estimate", "Law", "law"]
