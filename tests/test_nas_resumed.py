"""A retraining in many calls: a list without an end, a time limit, kills, and one file of results."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import dagscale.cli.retrain  # noqa: F401  puts the command on the application
from dagscale.bench.nas import results, retrain, retrain_study, samples
from dagscale.bench.nas.comparison import table
from dagscale.bench.nas.isomorphism import canonical
from dagscale.bench.nas.recipes import Preset
from dagscale.bench.nas.results import read_results
from dagscale.bench.sweep import Run, engine
from dagscale.cli.app import app
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201

SIZE = Preset(1, 30, 2, 1, images=60, rates=(-4, -3))
ARCHS = tuple(map(Nb201.parse, ("0_00_300", "1_11_111", "0_00_000", "3_00_300", "0_30_003")))


def study(folder: Path, archs: tuple[Nb201, ...] = ARCHS, **more: Any) -> results.Retraining:
    given = {"recipes": ["one-rate"], "size": SIZE, "jobs": 1, **more}
    return retrain.retrain(
        archs, data="digits", store=folder / "runs.sqlite", results=folder / "results.jsonl", **given
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    study(folder)
    return folder


# --- the list -------------------------------------------------------------------------------------------------------


def test_the_list_is_stratified_wherever_it_is_cut() -> None:
    every = list(Nb201.enumerate())
    values = np.random.default_rng(0).permutation(len(every)) / len(every) * 100
    ranking = table(every, values[:, None], "cifar10", "T").select(seed="mean")
    listed = samples.listed(ranking, 3)
    assert listed == samples.listed(ranking, 3)
    assert sorted(a.code for a in listed) == sorted(a.code for a in every if a.graph.has_path)
    firsts = listed[:5043]
    assert len({canonical(arch) for arch in firsts}) == 5043  # one of each group before any second
    value = dict(zip(ranking.archs, ranking.values, strict=True))
    order = sorted(firsts, key=lambda arch: -value[arch])
    rank = {arch: 10 * i // 5043 for i, arch in enumerate(order)}
    for start in range(0, 200, 10):
        assert sorted(rank[arch] for arch in firsts[start : start + 10]) == list(range(10))
    with pytest.raises(DataError, match="lacks"):
        samples.listed(table(every[:600], values[:600, None], "cifar10", "T").select(seed="mean"))


# --- time -----------------------------------------------------------------------------------------------------------


def test_too_short_for_one_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^the time is too short for one network: the next takes about \d+ s here; "):
        study(tmp_path, until=time.monotonic() + 0.01)
    assert read_results(tmp_path / "results.jsonl").archs == ()


def test_many_short_calls_come_to_what_one_does(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []

    def watched(run: Run) -> dict[str, Any]:
        executed.append(run.options["kind"])
        return own(run)

    own = retrain_study.execute
    monkeypatch.setattr(retrain_study, "execute", watched)
    monkeypatch.setattr(retrain_study, "seconds", lambda run: 0.0)
    done: list[int] = []
    for _ in range(20):
        before = len(executed)
        # The time is up as soon as two runs were begun.
        monkeypatch.setattr(engine, "monotonic", lambda before=before: 2.0 * (len(executed) >= before + 2))
        monkeypatch.setattr(retrain_study, "monotonic", engine.monotonic)
        found = study(tmp_path, until=1.0)
        done.append(len(found.archs))
        if done[-1] == 4:
            break
    assert done == sorted(done)
    assert done[0] == 0
    assert len(set(done)) > 2
    assert (tmp_path / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert executed.count("piece") == 4  # none a second time
    assert executed.count("search") == 2


def test_the_results_alone_are_enough_to_go_on_from(tmp_path: Path, whole: Path) -> None:
    lines = (whole / "results.jsonl").read_text().splitlines()
    (tmp_path / "results.jsonl").write_text("\n".join(lines[:4]) + "\n")
    found = study(tmp_path)  # with a store that knows nothing
    assert (tmp_path / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()
    assert [arch.code for arch in found.archs] == [arch.code for arch in ARCHS if arch.graph.has_path]


def test_killed_at_random_moments_the_results_are_the_same(tmp_path: Path, whole: Path) -> None:
    chance = random.Random(0)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "dagscale.bench.nas.retrain"])
    for _ in range(4):
        process = context.Process(target=study, args=(tmp_path,))
        process.start()
        process.join(chance.uniform(0.1, 1.5))
        process.kill()
        process.join()
    study(tmp_path)
    assert (tmp_path / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()


# --- what is not mixed ----------------------------------------------------------------------------------------------


def test_results_of_another_study_are_named_and_kept(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = whole / "results.jsonl"
    before = path.read_bytes()
    for more, named in (
        ({"archs": ARCHS[1:]}, "list of architectures"),
        ({"recipes": ["mup"]}, "recipes"),
        ({"seeds": 3}, "seeds"),
        ({"size": Preset(1, 30, 3, 1, images=60, rates=(-4, -3))}, "preset"),
    ):
        with pytest.raises(DataError, match=f"holds results of another {named}") as raised:
            study(whole, **more)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(retrain, "code_version", lambda: "0.0.1+older")
    with pytest.raises(DataError, match="another version of dagscale"):
        study(whole)
    assert path.read_bytes() == before


def test_broken_and_foreign_files_are_refused(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "results.jsonl"
    text = (whole / "results.jsonl").read_text()
    for content in ("", "{}", text[: len(text) // 2], text.replace('"format":1', '"format":2'), "\0\0"):
        path.write_text(content)
        with pytest.raises(DataError) as raised:
            read_results(path)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", '{"format":1}\n'])
def test_a_file_that_ends_before_its_rows_says_what_it_lacks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="lacks the study and its bases, the first two lines; `dagscale retrain"):
        read_results(path)


def test_a_report_tells_the_recipes_that_the_file_holds(tmp_path: Path, whole: Path) -> None:
    text = (whole / "results.jsonl").read_text()
    other = text.replace('"one-rate"', '"of-old"').replace(
        '"weight_decay":0.0005,"width"', '"weight_decay":0.25,"width"'
    )
    (tmp_path / "results.jsonl").write_text(other)
    shown = command("--report", str(tmp_path / "results.jsonl"), "--bootstrap", "20")
    assert shown.exit_code == 0, shown.output
    told = " ".join(shown.output.split())
    assert "of-old: PyTorch's init, rate found on 0_00_300" in told
    assert "weight decay of all parameters (0.25 where none is searched)" in told


# --- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["retrain", *arguments])


def test_the_command_with_a_budget_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--data", "digits", "--preset", "tiny-1", "--limit", "60", "--jobs", "1", "--recipes", "one-rate",
             "--architectures", "0_00_300,1_11_111")  # fmt: skip
    done = command(*asked, "--budget", "10m", "--store", "s.sqlite")
    assert done.exit_code == 0, done.output
    assert "2 of 2 architectures are done; they are in out/retrain.jsonl" in " ".join(done.stdout.split())
    shown = json.loads(command("--report", "out/retrain.jsonl", "--json", "--bootstrap", "20").stdout)
    assert [a["code"] for a in shown["architectures"]] == ["0_00_300", "1_11_111"]
    for arguments, text in (
        ((*asked, "--device", "tpu"), "give cpu or cuda"),
        (("--report", "absent.jsonl"), "no results at absent.jsonl"),
        (("--report", "a" * 300), "no results at aaa"),
    ):
        refused = command(*arguments)
        assert isinstance(refused.exception, DataError), refused.output
        assert text in str(refused.exception)
