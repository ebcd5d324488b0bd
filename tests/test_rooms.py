"""A newcomer finds things by name: every module can be had by the name it has."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import dagscale


def test_no_module_hides_behind_a_function() -> None:
    for found in pkgutil.walk_packages(dagscale.__path__, "dagscale."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in [name for name in sys.modules if name.startswith("dagscale.")]:
        parent, _, leaf = name.rpartition(".")
        assert getattr(sys.modules[parent], leaf) is sys.modules[name], name


def test_rich_is_imported_where_pythons_random_state_is_kept() -> None:
    """Its import draws from it; `load_rich` puts that right. The command line has a process of its own."""
    for file in Path(dagscale.__file__).parent.rglob("*.py"):
        if "cli" in file.parts or file.name == "shown.py":
            continue
        for function in (n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.FunctionDef)):
            within = list(ast.walk(function))
            rich = [n for n in within if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] == "rich"]
            loads = [n for n in within if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "load_rich"]
            assert loads or not rich, f"{file.name}: {function.name}"
