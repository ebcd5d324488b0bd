"""Re-ranking: statistics against brute force and against what was put in, and the command."""

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import dagscale.cli.rerank  # noqa: F401  puts the command on the application
from dagscale.bench.nas import rerank_page
from dagscale.bench.nas.agreement import GAPS, kendall, top
from dagscale.bench.nas.rerank import Report, read_picks, rerank
from dagscale.bench.nas.tables import Table, from_columns
from dagscale.cli.app import app
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201, published_order

SOME = tuple(a for a in published_order() if a.graph.has_path)[:400]
NOISE = 0.4


def table(name: str, values: Mapping[str, Any], archs: tuple[Nb201, ...] = SOME, column: str = "test_acc") -> Table:
    rows: dict[str, list[Any]] = {"code": [], "dataset": [], "seed": [], column: []}
    for seed, accuracies in values.items():
        for arch, value in zip(archs, accuracies, strict=True):
            for key, cell in zip(rows, (arch.code, "cifar10", seed, float(value)), strict=True):
                rows[key].append(cell)
    return from_columns(rows, name)


def trials(shift: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Three noisy trials of a true accuracy, uniform between 60 and 90, and their mean; the truth is fixed."""
    truth = 60 + 30 * np.random.default_rng(99).random(len(SOME))
    rng = np.random.default_rng(seed)
    own = {s: truth + shift + NOISE * rng.standard_normal(len(SOME)) for s in ("777", "888", "999")}
    return {"mean": np.mean(list(own.values()), axis=0), **own}


def run(a: Table, b: Table, **options: Any) -> Report:
    return rerank(a, b, **{"partial": True, "bootstrap": 30, **options})


def test_kendall_is_the_share_of_concordant_pairs() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(30), rng.random(30)
    signs = [np.sign((x[i] - x[j]) * (y[i] - y[j])) for i, j in itertools.combinations(range(30), 2)]
    assert kendall(x, y) == pytest.approx(np.mean(signs))
    assert np.isnan(kendall(x, np.ones(30)))


def test_top_takes_the_best_and_keeps_the_order_of_ties() -> None:
    x = np.array([3.0, 9.0, 5.0, 9.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert top(x, 20).tolist() == [1, 3]
    assert top(x, 30).tolist() == [1, 3, 2]
    assert top(x, 1).tolist() == [1]


def test_the_same_recipe_again_stays_within_the_noise_floor() -> None:
    """Two independent sets of trials of the same truth: no gain, and τ no lower than between single seeds."""
    report = run(table("A", trials()), table("B", trials(seed=1)))
    assert len(report.benchmark.archs) == len(SOME)
    everything = report.gains[0]
    # The mean of 400 differences of means of three has the standard deviation 0.4·sqrt(2/3/400) = 0.016.
    assert abs(everything.gain.value) < 5 * 0.016
    assert everything.gain.low is not None
    assert everything.gain.low < everything.gain.value < everything.gain.high  # type: ignore[operator]
    assert not [k for k, e in report.excess.items() if e.low is not None and e.low > 0]
    seeds = report.floors[0]
    assert seeds.label == "seed 777 against seed 888, test_acc"
    assert report.tau.taus[100].value > seeds.taus[100].value
    assert report.noise_std["seeds"] == pytest.approx(NOISE, rel=0.15)
    # Choosing the lucky ones: down when chosen by the benchmark, up when chosen by the new values.
    tops = {(g.top, g.chosen_by): g for g in report.gains}
    assert tops[10, "benchmark"].noise < 0 < tops[10, "against"].noise  # type: ignore[operator]


def test_a_new_ranking_is_below_the_noise_floor_and_a_gain_is_found() -> None:
    new = trials(shift=2.0, seed=1)
    new = {s: v + 4 * np.random.default_rng(5).standard_normal(len(SOME)) for s, v in new.items()}
    report = run(table("A", trials()), table("B", {s: np.clip(v, 0, 100) for s, v in new.items()}))
    assert {100, 50, 25} <= {k for k, e in report.excess.items() if e.low is not None and e.low > 0}
    gain = report.gains[0].gain
    assert gain.low is not None
    assert gain.high is not None
    assert gain.low < 2.0 + 0.25
    assert gain.high > 2.0 - 0.25
    assert gain.high - gain.low == pytest.approx(4 * 4 / np.sqrt(len(SOME)), rel=0.3)


def test_curves_are_kendall_over_the_top_by_the_benchmark() -> None:
    a, b = trials(), trials(seed=3)
    report = run(table("A", a), table("B", b))
    x, y = report.benchmark.values, report.against.values
    for k in (100, 40, 7):
        best = np.argsort(-x)[: round(len(x) * k / 100)]
        assert report.tau.taus[k].value == pytest.approx(kendall(x[best], y[best]))
        assert report.tau.taus[k].n == len(best)
    assert min(report.tau.taus) == 2  # 4 of 400 at 1 % are too few
    interval = report.tau.taus[100]
    assert interval.low is not None
    assert interval.low < interval.value < interval.high  # type: ignore[operator]


def test_isomorphic_architectures_are_a_noise_floor() -> None:
    report = run(table("A", {"mean": trials()["mean"]}), table("B", trials(seed=1)))
    # Here the truth differs between twins, so that this floor is the agreement of independent values: none.
    (twins,) = report.floors
    assert "isomorphic" in twins.label
    assert abs(twins.taus[100].value) < 0.5
    assert report.excess == {}
    assert any("no two seeds" in note for note in report.notes)


def test_pairs_change_order_by_distance() -> None:
    report = run(table("A", trials()), table("B", trials(seed=1)))
    x, y = report.benchmark.values, report.against.values
    i, j = np.triu_indices(len(x), 1)
    gap, flipped = np.abs(x[i] - x[j]), (x[i] - x[j]) * (y[i] - y[j]) < 0
    for g, (low, high) in zip(report.gaps, itertools.pairwise(GAPS), strict=False):
        inside = (gap > low) & (gap <= high)
        assert (g.pairs, g.flipped) == (inside.sum(), pytest.approx(flipped[inside].mean()))
    assert report.gaps[0].flipped > report.gaps[3].flipped  # type: ignore[operator]


def test_the_legend_says_where_pairs_are_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(table("A", trials()), table("B", trials(seed=1)))
    assert "random sample" not in " ".join(rerank_page.legend(report))  # 400 architectures make 79,800 pairs
    monkeypatch.setattr(rerank_page, "PAIRS", 500)
    assert "of a random sample of 500 pairs where there are more." in " ".join(rerank_page.legend(report))


def test_picks_change_places(tmp_path: Path) -> None:
    x = np.linspace(60, 90, len(SOME))
    y = x.copy()
    y[[0, 399]] = y[[399, 0]]
    (tmp_path / "picks.csv").write_text(f"method,arch\nA,{SOME[0].code}\nB,{SOME[399].arch_str}\nC,{SOME[7].code}\n")
    report = run(table("A", {"mean": x}), table("B", {"mean": y}), picks=read_picks(tmp_path / "picks.csv"))
    assert [(p.method, p.ranks) for p in report.picks] == [("A", (400, 1)), ("B", (1, 400)), ("C", (393, 393))]
    assert report.swapped == (("A", "B"), ("A", "C"), ("B", "C"))
    (tmp_path / "picks.csv").write_text("method,arch\nA,3_33\n")
    with pytest.raises(DataError, match="line 2"):
        read_picks(tmp_path / "picks.csv")


def test_what_cannot_be_compared_is_refused() -> None:
    a = table("A", trials())
    with pytest.raises(DataError, match="A has 400 architectures, not 15,625"):
        rerank(a, a)
    with pytest.raises(DataError, match="one and the same column"):
        run(a, a)
    few = table("B", {"mean": range(60, 64)}, SOME[:4])
    with pytest.raises(DataError, match="only 4 architectures"):
        run(a, few)
    flat = table("B", {"mean": [50.0] * len(SOME)})
    with pytest.raises(DataError, match="nothing to rank"):
        run(a, flat)
    part = table("B", {"mean": trials(seed=1)["mean"][:300]}, SOME[:300])
    report = run(a, part)
    assert len(report.benchmark.archs) == len(report.against.archs) == 300
    assert report.benchmark.archs == report.against.archs
    assert any("300" in note for note in report.notes)


def test_missing_architectures_are_refused_without_partial() -> None:
    everything = published_order()
    values = 50 + 40 * np.random.default_rng(0).random(len(everything))
    a = table("A", {"mean": values}, everything)
    b = table("B", {"mean": values[:-3]}, everything[:-3])
    with pytest.raises(DataError, match=r"B lacks 3 of the 15,625 architectures of A"):
        rerank(a, b)


def test_page_and_json_hold_everything(tmp_path: Path) -> None:
    report = run(table("A <&>", trials()), table("B", trials(seed=1)))
    written = rerank_page.write(report, tmp_path / "new" / "folder")
    page = written["html"].read_text()
    assert page.count("data:image/png;base64,") == 3
    assert 'src="http' not in page
    assert "A &lt;&amp;&gt;" in page
    assert "noise floor 1" in page
    document = json.loads(written["json"].read_text())
    assert document["tau"]["taus"]["100"]["value"] == report.tau.taus[100].value
    assert document["architectures"] == 400
    assert all(written[name].stat().st_size > 5000 for name in ("accuracy", "kendall", "pairs"))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    lines = ["code,dataset,seed,test_acc"]
    for arch in SOME[:120]:
        truth = rng.uniform(50, 90)
        lines += [f"{arch.code},cifar10,{s},{truth + rng.gauss(0, 0.5):.3f}" for s in ("mean", "777", "888")]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")

    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["rerank", "--benchmark", "t.csv", "--bootstrap", "20", *arguments])

    done = command("--against", "t.csv", "--against-seed", "777", "--partial", "--json", "--out", "out")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["against"]["seed"] == "777"
    assert sorted(document["files"]) == ["accuracy", "html", "json", "kendall", "pairs"]
    assert (tmp_path / "out" / "rerank.html").is_file()
    done = command("--against", "t.csv", "--against-seed", "888", "--partial")
    assert done.exit_code == 0, done.output
    assert "Kendall" in done.stdout
    for arguments, text in (
        (("--against", "t.csv", "--against-seed", "777"), "not 15,625"),
        (("--against", "t.csv", "--partial"), "one and the same column"),
        (("--against", "absent.csv", "--partial"), "no such file"),
    ):
        done = command(*arguments)
        assert isinstance(done.exception, DataError)
        assert text in str(done.exception)
        assert "\n" not in str(done.exception)
        assert done.stdout == ""
