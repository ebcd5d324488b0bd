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


UNKIND = {
    "closes stdout": "sys.stdout.close()",
    "closes both": "sys.stdout.close(); sys.stderr.close()",
    "closes what is below": "os.close(1)",
    "leaves none": "sys.stdout = None",
    "puts another in its place": "sys.stdout = open(os.devnull, 'w')",
    "prints": "print('printed'); os.write(1, b'written')",
}


@pytest.mark.parametrize("shown", ["--json", "--full"])
@pytest.mark.parametrize("what", UNKIND)
def test_an_answer_reaches_stdout_whatever_the_model_does_to_it(tmp_path: Path, what: str, shown: str) -> None:
    (tmp_path / "m.py").write_text(
        "import os, sys, torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        f"        {UNKIND[what]}\n        return super().forward(x)\n"
        "def make():\n    return Net(4, 3), torch.ones(2, 4)\n"
    )
    done = oracle.run(["inspect", "m.py:make", shown], tmp_path)
    assert oracle.fault(done) is None, oracle.report(done)
    assert done.status == 0
    assert '"parameters"' in done.out if shown == "--json" else "parameters" in done.out


def test_a_model_that_ends_the_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import sys, torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        sys.exit('a\\nb')\n"
        "def make():\n    return Net(4, 3), torch.ones(2, 4)\n"
    )
    done = oracle.run(["inspect", "m.py:make", "--json"], tmp_path)
    assert oracle.fault(done) is None, oracle.report(done)
    assert (done.status, "SystemExit" in done.err) == (2, True)
