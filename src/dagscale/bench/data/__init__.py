"""Image classification data, read from the usual public layouts.

Every other module of this package is imported here, so that its ``@READERS.add`` or ``@NAMED.add`` takes
effect: a new format is one new file.
"""

from __future__ import annotations

import importlib
import pkgutil

from dagscale.bench.data.dataset import Dataset, load

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Dataset", "load"]
