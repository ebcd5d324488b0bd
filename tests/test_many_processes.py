"""A plan in two processes: what DDP and FSDP2 wrap trains as the model alone does on the whole batch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "fixtures" / "many_processes.py"


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes, to which a pickled plan was sent, saw."""
    folder = tmp_path_factory.mktemp("processes")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return ast.literal_eval((folder / "result").read_text())


def test_a_pickled_plan_arrives_as_it_was(facts: Any) -> None:
    assert facts["plan"] == {"same": True, "folds": True}


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "fact",
    [
        "wrapped", "rates", "losses", "norms", "clipped", "plain norms", "inf norm", "weights",
        "watch", "resumes", "plan of it", "searched",
    ],
)  # fmt: skip
def test_wrapped_is_trained_as_the_model_alone(facts: Any, wrapper: str, fact: str) -> None:
    """Rates and decays by name, losses and weights of the same global batches, the clipped norm, a step after the
    states were loaded into another model, and a plan made of the wrapped model itself."""
    assert facts[wrapper][fact] is True


@pytest.mark.parametrize("fact", ["rates", "weights", "steps"])
def test_accelerate_in_two_processes(facts: Any, fact: str) -> None:
    """Its prepared model, optimizer, loader and scheduler, with accumulation."""
    pytest.importorskip("accelerate")
    assert facts["accelerate"][fact] is True
