"""Hostile input to the command line: never a traceback, a hang, much memory, or more than one line of complaint.

A short fixed share runs with the other tests. ``make fuzz SECONDS=600`` goes on for as long as is wished, with new
inputs.
"""

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


def sibling(name: str) -> ModuleType:
    """A module of the folder ``fuzz``."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", Path(__file__).parent / "fuzz" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


oracle, surfaces, documents = sibling("oracle"), sibling("surfaces"), sibling("documents")
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""For each surface; 0 for the fixed share."""

SHARE = 12
"""Inputs of each surface in the fixed share."""


@pytest.fixture(scope="module", autouse=True)
def _ready() -> None:
    oracle.preload()
    documents.documents()


@pytest.mark.slow
@pytest.mark.parametrize("name", surfaces.SURFACES)
def test_surface(name: str) -> None:
    begin = time.monotonic()

    @settings(
        max_examples=SHARE if SECONDS == 0 else 1_000_000, derandomize=SECONDS == 0, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.data())
    def holds(data: Any) -> None:
        if 0 < SECONDS < time.monotonic() - begin:
            return
        with tempfile.TemporaryDirectory() as folder:
            done = oracle.run(surfaces.SURFACES[name](data.draw, Path(folder)), Path(folder))
        assert oracle.fault(done) is None, oracle.report(done)

    holds()
