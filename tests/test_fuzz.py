"""Hostile input to the command line: never a traceback, a hang, much memory, or more than one line of complaint.

A short fixed share runs with the other tests. ``make fuzz SECONDS=600`` goes on for as long as is wished, with new
inputs.
"""

import importlib.util
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import dagscale
from dagscale import replacing
from dagscale.graph.text import FORMATS
from dagscale.shown import HIDDEN


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


def sound(call: Any, folder: Path) -> Any:
    """What a call comes to, in which nothing is wrong that the oracle knows of."""
    done = oracle.run(call, folder)
    assert oracle.fault(done) is None, oracle.report(done)
    return done


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
            sound(surfaces.SURFACES[name](data.draw, Path(folder)), Path(folder))

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
    done = sound(["inspect", "m.py:make", shown], tmp_path)
    assert done.status == 0
    assert '"parameters"' in done.out if shown == "--json" else "parameters" in done.out


def test_a_model_that_ends_the_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import sys, torch\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n        sys.exit('a\\nb')\n"
        "def make():\n    return Net(4, 3), torch.ones(2, 4)\n"
    )
    done = sound(["inspect", "m.py:make", "--json"], tmp_path)
    assert (done.status, "SystemExit" in done.err) == (2, True)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def half_gigabyte(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 29)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def tokenizer_folder(path: Path) -> None:
    path.mkdir()
    (path / "tokenizer.json").symlink_to("/proc/kmsg")
    (path.parent / "a.txt").write_text("Once upon a time. " * 9)


def tokenizer_file(path: Path) -> None:
    path.symlink_to("/proc/kmsg")
    (path.parent / "a.txt").write_text("Once upon a time. " * 9)


def store_beside(suffix: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        surfaces.make_store(path.parent / "s.db")
        os.mkfifo(path.parent / f"s.db{suffix}")
        path.touch()

    return make


GPT2 = "hf:gpt2?layers=1&width=8&heads=1"
PLAN = ["plan", "mlp:2", "--base-lr", "0.1", "--law", "none"]
LONG = "a" * 5000
ODD: dict[str, tuple[list[str], str, Callable[[Path], object]]] = {
    "a text's path too long": (["inspect", "mlp:2", "--data", f"text:{LONG}"], "x", Path.touch),
    "a text's option too long": (["inspect", "mlp:2", "--data", f"text:x?tokenizer={LONG}"], "x", Path.touch),
    "data's path too long": (["inspect", "mlp:2", "--data", f"{LONG}:{LONG}"], "x", Path.touch),
    "a store that fails as it is read": (["sweep", "status", "x"], "x", link("/proc/self/mem")),
    "a file of the system's that never ends, as data": (["inspect", "mlp:2", "--data", "x"], "x", link("/proc/kmsg")),
    "a file of the system's that never ends, as a base": ([*PLAN, "--base", "x.json"], "x.json", link("/proc/kmsg")),
    "a file of the system's that never ends, as a TARGET": (["inspect", "x.py:make"], "x.py", link("/proc/kmsg")),
    "a file of the system's that never ends, as a recipe": (
        ["plan", "mlp:2", "--recipe", "x.py:recipe"],
        "x.py",
        link("/proc/kmsg"),
    ),
    "a pipe as a TARGET": (["inspect", "x.py:make"], "x.py", fifo),
    "a file of the system's that never ends, as a tokenizer": (
        ["inspect", GPT2, "--data", "text:a.txt?tokenizer=x.json"],
        "x.json",
        tokenizer_file,
    ),
    "a file of the system's that never ends, in a tokenizer's folder": (
        ["inspect", GPT2, "--data", "text:a.txt?tokenizer=x"],
        "x",
        tokenizer_folder,
    ),
    "a store whose journal is a pipe": (["sweep", "status", "s.db"], "x", store_beside("-journal")),
    "a store whose shared memory is a pipe": (["sweep", "export", "s.db", "o.csv"], "x", store_beside("-shm")),
    "runs of half a gigabyte": (["verify", "--runs", "x.csv"], "x.csv", half_gigabyte),
    "a plan over a pipe": ([*PLAN, "--save", "x.json"], "x.json", fifo),
    "a picture over a pipe": (["inspect", "mlp:2", "--picture", "x.svg"], "x.svg", fifo),
}


@pytest.mark.parametrize("what", ODD)
def test_odd_files_are_refused_in_one_line(tmp_path: Path, what: str) -> None:
    command, name, make = ODD[what]
    make(tmp_path / name)
    kind = (tmp_path / name).lstat().st_mode
    done = sound(command, tmp_path)
    assert done.status == 2
    assert done.seconds < 10
    assert done.memory < 100 << 20
    assert (tmp_path / name).lstat().st_mode == kind, "something else has taken its place"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of a full disk")
@pytest.mark.parametrize("words", [["inspect", "mlp:2"], ["inspect", "mlp:2", "--json"], ["--help"]])
def test_a_full_disk_at_the_end_of_stdout(tmp_path: Path, words: list[str]) -> None:
    def full() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        oracle._commanded(words)

    done = sound(oracle.Call("> /dev/full", full), tmp_path)
    assert done.err == (
        "dagscale: the answer cannot be written to stdout (No space left on device): give it a place with room\n"
    )


@pytest.mark.parametrize(("words", "status"), [(["inspect", "mlp:2", "--json"], 0), (["inspect", "nope:2"], 2)])
def test_a_stdout_that_is_closed(tmp_path: Path, words: list[str], status: int) -> None:
    def closed() -> None:
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]  # as Python does when it starts so
        oracle._commanded(words)

    done = oracle.run(oracle.Call(">&-", closed), tmp_path)
    assert "Traceback" not in done.err
    assert (done.status, done.err.count("\n")) == (status, int(status == 2))


@pytest.mark.parametrize(
    "words", [["verify", "--help"], ["inspect", "mlp:2", "--full"], ["inspect", "mlp:2", "--json"]]
)
def test_a_reader_that_has_gone_is_no_fault(tmp_path: Path, words: list[str]) -> None:
    def unread() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        oracle._commanded(words)

    done = oracle.run(oracle.Call("| head -0", unread), tmp_path)
    assert (done.status, done.err) == (0, "")


SPEECHLESS = "class Speechless(Exception):\n    def __str__(self): raise RuntimeError('no')\n    __repr__ = __str__\n"
HOSTILE_CODE = {
    "an import": f"{SPEECHLESS}raise Speechless",
    "a factory": f"{SPEECHLESS}def make(): raise Speechless",
    "a forward": f"{SPEECHLESS}class Net(torch.nn.Linear):\n    def forward(self, x): raise Speechless\n"
    "def make(): return Net(4, 3), torch.ones(2, 4)",
    "what is no Exception": "class Odd(BaseException): pass\nclass Net(torch.nn.Linear):\n"
    "    def forward(self, x): raise Odd('x')\ndef make(): return Net(4, 3), torch.ones(2, 4)",
    "a generator's end": "class Net(torch.nn.Linear):\n    def forward(self, x): raise GeneratorExit\n"
    "def make(): return Net(4, 3), torch.ones(2, 4)",
    "a module's attribute": "def __getattr__(name): raise ValueError('a\\nb')",
}


@pytest.mark.parametrize("where", HOSTILE_CODE)
def test_whatever_a_model_raises_is_told_in_one_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "m.py").write_text(f"import torch\n{HOSTILE_CODE[where]}\n")
    done = sound(["inspect", "m.py:make", "--json"], tmp_path)
    assert done.status == 2


def test_an_interrupt_right_after_a_file_was_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def interrupted(*arguments: Any) -> int:
        os.close(opened(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replacing.write(tmp_path / "x.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_names_of_modules_are_shown_and_drawn_whatever_they_hold() -> None:
    """A name with half a surrogate pair has its own random numbers; in graphs for other programs nothing is hidden."""
    name = "a\x1b[31m\n\ud800\u202e"
    model = torch.nn.Sequential()
    model.add_module(name, torch.nn.Linear(4, 2))
    graph = dagscale.trace(model, torch.randn(3, 4))
    for form in FORMATS:
        text = FORMATS[form](graph)
        assert text.encode()
        assert not {unicodedata.category(c) for c in text.replace("\n", "")} & HIDDEN
    plan = dagscale.plan(model, torch.randn(3, 4), base_lr=0.1, law="none")
    before = model.get_parameter(f"{name}.weight").detach().clone()
    plan.init_(model)
    assert not torch.equal(model.get_parameter(f"{name}.weight"), before)


def test_a_name_that_is_no_text_is_a_file_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "\udcff.py").write_text(
        "import torch\ndef make(): return torch.nn.Linear(4, 3), torch.ones(2, 4)\n"
    )  # fmt: skip
    done = sound(["inspect", "\udcff.py:make", "--json"], tmp_path)
    assert done.status == 0


def test_a_row_of_a_store_that_is_no_text_is_not_read(tmp_path: Path) -> None:
    surfaces.make_store(tmp_path / "s.db")
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute("UPDATE runs SET result = zeroblob(50000000) WHERE rowid = 1")
        database.commit()
    done = sound(["sweep", "export", "s.db", "o.csv"], tmp_path)
    assert done.status == 2
    assert done.memory < 200 << 20


def test_nothing_is_written_over_what_it_is_made_from(tmp_path: Path) -> None:
    surfaces.make_store(tmp_path / "s.csv")
    (tmp_path / "base.json").write_text(documents.documents()["base"])
    for name, words in (
        ("s.csv", ["sweep", "export", "s.csv", "./s.csv"]),
        ("base.json", ["plan", "mlp:2", "--base", "base.json", "--law", "none", "--save", "./base.json"]),
    ):
        before = (tmp_path / name).read_bytes()
        done = sound(words, tmp_path)
        assert (done.status, (tmp_path / name).read_bytes() == before) == (2, True)
        assert "another name" in done.err


@pytest.mark.parametrize(("lacking", "status"), [("optimizer", 0), ("settings", 2)])
def test_a_base_that_says_part_of_how_it_was_trained(tmp_path: Path, lacking: str, status: int) -> None:
    base = json.loads(documents.documents()["base"])
    training = base["recipe"] if lacking == "optimizer" else base["recipe"]["optimizer"]
    del training[lacking]
    (tmp_path / "base.json").write_text(json.dumps(base))
    words = ["plan", "mlp:2", "--base", "base.json", "--law", "none", "--optimizer", "sgd", "--json"]
    done = sound(words, tmp_path)
    assert (done.status, "is not that of the base" in done.err) == (status, status == 2)


@pytest.mark.parametrize(
    "words",
    [["plan", "mlp:2", "--base", "mlp:2", "--base-lr", "0.1", "--law", "none", "--save"], ["sweep", "export", "s.db"]],
)
def test_a_name_too_long_to_write_to_is_told_in_one_line(tmp_path: Path, words: list[str]) -> None:
    surfaces.make_store(tmp_path / "s.db")
    done = sound([*words, f"{'a' * 300}.{'csv' if words[0] == 'sweep' else 'json'}"], tmp_path)
    assert done.status == 2
    assert "too long" in done.err


def test_a_limit_on_open_files_is_told_in_one_line(tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
        oracle._commanded(["inspect", "mlp:2", "--picture", "x.svg"])

    done = oracle.run(oracle.Call("ulimit -n 4", few), tmp_path)
    assert "Traceback" not in done.err
    assert done.status == 2
    assert "ulimit" in done.err


def test_a_store_at_the_root_is_refused_in_one_line(tmp_path: Path) -> None:
    done = sound(["sweep", "status", "/"], tmp_path)
    assert done.status == 2


def test_what_goes_wrong_after_an_interrupt_is_the_interrupt(tmp_path: Path) -> None:
    """As a data loader's workers do that get the signal too."""
    (tmp_path / "m.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(5)\n"
        "except KeyboardInterrupt:\n    raise RuntimeError('a worker was killed')\n"
    )
    done = oracle.run(["inspect", "m.py:make"], tmp_path)
    assert (done.status, done.err) == (130, "dagscale: interrupted\n")


def test_after_an_interrupt_nothing_changes_the_end(tmp_path: Path) -> None:
    """A thread of the model's that goes on for long, and a second interrupt as Python ends; in a process of its own."""
    (tmp_path / "m.py").write_text(
        "import atexit, os, signal, threading, time\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\nraise KeyboardInterrupt\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "dagscale", "inspect", "m.py:make"], cwd=tmp_path, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "dagscale: interrupted\n")


def test_an_interrupt_that_other_code_swallows_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(5)\n"
        "except BaseException:\n    pass\ntime.sleep(60)\n"
    )

    def soon() -> None:
        from dagscale import starting

        starting.REMINDER = 0.2
        oracle._commanded(["inspect", "m.py:make"])

    done = oracle.run(oracle.Call("a bare except", soon), tmp_path)
    assert (done.status, done.err) == (130, "dagscale: interrupted\n")


def program(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a program that calls the command line."""
    (folder / "program.py").write_text(text)
    return subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_program_that_calls_the_command_line_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    """With its own handlers of signals, and none repeated."""
    (tmp_path / "m.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n")
    done = program(
        tmp_path,
        "import signal, sys, time\nfrom dagscale import starting\nfrom dagscale.cli import main\n"
        "starting.REMINDER = 0.2\nsys.argv = ['program', 'inspect', 'm.py:make']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    print(ended.code)\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\ntime.sleep(0.6)\nprint('on')\n",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "130\nTrue\non\n", "dagscale: interrupted\n")


def test_a_program_with_handlers_of_its_own_keeps_them(tmp_path: Path) -> None:
    """The command line sets none where there are others, so that it can be called in a thread, and takes none away."""
    done = program(
        tmp_path,
        "import signal, sys, threading\nfrom dagscale.cli import main\n"
        "own = lambda *_: None\nfor number in (signal.SIGINT, signal.SIGTERM):\n    signal.signal(number, own)\n"
        "hook = sys.unraisablehook\nsys.argv = ['program', 'list', 'laws']\n"
        "def run():\n    try:\n        main()\n    except SystemExit as ended:\n        print('ended', ended.code)\n"
        "thread = threading.Thread(target=run)\nthread.start()\nthread.join()\n"
        "print(signal.getsignal(signal.SIGINT) is own, sys.unraisablehook is hook)\n",
    )
    assert (done.returncode, done.stdout.splitlines()[-2:], done.stderr) == (0, ["ended 0", "True True"], "")
