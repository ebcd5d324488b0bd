"""Benchmarks with several settings: made files in their layouts, statistics against what was put in."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import dagscale.cli.rerank  # noqa: F401  puts the command on the application
from dagscale.bench.nas.components import components
from dagscale.bench.nas.settings import Settings, compare_settings
from dagscale.bench.nas.settings_read import read_settings
from dagscale.cli.app import app
from dagscale.errors import DataError

RATES, BATCHES, SEEDS = (0.1, 0.4), (64, 256), (0, 1, 2)


def accuracies(archs: int, settings: int, seeds: int, interaction: float, noise: float = 1.0, seed: int = 0) -> Any:
    """(architectures, settings, seeds) with these standard deviations."""
    rng = np.random.default_rng(seed)
    return (
        70
        + 3 * rng.standard_normal((archs, 1, 1))
        + 0.5 * rng.standard_normal((1, settings, 1))
        + interaction * rng.standard_normal((archs, settings, 1))
        + 0.7 * rng.standard_normal((1, settings, seeds))  # what a seed does to all
        + noise * rng.standard_normal((archs, settings, seeds))
    )


# --- statistics -----------------------------------------------------------------------------------------------------


def test_components_are_what_was_put_in() -> None:
    found = components(accuracies(600, 4, 2, interaction=1.5), bootstrap=40)
    assert found is not None
    assert found.architecture.value == pytest.approx(3, rel=0.15)
    assert found.interaction.value == pytest.approx(1.5, rel=0.1)
    assert found.seed.value == pytest.approx(1, rel=0.05)
    for part, true in ((found.architecture, 3), (found.interaction, 1.5), (found.seed, 1)):
        assert part.low < true < part.high  # type: ignore[operator]
    assert found.p < 1e-6
    assert components(accuracies(600, 1, 2, 0)) is None


def test_no_interaction_is_found_where_there_is_none_as_often_as_the_level_says() -> None:
    ps = [components(accuracies(30, 4, 2, 0.0, seed=k), bootstrap=0).p for k in range(200)]  # type: ignore[union-attr]
    assert 0 < sum(p < 0.05 for p in ps) < 22  # 10 expected, standard deviation 3.1


def test_the_power_holds() -> None:
    seen = components(accuracies(30, 4, 2, 0.0), bootstrap=0).seen  # type: ignore[union-attr]
    ps = [components(accuracies(30, 4, 2, seen, seed=k), bootstrap=0).p for k in range(200)]  # type: ignore[union-attr]
    assert 0.68 < np.mean([p < 0.05 for p in ps]) < 0.92  # 0.8, with the noise estimated from one sample


def test_the_best_of_many_equal_settings_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    values = 70 + 3 * rng.standard_normal((120, 1, 1)) + rng.standard_normal((120, 8, 3))
    names = tuple(f"s{k}" for k in range(8))
    found = compare_settings(Settings("T", "test", tuple(map(str, range(120))), names, values), bootstrap=20)
    everything = found.gains[0].gain
    assert everything.low < 0 < everything.high  # type: ignore[operator]
    assert found.excess[100].low < 0.02  # type: ignore[operator]
    assert (values.mean(2).max(1) - values.mean((1, 2))).mean() > 0.5  # chosen and judged by the same seeds it would


def test_an_interaction_changes_the_ranking_and_gains() -> None:
    values = accuracies(120, 8, 3, 2.0)
    names = tuple(f"s{k}" for k in range(8))
    found = compare_settings(Settings("T", "test", tuple(map(str, range(120))), names, values), bootstrap=20)
    assert found.gains[0].gain.low > 1  # type: ignore[operator]
    assert found.excess[100].low > 0.05  # type: ignore[operator]
    assert found.components is not None
    assert sum(count for _, count in found.chosen) == 120


# --- layouts --------------------------------------------------------------------------------------------------------


def nas_hpo(folder: Path, archs: int = 30) -> Any:
    """A made ``bench12.pkl``: columns of (hash, rate, batch size, seed) → percent."""
    values = accuracies(archs, 4, 3, 1.0)
    keys = [
        (f"hash{a}", lr, batch, seed)
        for a in range(archs) for lr in RATES for batch in BATCHES for seed in SEEDS
    ]  # fmt: skip
    flat = {key: float(value) for key, value in zip(keys, values.ravel(), strict=True)}
    first = dict.fromkeys(keys, 10.0)
    bench = {"lr": {k: k[1] for k in keys}, "test_acc_0": first, "test_acc_11": flat, "valid_acc_11": first}
    (folder / "bench12.pkl").write_bytes(pickle.dumps(bench))
    return values


def test_nas_hpo_bench_2(tmp_path: Path) -> None:
    values = nas_hpo(tmp_path)
    found = read_settings(f"nas-hpo-bench-2:{tmp_path}")
    assert found is not None
    assert found.settings == ("lr 0.1, batch 256", "lr 0.1, batch 64", "lr 0.4, batch 256", "lr 0.4, batch 64")
    assert found.column == "test accuracy after 12 epochs"
    at = found.archs.index("hash7")
    np.testing.assert_allclose(found.values[at, 1], values[7, 0])
    assert read_settings("table.csv") is None
    assert read_settings(f"nas-hpo-bench-2:{tmp_path}", "valid_acc").values.max() == 10  # type: ignore[union-attr]


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, text in (
        (pickle.dumps({"test_acc_11": Evil()}), "plain dictionaries"),
        (b"no pickle", "no pickle that can be read"),
        (pickle.dumps([1]), "no dictionary"),
        (pickle.dumps({"acc": {}}), "no column test_acc"),
        (pickle.dumps({"test_acc_11": {}}), "no rows"),
        (pickle.dumps({"test_acc_11": {("a", 0.1, 64, 0): 0.7}}), "as fractions"),
        (pickle.dumps({"test_acc_11": {("a", 0.1, 64, 0): 170.0}}), "no percentage"),
        (pickle.dumps({"test_acc_11": {"a": 1.0}}), "is not as NAS-HPO-Bench-II writes it"),
    ):
        (tmp_path / "bench12.pkl").write_bytes(content)
        with pytest.raises(DataError, match=text) as raised:
            read_settings(f"nas-hpo-bench-2:{tmp_path}")
        assert "\n" not in str(raised.value)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(DataError, match=r"no bench12\.pkl"):
        read_settings(f"nas-hpo-bench-2:{tmp_path / 'absent'}")


HEADER = "N,W,Resolution,Op1,Op2,Op3,Op4,Op5,Op6,LearningRate,WeightDecay,Activation,epoch,test-acc,valid-acc\n"


def test_jahs_bench_201(tmp_path: Path) -> None:
    rng, lines = random.Random(0), []
    for _ in range(12):
        ops = ",".join(str(rng.randrange(5)) for _ in range(6))
        for lr in (0.11, 0.12, 0.9, 0.8):
            for epoch in (100, 200):
                lines.append(f"5,16,1.0,{ops},{lr},0.0005,ReLU,{epoch},{epoch / 4 + 10 * lr + rng.random()},50\n")
        lines.append(f"1,4,0.25,{ops},0.1,0.0005,ReLU,200,99,99\n")  # a smaller network
    # Edges by JAHS's order 1→2, 1→3, 1→4, 2→3, 2→4, 3→4; operations identity, zero, 3×3, 1×1, pooling.
    lines.append("5,16,1.0,0,1,2,3,4,0,0.1,0.0005,ReLU,200,77,50\n")
    file = tmp_path / "cifar10.csv"
    file.write_text(HEADER + "".join(lines))
    found = read_settings(f"jahs-bench-201:{file}")
    assert found is not None
    assert found.settings == ("lr 0.062, decay 0.00098", "lr 1, decay 0.00098")
    assert "1_02_341" in found.archs
    assert found.values.shape == (13, 2, 2)
    assert np.nanmax(found.values) == 77
    compared = compare_settings(found, bootstrap=20)
    assert compared.archs == 12
    assert compared.setting == found.settings[1]  # the higher rate
    file.write_text(HEADER.replace("Op6", "Op7") + "".join(lines))
    with pytest.raises(DataError, match="has no column Op6"):
        read_settings(f"jahs-bench-201:{file}")


# --- refusals and the command ---------------------------------------------------------------------------------------


def test_too_little_is_refused() -> None:
    names = ("a", "b")
    archs = tuple(map(str, range(30)))
    one = Settings("T", "test", archs, names, accuracies(30, 2, 1, 1.0))
    with pytest.raises(DataError, match="one seed a setting"):
        compare_settings(one)
    two = Settings("T", "test", archs, names, accuracies(30, 2, 2, 1.0))
    with pytest.raises(DataError, match="no setting 'c'; it has a, b"):
        compare_settings(two, "c")
    gaps = two.values.copy()
    gaps[4:, 1] = np.nan
    with pytest.raises(DataError, match="4 architectures have"):
        compare_settings(Settings("T", "test", archs, names, gaps))


def test_the_command(tmp_path: Path) -> None:
    nas_hpo(tmp_path)
    source = f"nas-hpo-bench-2:{tmp_path}"
    asked = ["rerank", "--benchmark", source, "--bootstrap", "20"]
    done = CliRunner().invoke(app, [*asked, "--json", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["archs"] == 30
    assert (tmp_path / "out" / "settings.json").exists()
    assert "Variance components" in CliRunner().invoke(app, asked).stdout
    for more, text in (
        (["--setting", "lr 7"], "no setting"),
        (["--column", "loss"], "has accuracies of test and valid"),
    ):
        refused = CliRunner().invoke(app, [*asked, *more])
        assert isinstance(refused.exception, DataError), refused.output
        assert text in str(refused.exception)


def test_a_name_too_long_for_a_file_is_no_file() -> None:
    for kind in ("nas-hpo-bench-2", "jahs-bench-201"):
        with pytest.raises(DataError, match=r"no such file|no bench12\.pkl"):
            read_settings(f"{kind}:{'a' * 300}.csv")
