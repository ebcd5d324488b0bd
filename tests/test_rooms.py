"""A newcomer finds things by name: every module can be had by the name it has."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import dagscale


def test_no_module_hides_behind_a_function() -> None:
    for found in pkgutil.walk_packages(dagscale.__path__, "dagscale."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in [name for name in sys.modules if name.startswith("dagscale.")]:
        parent, _, leaf = name.rpartition(".")
        assert getattr(sys.modules[parent], leaf) is sys.modules[name], name
