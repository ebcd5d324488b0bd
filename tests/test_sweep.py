"""The sweep engine: runs as values, the store, resuming, failures, export, and what it says when it cannot go on."""

import csv
import importlib
import json
import math
import os
import pickle
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import dagscale
from dagscale.bench.sweep import Run, Store, code_version, export, sweep
from dagscale.bench.sweep import engine as engine_module
from dagscale.bench.sweep import store as store_module
from dagscale.bench.sweep import workers as workers_module
from dagscale.bench.sweep.run import decode, encode
from dagscale.cli.sweep import sweep_app
from dagscale.errors import DataError, SweepError

EXECUTED: list[str] = []


def execute(run: Run) -> Mapping[str, Any]:
    """Quick, and different for every run."""
    EXECUTED.append(run.key)
    if run.options.get("fails"):
        raise ValueError(f"seed {run.seed}\nfails")
    return {"loss": run.lr * run.seed, "drawn": float(torch.rand(())), "curve": [run.lr, math.inf], "worst": math.nan}


def several(count: int = 12, version: str = "v", **fields: Any) -> list[Run]:
    return [Run(f"mlp:2_{k % 3}2", 2.0**-k, seed=k, version=version, **fields) for k in range(count)]


def one_line(error: pytest.ExceptionInfo[SweepError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.fixture(autouse=True)
def _fresh() -> None:
    EXECUTED.clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sweep.db"


def table(file: Path, suffix: str = ".csv") -> bytes:
    out = file.with_suffix(suffix)
    export(file, out)
    return out.read_bytes()


# --- runs


def test_a_run_is_its_fields() -> None:
    run = Run("mlp:2", 1, options={"b": (1, 2), "a": math.inf}, version="v")
    same = Run("mlp:2", 1.0, options={"a": math.inf, "b": [1, 2]}, version="v")
    assert run == same
    assert run.key == same.key
    assert {run: "found"}[same] == "found"
    assert pickle.loads(pickle.dumps(run)) == run == Run.from_json(run.json)
    others = [Run("mlp:2", 1.0, version="w"), Run("mlp:2", 1.0, seed=1, version="v"), Run("mlp:2", 2.0, version="v")]
    assert len({run.key, *(other.key for other in others)}) == 4


def test_keys_do_not_change_between_releases() -> None:
    assert Run("mlp:2_02_002", 0.1, options={"width": 64}, version="v").key == (
        "07ffca58b68330ce0207780333ee6ed0f6084696d3da29e10733bd12499e4e75"
    )


@pytest.mark.parametrize(
    "fields",
    [{"lr": math.nan}, {"lr": "fast"}, {"options": {1: 2}}, {"options": {"x": object()}}, {"architecture": "\ud800"}],
)
def test_what_is_no_plain_data_is_no_run(fields: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=r"plain data|finite"):
        Run(**{"architecture": "mlp:2", "lr": 1.0, **fields})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_data_survives(value: Any) -> None:
    text = encode(value)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert decode(text) == value


def test_nan_survives() -> None:
    assert math.isnan(decode(encode({"x": [math.nan]}))["x"][0])


def test_code_version_names_package_sources_and_torch() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\+[0-9a-f]{12}\.torch\.\S+", code_version())
    assert Run("mlp:2", 1.0).version == code_version()


def test_code_version_without_a_part_outlives_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "dagscale"
    shutil.copytree(Path(dagscale.__file__).parent, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(dagscale, "__file__", str(root / "__init__.py"))
    fresh = code_version.__wrapped__
    whole, part = fresh(), fresh("AFFECTS_TRAINING")
    (root / "laws" / "none.py").write_text("changed")
    assert fresh() != whole
    assert fresh("AFFECTS_TRAINING") == part
    (root / "training" / "engine.py").write_text("changed")
    assert fresh("AFFECTS_TRAINING") != part


# --- sweeping


def test_every_run_once(file: Path) -> None:
    runs = several()
    done = sweep((*runs, *runs[:4]), execute, file, jobs=1)
    assert (done.total, done.finished, done.failed, done.executed, done.duplicates) == (12, 12, 0, 12, 4)
    assert done.ok
    assert sorted(EXECUTED) == sorted(run.key for run in runs)
    again = sweep([*runs, *several(14)[12:]], execute, file, jobs=1)
    assert (again.finished, again.executed) == (14, 2)
    assert len(EXECUTED) == 14
    assert str(again) == "14 of 14 runs finished, 0 failed (2 executed now)"


def test_a_transaction_that_is_let_go_of_after_its_store_has_closed_says_nothing(file: Path) -> None:
    """As when an interrupt ends a sweep: its frames live as long as the exception, and the store is closed before."""
    store = Store(file, write=True)
    begun = store._transaction()
    begun.__enter__().execute("DELETE FROM runs")
    store.__exit__(None, None, None)
    begun.gen.close()  # type: ignore[attr-defined]
    with Store(file, write=True):
        pass


def test_results_are_read_back_by_run(file: Path) -> None:
    runs = several(3)
    sweep(runs[:2], execute, file, jobs=1)
    with Store(file) as store:
        (_, first), (_, second), (_, missing) = store.results(runs)
    assert missing is None
    assert math.isnan(first.pop("worst"))
    assert second["loss"] == 0.5
    assert second["curve"] == [0.5, math.inf]


def test_the_table_depends_on_neither_order_nor_interruptions(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.db", tmp_path / "pieces.db"
    runs = several(20)
    sweep(runs, execute, whole, jobs=1)
    random.Random(0).shuffle(runs)
    for start in range(0, 20, 7):
        torch.rand(start + 1)
        sweep(runs[start : start + 7], execute, pieces, jobs=1)
    assert table(whole) == table(pieces)
    assert table(whole, ".parquet") == table(pieces, ".parquet")


def test_the_callers_random_states_and_threads_stay(file: Path) -> None:
    torch.manual_seed(3)
    random.seed(3)
    expected, threads = (torch.rand(2).tolist(), random.random()), torch.get_num_threads()
    torch.manual_seed(3)
    random.seed(3)
    sweep(several(2), execute, file, jobs=1)
    assert (torch.rand(2).tolist(), random.random()) == expected
    assert torch.get_num_threads() == threads


def test_a_failing_run_stops_nothing_and_is_kept_with_its_error(file: Path) -> None:
    runs = [*several(3), *several(2, options={"fails": True}), *several(5)[3:]]
    done = sweep(runs, execute, file, jobs=1)
    assert (done.finished, done.failed, done.ok) == (5, 2, False)
    assert sweep(runs, execute, file, jobs=1).executed == 0
    assert sweep(runs, execute, file, jobs=1, retry_failed=True).executed == 2
    with Store(file) as store:
        assert store.status().errors == {"ValueError: seed 0 fails": 1, "ValueError: seed 1 fails": 1}
        error = next(error for _, _, state, _, error, _ in store.rows() if state == "failed" and error)
    assert "raise ValueError" in decode(error)["traceback"]
    rows = list(csv.DictReader(table(file).decode().splitlines()))
    assert sorted(row["error"] for row in rows if row["state"] == "failed") == [
        "ValueError: seed 0 fails",
        "ValueError: seed 1 fails",
    ]


def mended(run: Run) -> Mapping[str, Any]:
    return {"loss": 1.0}


def test_a_failed_run_may_finish_later(file: Path) -> None:
    runs = several(2, options={"fails": True})
    sweep(runs, execute, file, jobs=1)
    assert sweep(runs, mended, file, jobs=1, retry_failed=True).ok
    with Store(file) as store:
        assert store.status().errors == {}


@pytest.mark.parametrize("result", [None, {"x": object()}, {1: 2}, {"x": torch.tensor(1.0)}, {"x": "\ud800"}])
def test_a_result_that_is_no_plain_data_is_a_failure(file: Path, result: Any) -> None:
    assert sweep(several(1), lambda run: result, file, jobs=1).failed == 1


def leave(run: Run) -> Mapping[str, Any]:
    raise SystemExit(3)


def test_a_run_that_exits_is_a_failure(file: Path) -> None:
    assert sweep(several(2), leave, file, jobs=1).failed == 2


def test_results_of_another_code_version_are_kept_apart(file: Path) -> None:
    sweep(several(4, "1"), execute, file, jobs=1)
    assert sweep(several(3, "2"), execute, file, jobs=1).executed == 3
    with Store(file) as store:
        status = store.status()
    assert {name: counts.finished for name, counts in status.by_version.items()} == {"1": 4, "2": 3}
    with pytest.raises(SweepError, match="2 versions of the code") as error:
        export(file, file.with_suffix(".csv"))
    one_line(error)
    assert export(file, file.with_suffix(".csv"), version="1") == 4
    assert export(file, file.with_suffix(".csv"), version="all") == 7
    with pytest.raises(SweepError, match="no results of version 3"):
        export(file, file.with_suffix(".csv"), version="3")


def test_a_worker_with_other_code_is_refused() -> None:
    with pytest.raises(SweepError, match="same code"):
        workers_module.attempt(execute, "0" * 64, several(1)[0].json, "0.0.0+other")


def test_nothing_is_asked_when_the_runs_end_in_an_error(file: Path) -> None:
    def broken() -> Iterator[Run]:
        yield from several(3)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        sweep(broken(), execute, file, jobs=1)
    with Store(file) as store:
        assert store.status().counts.total == 0
    with pytest.raises(SweepError, match="not str"):
        sweep(["mlp:2"], execute, file, jobs=1)  # type: ignore[list-item]


def test_progress_counts_failures(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagscale.progress.LINES_APART", 0.0)
    sweep([*several(3), *several(2, options={"fails": True})], execute, file, jobs=1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("dagscale: sweeping: 2 failed, 5 of 5, ")


# --- the file


def test_foreign_files_are_refused_and_left_alone(file: Path) -> None:
    for content in (b"not a database", b"x" * 5000, b"SQLite format 3\0"):
        file.write_bytes(content)
        for write in (False, True):
            with pytest.raises(SweepError, match="no store of a sweep") as error:
                Store(file, write=write)
            one_line(error)
        assert file.read_bytes() == content
        assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_another_programs_database_is_refused_and_left_alone(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE runs (key TEXT)")
    connection.close()
    content = file.read_bytes()
    with pytest.raises(SweepError, match="another program"):
        sweep(several(1), execute, file, jobs=1)
    assert file.read_bytes() == content


@pytest.mark.parametrize(("schema", "which"), [(3, "newer"), (0, "older")])
def test_another_schema_is_refused(file: Path, schema: int, which: str) -> None:
    sweep(several(1), execute, file, jobs=1)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {schema}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with pytest.raises(SweepError, match=f"reads schema 2: use the {which}"):
        sweep(several(1), execute, file, jobs=1)


def test_a_damaged_store_is_refused_and_left_alone(file: Path) -> None:
    sweep(several(200), execute, file, jobs=1)
    content = bytearray(file.read_bytes())
    content[4096 * 3 : 4096 * 5] = random.Random(0).randbytes(4096 * 2)
    for damaged in (bytes(content), bytes(content[: len(content) // 2])):
        file.write_bytes(damaged)
        with pytest.raises(SweepError, match="is damaged") as error:
            sweep(several(300), execute, file, jobs=1)
        one_line(error)
        assert file.read_bytes() == damaged


def test_an_empty_file_is_a_new_store(file: Path) -> None:
    file.touch()
    with pytest.raises(SweepError):
        Store(file)
    assert sweep(several(1), execute, file, jobs=1).ok


def test_no_file_no_folder(file: Path) -> None:
    with pytest.raises(SweepError, match="no store at"):
        Store(file)
    with pytest.raises(SweepError, match="its folder exists") as error:
        sweep(several(1), execute, file.parent / "missing" / "sweep.db", jobs=1)
    one_line(error)


def test_two_sweeps_do_not_share_a_file_but_anyone_may_read_it(file: Path) -> None:
    with Store(file, write=True) as store:
        store.ask(several(3))
        with pytest.raises(SweepError, match="another process is sweeping") as error:
            sweep(several(1), execute, file, jobs=1)
        one_line(error)
        with Store(file) as reader:
            assert reader.status().counts.pending == 3
    assert sweep(several(1), execute, file, jobs=1).ok


def test_a_full_disk_loses_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file.with_name("whole.db")
    runs = several(60)
    sweep(runs, wide, whole, jobs=1)
    connect = store_module._connect

    def small(path: Path, write: bool) -> sqlite3.Connection:
        connection = connect(path, write)
        connection.execute("PRAGMA max_page_count = 40")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_connect", small)
        with pytest.raises(SweepError, match="no space left") as error:
            sweep(runs, wide, file, jobs=1)
        one_line(error)
    with Store(file) as store:
        kept = store.status().counts.finished
    assert 0 < kept < 60
    assert sweep(runs, wide, file, jobs=1).executed == 60 - kept
    assert table(file) == table(whole)


def wide(run: Run) -> Mapping[str, Any]:
    return {"text": f"{run.seed:08d}" * 300}


@pytest.mark.parametrize(
    ("cause", "mend"),
    [
        ("database or disk is full", "free some"),
        ("attempt to write a readonly database", "make the file and its folder writable"),
        ("database is locked", "close that"),
        ("unable to open database file", "its folder exists"),
        ("database disk image is malformed", "restore a copy"),
        ("disk I/O error", "the disk is sound"),
    ],
)
def test_every_cause_has_its_mend(cause: str, mend: str) -> None:
    text = store_module.explain(Path("sweep.db"), sqlite3.OperationalError(cause))
    assert mend in text
    assert "sweep.db" in text
    assert "\n" not in text


# --- tables


def test_columns_have_the_kind_of_their_values(file: Path) -> None:
    results: list[Mapping[str, Any]] = [
        {"whole": 1, "mixed": 1, "real": math.nan, "list": [1], "truth": True, "either": "a", "huge": 1, "none": None},
        {"whole": 2, "mixed": 0.5, "real": -math.inf, "list": {"a": math.inf}, "either": 1, "huge": 2**70, "more": "é"},
    ]
    sweep(several(2, options={"width": 64}), lambda run: results[run.seed], file, jobs=1)
    rows = pyarrow.parquet.read_table(_parquet(file)).sort_by("seed").to_pylist()
    assert next(iter(rows[0])) == "key"
    assert list(rows[0])[1:3] == ["architecture", "lr"]
    assert "seconds" not in rows[0]
    got = [{name[7:]: value for name, value in row.items() if name.startswith("result.")} for row in rows]
    assert math.isnan(got[0].pop("real"))
    assert got[0] == {
        "either": '"a"', "huge": "1", "list": "[1]", "mixed": 1.0, "more": None, "none": None,
        "truth": True, "whole": 1,
    }  # fmt: skip
    assert got[1] == {
        "either": "1", "huge": str(2**70), "list": '{"a":{"$float":"inf"}}', "mixed": 0.5, "more": "é", "none": None,
        "real": -math.inf, "truth": None, "whole": 2,
    }  # fmt: skip
    assert rows[0]["options.width"] == 64
    text = list(csv.DictReader(table(file).decode().splitlines()))
    assert {row["result.real"] for row in text} == {"nan", "-inf"}
    assert {row["result.truth"] for row in text} == {"true", ""}


def _parquet(file: Path) -> Path:
    export(file, file.with_suffix(".parquet"))
    return file.with_suffix(".parquet")


def test_a_table_that_cannot_be_written(file: Path) -> None:
    with Store(file, write=True) as store:
        store.ask(several(1))
    with pytest.raises(SweepError, match="no results yet"):
        export(file, file.with_suffix(".csv"))
    sweep(several(1), execute, file, jobs=1)
    with pytest.raises(SweepError, match=r"\.parquet or \.csv"):
        export(file, file.with_suffix(".xlsx"))
    for suffix in (".csv", ".parquet"):
        with pytest.raises(SweepError, match="cannot write") as error:
            export(file, file.parent / "missing" / f"out{suffix}")
        one_line(error)


def test_a_table_is_of_one_moment(file: Path) -> None:
    runs = several(4)
    sweep(runs[:2], execute, file, jobs=1)
    with Store(file) as reader, reader.snapshot():
        assert len(list(reader.rows())) == 2
        sweep(runs, execute, file, jobs=1)
        assert len(list(reader.rows())) == 2
    assert export(file, file.with_suffix(".csv")) == 4


def test_a_disk_that_fills_while_a_table_is_written(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(several(4), execute, file, jobs=1)
    before = table(file)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importlib.import_module("dagscale.bench.sweep.exporting"), "_value", full)
    with pytest.raises(SweepError, match=r"cannot write .*No space left"):
        export(file, file.with_suffix(".csv"))
    assert file.with_suffix(".csv").read_bytes() == before
    assert {path.suffix for path in file.parent.iterdir()} == {".db", ".lock", ".csv"}


# --- workers


def test_jobs_must_be_some(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match="jobs must not be 0"):
        sweep(several(1), execute, file, jobs=0)
    for many in (4096, 10**30):
        with pytest.raises(SweepError, match=r"jobs .*this machine has .* give at most") as error:
            sweep(several(1), execute, file, jobs=many)
        one_line(error)
    with pytest.raises(SweepError, match="jobs must be a whole number"):
        sweep(several(1), execute, file, jobs=1.5)  # type: ignore[arg-type]
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "x")
    with pytest.raises(SweepError, match="LOKY_MAX_CPU_COUNT is no number") as error:
        sweep(several(1), execute, file)
    one_line(error)
    assert not file.exists()


def test_a_scheduler_out_of_reach(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "CONNECT", 0.5)
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(SweepError, match="no Dask scheduler at") as error:
            sweep(several(1), execute, file, scheduler=address)
        one_line(error)
    sweep(several(1), execute, file, jobs=1)
    assert sweep(several(1), execute, file, scheduler="tcp://127.0.0.1:1").ok, "nothing to do needs no scheduler"


MODULE = """
import os
import time
import torch

def execute(run):
    if "log" in run.options:
        with open(run.options["log"], "a") as log:
            print(run.seed, file=log)
    if run.options.get("crash"):
        os._exit(3)
    if "nap" in run.options:
        time.sleep(run.options["nap"])
    if run.options.get("fails"):
        raise ValueError("boom")
    return {"drawn": float(torch.rand(())), "threads": torch.get_num_threads()}

def elsewhere(run):
    return {"pid": os.getpid()}
"""


@pytest.mark.slow
def test_processes_do_what_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import sweep_user  # type: ignore[import-not-found]

    runs = [*several(), *several(3, options={"fails": True})]
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    sweep(runs, sweep_user.execute, one, jobs=1)
    assert sweep(runs, sweep_user.execute, two, jobs=2).failed == 3
    assert table(one) == table(two)


@pytest.mark.slow
def test_a_run_that_kills_its_worker_fails_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep_crash.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import sweep_crash  # type: ignore[import-not-found]

    log = tmp_path / "log"
    beside = several(1, options={"nap": 4.0, "log": str(log)})
    runs = [*beside, *several(1, options={"crash": True}), *several(7)]
    done = sweep(runs, sweep_crash.execute, tmp_path / "sweep.db", jobs=2)
    assert (done.finished, done.failed) == (8, 1)
    assert log.read_text() == "0\n", "the run beside it was executed again"
    with Store(tmp_path / "sweep.db") as store:
        assert next(iter(store.status().errors)).startswith("WorkerLost: every worker that tried it died")


class Dying(workers_module.Here):
    """Two workers, which die of the runs of some seeds: always, or once."""

    lost = (ChildProcessError,)
    patience = 3

    def __init__(self, always: Container[int] = (), once: Container[int] = ()) -> None:
        self.always, self.once, self.died = always, once, Counter[int]()

    def width(self) -> int:
        return 2

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        seed = Run.from_json(arguments[2]).seed
        if seed in self.always or (seed in self.once and not self.died[seed]):
            self.died[seed] += 1
            future: Future[Any] = Future()
            future.set_exception(ChildProcessError())
            return future
        return super().submit(function, *arguments)


def test_only_a_run_that_kills_its_workers_again_and_again_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Dying(always={3, 11}, once=range(20))
    monkeypatch.setattr(engine_module, "open_pool", lambda *_: pool)
    done = sweep(several(12), execute, file)
    assert (done.finished, done.failed) == (10, 2)
    assert pool.died == {k: 3 if k in (3, 11) else 1 for k in range(12)}


def test_no_run_fails_where_no_worker_can_live(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(several(2), execute, file, jobs=1)
    pool = Dying(always=range(40))
    monkeypatch.setattr(engine_module, "open_pool", lambda *_: pool)
    with pytest.raises(SweepError, match=r"18 workers died one after the other.* jobs=1; what is finished is kept"):
        sweep(several(40), execute, file)
    with Store(file) as store:
        assert (store.status().counts.finished, store.status().counts.failed) == (2, 0)


@pytest.mark.slow
def test_workers_that_cannot_import_the_function(tmp_path: Path) -> None:
    (tmp_path / "sweep_hidden.py").write_text(MODULE)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sweep_hidden; sys.path.pop(0)\n"
        "from dagscale.bench.sweep import Run, sweep\n"
        f"sweep([Run('mlp:2', 1.0)], sweep_hidden.execute, {str(tmp_path / 'sweep.db')!r}, jobs=2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "SweepError: a run could not be sent to a worker" in done.stderr.splitlines()[-1]


# --- command line


def test_status_and_export(file: Path) -> None:
    sweep([*several(3), *several(1, options={"fails": True})], execute, file, jobs=1)
    runner = CliRunner()
    got = json.loads(runner.invoke(sweep_app, ["status", str(file), "--json"]).stdout)
    assert {name: got[name] for name in ("total", "finished", "failed", "pending")} == {
        "total": 4, "finished": 3, "failed": 1, "pending": 0,
    }  # fmt: skip
    assert got["by_architecture"]["mlp:2_02"] == {"total": 2, "finished": 1, "failed": 1, "pending": 0}
    assert got["by_version"]["v"]["total"] == 4
    assert got["errors"] == {"ValueError: seed 0 fails": 1}
    shown = runner.invoke(sweep_app, ["status", str(file)]).stdout
    assert "by architecture" in shown
    assert "1 × ValueError: seed 0 fails" in shown
    out = file.with_suffix(".parquet")
    assert json.loads(runner.invoke(sweep_app, ["export", str(file), str(out), "--json"]).stdout)["rows"] == 4
    assert runner.invoke(sweep_app, ["export", str(file), str(out), "--timing"]).exit_code == 0
    assert min(pyarrow.parquet.read_table(out)["seconds"].to_pylist()) > 0
    refused = runner.invoke(sweep_app, ["status", str(file.with_name("none.db"))])
    assert isinstance(refused.exception, SweepError)


# --- one writer, and the file that was opened


def interrupted_by(file: Path, what: Callable[[], None]) -> Callable[[Run], Mapping[str, Any]]:
    """Executes runs; at the tenth, something happens to the file."""

    def run(run: Run) -> Mapping[str, Any]:
        if run.seed == 9:
            what()
        return execute(run)

    return run


def test_one_writer_however_the_path_is_spelled(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(several(1), execute, file, jobs=1)
    (file.parent / "folder").symlink_to(file.parent)
    (file.parent / "link.db").symlink_to(file)
    monkeypatch.chdir(file.parent)
    with Store(file, write=True):
        for other in ("sweep.db", "./folder/sweep.db", "link.db", "folder/link.db"):
            with pytest.raises(SweepError, match="another process is sweeping") as error:
                sweep(several(1), execute, other, jobs=1)
            one_line(error)
        (file.parent / "hard.db").hardlink_to(file)
        with pytest.raises(SweepError, match="2 names"):
            sweep(several(1), execute, "hard.db", jobs=1)
    with pytest.raises(SweepError, match=r"hard links.*remove the others"):
        sweep(several(1), execute, file, jobs=1)
    with Store("hard.db") as store:
        assert store.status().counts.finished == 1
    (file.parent / "hard.db").unlink()
    assert sweep(several(3), execute, "link.db", jobs=1).executed == 2
    assert not (file.parent / "link.db.lock").exists()


def test_a_reader_in_the_same_process_does_not_lift_the_writers_locks(file: Path) -> None:
    with Store(file, write=True) as store:
        store.ask(several(3))
        with Store(file):
            pass
        code = f"from dagscale.bench.sweep import Store; Store({str(file)!r}).close()"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert file.with_name("sweep.db-wal").exists(), "another process took itself for the last one"


@pytest.mark.parametrize(
    "what", ["removed", "replaced", "emptied", "overwritten", "its folder", "journal", "journal gone"]
)
def test_results_are_kept_when_the_file_is_taken_away(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = folder / "sweep.db"
    journal = folder / "sweep.db-wal"
    deeds: dict[str, Callable[[], object]] = {
        "removed": file.unlink,
        "replaced": lambda: (file.unlink(), file.write_bytes(b"another")),
        "emptied": lambda: os.truncate(file, 0),
        "overwritten": lambda: file.write_bytes(b"x" * 50_000),
        "its folder": lambda: shutil.rmtree(folder),
        "journal": lambda: os.truncate(journal, 0),
        "journal gone": journal.unlink,
    }
    runs = several(20)
    with pytest.raises(SweepError, match="while it was in use: all its results are in") as error:
        sweep(runs, interrupted_by(file, deeds[what]), file, jobs=1)  # type: ignore[arg-type]
    kept = Path(one_line(error).partition(" are in ")[2].partition(";")[0])
    before = len(EXECUTED)
    again = sweep(runs, execute, kept, jobs=1)
    assert again.finished == 20
    assert again.executed == 20 - before, "a finished run was executed again"
    kept.unlink()


def test_no_flipped_bit_passes_unseen(file: Path) -> None:
    sweep([*several(20), *several(3, options={"fails": True})], execute, file, jobs=1)
    content, good = file.read_bytes(), (table(file), table(file, ".parquet"))
    chance, seen, unseen = random.Random(0), 0, 0
    for _ in range(150):
        flipped = bytearray(content)
        at = chance.randrange(len(content))
        flipped[at] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        try:
            with Store(file) as store:
                store.status()
            assert (table(file), table(file, ".parquet")) == good, f"byte {at} changed the table unseen"
        except SweepError as error:
            seen += "\n" not in str(error)
        else:
            unseen += 1
    assert seen > 50
    assert seen + unseen == 150, "some message has several lines"


EDITS = [
    "UPDATE runs SET result = '{\"loss\":1.0}' WHERE rowid = 1",
    "UPDATE runs SET result = 'no json' WHERE rowid = 1",
    "UPDATE runs SET result = x'80044e2e' WHERE rowid = 1",
    "UPDATE runs SET seconds = 'long' WHERE rowid = 1",
    "UPDATE runs SET error = '[]' WHERE state = 'failed'",
    "UPDATE runs SET run = '{}' WHERE rowid = 1",
    "UPDATE runs SET state = 'failed' WHERE rowid = 1",
    "UPDATE runs SET digest = '' WHERE rowid = 1",
    "ALTER TABLE runs ADD COLUMN more",
    "CREATE TRIGGER own AFTER UPDATE ON runs BEGIN DELETE FROM runs; END",
    "DROP INDEX runs_by_version",
]


@pytest.mark.parametrize("edit", EDITS)
def test_a_store_edited_by_hand_is_refused_in_one_line(file: Path, edit: str) -> None:
    sweep([*several(3), *several(1, options={"fails": True})], execute, file, jobs=1)
    connection = sqlite3.connect(file)
    connection.execute(edit)
    connection.commit()
    connection.close()
    with pytest.raises(SweepError, match=r"is damaged .*: restore a copy") as error:
        export(file, file.with_suffix(".csv"))
    one_line(error)


def test_the_mend_that_is_named_for_a_damaged_run_works(file: Path) -> None:
    runs = several(5)
    sweep(runs, execute, file, jobs=1)
    whole = table(file)
    connection = sqlite3.connect(file)
    connection.execute("UPDATE runs SET result = 'x' WHERE rowid = 2")
    connection.commit()
    with pytest.raises(SweepError) as error:
        table(file)
    connection.execute(one_line(error).partition('"')[2].rstrip('"'))
    connection.commit()
    connection.close()
    assert sweep(runs, execute, file, jobs=1).executed == 1
    assert table(file) == whole


def older(file: Path) -> None:
    """Turn a store into one of schema 1, which had no digests."""
    connection = sqlite3.connect(file)
    connection.executescript(
        f"DROP INDEX runs_by_version; ALTER TABLE runs RENAME TO new; {store_module.WITHOUT}; INSERT INTO runs SELECT "
        f"{store_module.COLUMNS} FROM new; DROP TABLE new; {store_module.INDEX}; PRAGMA user_version = 1; VACUUM;"
    )
    connection.close()


def test_a_store_without_digests_is_read_and_gets_them_when_it_is_written(file: Path) -> None:
    runs = [*several(5), *several(1, options={"fails": True})]
    sweep(runs, execute, file, jobs=1)
    whole = table(file)
    older(file)
    assert table(file) == whole
    assert "without checksums" in CliRunner().invoke(sweep_app, ["status", str(file)]).stdout
    assert sweep(runs, execute, file, jobs=1).executed == 0
    with Store(file) as store:
        assert store.checked
    assert table(file) == whole
    older(file)
    connection = sqlite3.connect(file)
    connection.execute("UPDATE runs SET error = '[]' WHERE state = 'failed'")
    connection.commit()
    connection.close()
    content = file.read_bytes()
    for look in (lambda: table(file), lambda: sweep(runs, execute, file, jobs=1)):
        with pytest.raises(SweepError, match="is damaged"):
            look()
    assert file.read_bytes() == content


# --- faults that all share


def without_data(run: Run) -> Mapping[str, Any]:
    if run.seed == 3:
        raise DataError("no data at 'x'")
    return execute(run)


def test_a_fault_that_all_runs_share_ends_the_sweep_and_is_no_result(file: Path) -> None:
    with pytest.raises(SweepError, match=r"no data at 'x' .*none is recorded.*call again") as error:
        sweep(several(), without_data, file, jobs=1)
    one_line(error)
    with Store(file) as store:
        counts = store.status().counts
    assert (counts.finished, counts.failed) == (3, 0)
    assert sweep(several(), execute, file, jobs=1).executed == 9


@pytest.mark.slow
def test_a_shared_fault_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sweep_gone.py").write_text(
        "from dagscale.errors import DataError\ndef execute(run):\n    raise DataError('gone')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import sweep_gone  # type: ignore[import-not-found]

    with pytest.raises(SweepError, match="gone"):
        sweep(several(), sweep_gone.execute, tmp_path / "s.db", jobs=2)
    with Store(tmp_path / "s.db") as store:
        assert store.status().counts.failed == 0


# --- text and files of others


def test_cells_that_a_spreadsheet_would_calculate_are_text(file: Path) -> None:
    sweep(several(1), lambda run: {"=name": "=cmd()", "plus": "+1", "low": -1.5, "esc": "\x1b[31m→"}, file, jobs=1)
    (row,) = csv.DictReader(table(file).decode().splitlines())
    assert (row["result.=name"], row["result.plus"], row["result.low"]) == ("'=cmd()", "'+1", "-1.5")
    (exact,) = pyarrow.parquet.read_table(_parquet(file)).to_pylist()
    assert row["result.esc"] == r"\x1b[31m→", "what would steer a terminal is shown escaped"
    assert (exact["result.=name"], exact["result.esc"]) == ("=cmd()", "\x1b[31m→")


def test_names_are_no_markup(file: Path) -> None:
    names = ["[/red]", "[bold]x[/bold]", "\x1b[31m"]
    sweep([Run(f"mlp:{name}", 1.0, version=name) for name in names], execute, file, jobs=1)
    shown = CliRunner().invoke(sweep_app, ["status", str(file)])
    assert shown.exit_code == 0, shown.output
    for name in ("mlp:[/red]", "mlp:[bold]x[/bold]", r"mlp:\x1b[31m"):
        assert name in shown.stdout


def test_no_link_is_followed_when_a_table_is_written(file: Path) -> None:
    sweep(several(2), execute, file, jobs=1)
    precious = file.with_name("precious")
    precious.write_text("mine")
    out = file.with_suffix(".csv")
    out.symlink_to(precious)
    file.with_name(f".{out.name}.{os.getpid()}").symlink_to(precious)
    export(file, out)
    assert precious.read_text() == "mine"
    assert not out.is_symlink()


def test_the_first_progress_bar_leaves_pythons_random_state_alone(tmp_path: Path) -> None:
    code = (
        "import random\nfrom dagscale.bench.sweep import Run, sweep\nrandom.seed(1)\nbefore = random.getstate()\n"
        f"sweep([Run('mlp:2', 1.0)], lambda run: {{}}, {str(tmp_path / 's.db')!r}, jobs=1, progress=True)\n"
        "assert random.getstate() == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
