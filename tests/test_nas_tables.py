"""Benchmark tables: what is read, and what is refused in one line."""

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagscale.bench.nas.tables import PUBLISHED_MAXIMA, from_api, from_columns, read_table
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201, published_order

ALL = published_order()
Columns = dict[str, list[Any]]


def columns(archs: tuple[Nb201, ...] = ALL, seeds: tuple[str, ...] = ("mean",)) -> Columns:
    """A made-up complete table: accuracies grow with the number of convolutions."""
    rng = random.Random(0)
    made: Columns = {"code": [], "dataset": [], "seed": [], "test_acc": []}
    for arch in archs:
        level = 20 + 10 * sum(op in (2, 3) for op in arch.ops)
        for seed in seeds:
            row = (arch.code, "cifar10", seed, level + rng.random())
            for name, value in zip(made, row, strict=True):
                made[name].append(value)
    return made


SOME = ALL[:40]


def write(made: Columns, path: Path) -> str:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([made, *zip(*made.values(), strict=True)])
    else:
        pa = pytest.importorskip("pyarrow")
        pa.parquet = pytest.importorskip("pyarrow.parquet")
        pa.parquet.write_table(pa.table(made), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_is_read_in_any_order_and_spelling(tmp_path: Path, suffix: str) -> None:
    made = columns(SOME, ("mean", "777"))
    made["arch_str"] = [Nb201.parse(code).arch_str for code in made["code"]]
    order = random.Random(1).sample(range(len(made["code"])), len(made["code"]))
    shuffled = {name: [values[i] for i in order] for name, values in made.items()}
    del shuffled["code"]
    table = read_table(write(shuffled, tmp_path / f"table{suffix}"))
    assert table.datasets == ("cifar10",)
    assert table.seeds("cifar10", "test_acc") == ("mean", "777")
    column = table.select()
    assert set(column.archs) == set(SOME)
    wanted = {code: v for code, s, v in zip(made["code"], made["seed"], made["test_acc"], strict=True) if s == "mean"}
    assert {a.code: v for a, v in zip(column.archs, column.values, strict=True)} == pytest.approx(wanted)


def test_what_is_missing_is_named() -> None:
    made = columns(SOME, ("mean", "777"))
    made["test_acc"][1] = None  # seed 777 of the first
    table = from_columns(made, "T")
    with pytest.raises(DataError, match=r"T: cifar10 test_acc seed 777 lacks 1 of 40 .*--partial"):
        table.select(seed="777")
    assert len(table.select(seed="777", partial=True).archs) == 39
    with pytest.raises(DataError, match=r"T has 40 architectures, not 15,625 \(the first missing is 0_00_000\)"):
        table.check_complete()
    for wrong, text in (({"dataset": "cifar"}, "no data set 'cifar'; it has cifar10"),
                        ({"column": "valid_acc"}, "no column for cifar10 'valid_acc'"),
                        ({"seed": "1"}, "no seed for cifar10 test_acc '1'; it has mean, 777")):  # fmt: skip
        with pytest.raises(DataError, match=text):
            table.select(**wrong)


def test_published_maxima_are_held_against_complete_tables_only() -> None:
    from_columns(columns(SOME), "T").check_published()
    made = columns()
    with pytest.raises(DataError, match=r"94\.3733 .*--unpublished"):
        from_columns(made, "T").check_published()
    best, index = PUBLISHED_MAXIMA["cifar10"]
    made["test_acc"][index] = best
    from_columns(made, "T").check_published()
    made["test_acc"][index], made["test_acc"][index + 1] = made["test_acc"][index + 1], best
    with pytest.raises(DataError, match="damaged"):  # rows out of step with their architectures
        from_columns(made, "T").check_published()


def damaged(change: Callable[[Columns], Any]) -> Columns:
    made = columns(SOME)
    change(made)
    return made


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (damaged(lambda m: m.pop("code")), "no column arch_str or code"),
        (damaged(lambda m: m.pop("seed")), "no column seed"),
        (damaged(lambda m: m.pop("test_acc")), "no column test_acc, valid_acc or valtest_acc"),
        (damaged(lambda m: m["code"].__setitem__(4, "3_35_131")), "row 5: architecture code '3_35_131': '5'"),
        (damaged(lambda m: m["code"].__setitem__(4, m["code"][3])), "rows 4 and 5 are both"),
        (damaged(lambda m: m.update(test_acc=[v / 100 for v in m["test_acc"]])), "give percent"),
        (damaged(lambda m: m["test_acc"].__setitem__(0, 101.0)), "101 is no percentage"),
        (damaged(lambda m: m["test_acc"].__setitem__(0, -3.0)), "-3 is no percentage"),
        (damaged(lambda m: m["test_acc"].__setitem__(2, "high")), "row 3: test_acc is 'high', not a number"),
        (damaged(lambda m: m["test_acc"].__setitem__(2, float("inf"))), "row 3: test_acc is infinite"),
        (damaged(lambda m: m["dataset"].__setitem__(1, None)), "row 2: dataset is empty"),
        (damaged(lambda m: m.update(test_acc=[None] * 40)), "no accuracies"),
        (damaged(lambda m: m.update(arch_index=list(range(1, 41)))), "row 1: code, arch_str and arch_index disagree"),
        (damaged(lambda m: [v.clear() for v in m.values()]), "no rows"),
    ],
)
def test_damage_is_one_clear_line(made: Columns, text: str) -> None:
    with pytest.raises(DataError) as caught:
        from_columns(made, "T")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("code,dataset\n3_33_333\n")
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (tmp_path / "c.csv").write_text("")
    (tmp_path / "d.json").write_text("{}")
    for name, text in (("a.csv", "line 2 has 1 fields"), ("b.parquet", "broken parquet"), ("c.csv", "is empty"),
                       ("d.json", "not .json"), ("e.csv", "no such file")):  # fmt: skip
        with pytest.raises(DataError, match=text):
            read_table(str(tmp_path / name))
    with pytest.raises(DataError, match="pip install nats_bench"):
        read_table("nats:somewhere")


class StandIn:
    """What the published NATS-Bench object answers, for a few architectures and made-up numbers.

    Test accuracies per trial; CIFAR-10's validation accuracy under ``cifar10-valid``; ``valtest-accuracy`` for the
    two other sets; ValueError for a trial that there is not.
    """

    def __init__(self, count: int = 6) -> None:
        self.archs = [arch.arch_str for arch in ALL[:count]]

    def __len__(self) -> int:
        return len(self.archs)

    def __getitem__(self, index: int) -> str:
        return self.archs[index]

    def get_more_info(
        self, index: int, dataset: str, iepoch: int | None = None, hp: str = "12", is_random: bool | int = True
    ) -> dict[str, Any]:
        assert hp == "200"
        if is_random is not False and (is_random == 999 or (is_random == 888 and index == 2)):
            raise ValueError(f"can not find random seed ({is_random}) from [777, 888]")
        value = 60.0 + index + (int(is_random) / 1000 if is_random is not False else 0.8)
        info: dict[str, Any] = {"train-accuracy": 99.0, "test-accuracy": value}
        if dataset != "cifar10":
            info["valid-accuracy"] = value - 10
        if dataset not in ("cifar10", "cifar10-valid"):
            info["valtest-accuracy"] = value - 5
        if dataset == "cifar10-valid":
            info["test-accuracy"] = value - 20
        return info


def test_the_official_object_is_read_through_its_interface() -> None:
    table = from_api(StandIn())
    assert table.datasets == ("cifar10", "cifar100", "ImageNet16-120")
    assert table.columns("cifar10") == ("test_acc", "valid_acc")
    assert table.columns("cifar100") == ("test_acc", "valid_acc", "valtest_acc")
    assert table.seeds("cifar10", "test_acc") == ("mean", "777", "888")
    place = [table.archs.index(arch) for arch in ALL[:6]]
    assert table.select("cifar10", "test_acc").values[place] == pytest.approx(60.8 + np.arange(6))
    assert table.select("cifar10", "valid_acc", "777").values[place] == pytest.approx(50.777 + np.arange(6))
    assert table.select("cifar100", "valtest_acc", "777").values[place] == pytest.approx(55.777 + np.arange(6))
    with pytest.raises(DataError, match="lacks 1 of 6"):
        table.select("cifar10", "test_acc", "888")
    with pytest.raises(DataError, match="does not answer as NATS-Bench does"):
        from_api([1, 2, 3])


def test_a_csv_file_may_begin_with_a_byte_order_mark_but_has_each_column_once(tmp_path: Path) -> None:
    text = "code,dataset,seed,test_acc\n1_11_111,cifar10,mean,90.0\n"
    (tmp_path / "marked.csv").write_text(text, encoding="utf-8-sig")
    assert len(read_table(str(tmp_path / "marked.csv")).archs) == 1
    (tmp_path / "twice.csv").write_text(text.replace("seed", "test_acc"))
    with pytest.raises(DataError, match="two columns 'test_acc'"):
        read_table(str(tmp_path / "twice.csv"))
