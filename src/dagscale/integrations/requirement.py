"""Packages that a bridge needs and dagscale does not: imported, or asked for in one line."""

from __future__ import annotations

import importlib
import re
from typing import Any

from dagscale.errors import DagscaleError
from dagscale.shown import reason


def require(module: str, package: str, least: str = "") -> Any:
    """A module of another package.

    Args:
        module: as it is imported, such as ``lightning.pytorch``.
        package: as it is installed, such as ``lightning``.
        least: the oldest version that will do; empty for any.

    Raises:
        DagscaleError: if it cannot be imported, or is older.
    """
    mend = f"pip install '{package}{'>=' + least if least else ''}'"
    try:
        found = importlib.import_module(module)
        version = str(getattr(importlib.import_module(module.partition(".")[0]), "__version__", least))
    except Exception as error:
        raise DagscaleError(
            f"this needs {package}, and {module} cannot be imported ({reason(error)}): {mend}"
        ) from None
    if least and _numbers(version) < _numbers(least):
        raise DagscaleError(f"this needs {package} {least} or newer, and {version} is installed: {mend}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
