"""Where text and bytes from outside come in: each surface is one function that draws an input and returns a command.

To add one: write a function ``name(draw, folder)`` under ``@surface``. ``draw`` takes a hypothesis strategy; files go
into ``folder``, an empty one, where the command runs. What must hold is the same for all, see ``oracle.fault``.
"""

from __future__ import annotations

import gzip
import io
import os
import sqlite3
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Surface = Callable[[Draw, Path], Any]
"""What it returns is a command's arguments, or an ``oracle.Call``."""
SURFACES: dict[str, Surface] = {}


def surface(function: Surface) -> Surface:
    SURFACES[function.__name__] = function
    return function


# --- pieces -------------------------------------------------------------------------------------------------------

NASTY = (
    "", " ", "[/red]", "[bold]x", "[link=file:///etc/passwd]y", "$\\frac{$", "$x$", "<script>alert(1)</script>",
    "\x1b[31m",
    "\x1b]0;title\x07", "\r", "\n", "\t", "\u202e", "\u2028", "\udcff", "=cmd()", "-1+1", "@SUM(1)", "%s%n", "{0}",
    "..",
    "~nouser", "/dev/null", "/dev/zero", "é", "漢", "😀", "'", '"', "\\", "`", "a" * 300, "-", "--", "&&", "?", ":",
    "#",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "7", "-1", "-0", "1e3", "1e999", "-1e999", "nan", "inf", "1e-9", "0.5", "99999999999",
    "9" * 30,
    "18446744073709551616", "9223372036854775808", "-9223372036854775809", "9" * 5000, "0x10", "1_000", "٣", "3.5",
    "",
)  # fmt: skip
characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
text = st.sampled_from(NASTY) | st.text(characters, max_size=12)
names = st.lists(
    st.sampled_from(NASTY[2:10]) | st.sampled_from(NASTY) | st.text(characters, max_size=6), min_size=1, max_size=3
).map("".join)


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Good ones, and in one of six a bad one: an input that is wrong all over is refused at its first part."""
    return st.integers(0, 5).flatmap(lambda k: bad if k == 3 else good)


number = st.sampled_from(NUMBERS) | st.integers(-(10**6), 10**6).map(str)


def argument(value: str) -> str:
    """As the system passes an argument: no half surrogates but those that stand for bytes."""
    return os.fsencode(value.encode("utf-8", "surrogateescape").replace(b"\0", b"")).decode("utf-8", "surrogateescape")


def damaged(draw: Draw, content: bytes) -> bytes:
    """Bytes with some flipped, cut out, put in, or set to what large numbers begin with."""
    found = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        match draw(st.sampled_from(("flip", "cut", "end", "insert", "huge", "zero"))):
            case "flip" if found:
                found[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del found[at : at + draw(st.integers(1, 64))]
            case "end":
                del found[at:]
            case "insert":
                found[at:at] = draw(st.binary(max_size=16))
            case "huge":
                found[at : at + 4] = b"\xff\xff\xff\x7f"
            case "zero":
                found[at : at + 8] = bytes(8)
    return bytes(found)


# --- targets and options ------------------------------------------------------------------------------------------

SPACES = ("mlp", "cnn", "resnet", "vit", "nb201", "nb101", "darts", "hf", "timm", "nope", "", "os", "json", "x.py")
CODES = (
    "2",
    "2_02",
    "2_22_222",
    "1_01_001",
    "8",
    "20",
    "3_24_440",
    "15624",
    "99999999999",
    "2000000",
    "abort",
    "loads",
    "0",
)
OPTIONS = (
    "width",
    "depth",
    "act",
    "norm",
    "order",
    "bias",
    "kernel",
    "input",
    "classes",
    "channels",
    "cells",
    "heads",
    "x",
)


@surface
def targets(draw: Draw, folder: Path) -> list[str]:
    """TARGET texts: spaces, codes and options, all of them right or wrong."""
    space = draw(mostly(st.sampled_from(SPACES[:5]), st.sampled_from(SPACES) | text))
    code = draw(mostly(st.sampled_from(("2", "8", "2_02", "3_24_440", "2_22_222")), st.sampled_from(CODES) | text))
    shapes = st.sampled_from(("3x8x8", "1x1x1", "0x1", "9999999x9999999x9", "3x", "x", "10"))
    values = number | text | shapes | st.sampled_from(("relu", "batch", "true"))
    right = st.sampled_from(("width=8", "width=8192", "depth=3", "act=gelu", "norm=batch", "input=3x8x8", "classes=3"))
    wrong = st.tuples(mostly(st.sampled_from(OPTIONS), text), values).map("=".join)
    items = draw(st.lists(mostly(right, wrong), max_size=3))
    query = "&".join(items)
    target = argument(f"{space}:{code}{'?' if query else ''}{query}")
    return ["inspect", *draw(st.sampled_from(([], ["--json"], ["--full"]))), "--", target]


@surface
def plan_options(draw: Draw, folder: Path) -> list[str]:
    """What can stand behind the options of ``plan``."""
    known = {
        "--law": mostly(st.sampled_from(("paths", "covariance", "walk", "none", "released")), text),
        "--init": mostly(st.sampled_from(("in-degree", "keep", "released")), text), "--seed": number,
        "--optimizer": mostly(st.sampled_from(("sgd", "momentum")), text),
        "--width": mostly(st.sampled_from(("none", "mup")), text),
        "--input-shape": mostly(st.sampled_from(("1x8x8", "3x3")), st.sampled_from(("0", "99999999x9999999")) | text),
        "--steps": number, "--batch-size": number,
    }  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True))
    given = [part for name in chosen for part in (f"{name}={argument(draw(known[name]))}",)]
    bases = draw(mostly(st.just(["--base", "mlp:2", "--base-lr", "0.1"]), number.map(lambda lr: [f"--base-lr={lr}"])))
    return ["plan", "mlp:2_02", *bases, *given, *draw(st.sampled_from(([], ["--json"])))]


@surface
def study_options(draw: Draw, folder: Path) -> list[str]:
    """What can stand behind the options of ``verify``. Its store is a folder, so that nothing is trained."""
    (folder / "store").mkdir()
    known = {
        "--spacing": number, "--epochs": number, "--batch-size": number, "--limit": number, "--seeds": number,
        "--architectures": number, "--bases": number, "--seed": number, "--jobs": number, "--data": text,
        "--options": st.sampled_from(("&&", "&", "width=8", "width=0", "=", "norm=batch&")) | text, "--method": text,
    }  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=3, unique=True))
    given = [f"{name}={argument(draw(known[name]))}" for name in chosen]
    grid = ["--grid", draw(number), draw(number)] if draw(st.booleans()) else []
    suite = draw(mostly(st.sampled_from(("mlp-depth", "width", "vit-depth")), text))
    end = ["--store", "store", "--json", "--", argument(suite)]
    return ["verify", "--method", "none/in-degree", *given, *grid, *end]


# --- data files ---------------------------------------------------------------------------------------------------


def _idx(draw: Draw, folder: Path) -> str:
    images = struct.pack(">4B3I", 0, 0, 8, 3, 6, 4, 4) + bytes(range(96))
    labels = struct.pack(">4BI", 0, 0, 8, 1, 6) + bytes((0, 1, 2, 0, 1, 2))
    pack = gzip.compress if draw(st.booleans()) else bytes
    suffix = ".gz" if pack is gzip.compress else ""
    (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(damaged(draw, pack(damaged(draw, images))))
    (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(damaged(draw, pack(damaged(draw, labels))))
    return "."


def _npz(draw: Draw, folder: Path) -> str:
    labels = draw(st.sampled_from((
        np.arange(6) % 3, np.array([10**12] * 6), np.array([2**64 - 1] * 6, np.uint64), np.array([-1] * 6),
        np.zeros(6),
        np.array([10**6] * 6), np.array([None] * 6, object), np.zeros((6, 2), int), np.arange(0),
    )))  # fmt: skip
    pixels = draw(st.sampled_from((
        np.zeros((6, 4, 4), np.uint8), np.zeros((6, 3, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8),
        np.zeros((6, 4, 4)),
        np.zeros((6, 0, 4), np.uint8),
    )))  # fmt: skip
    stream = io.BytesIO()
    (np.savez_compressed if draw(st.booleans()) else np.savez)(stream, x=pixels, y=labels)
    (folder / "train.npz").write_bytes(damaged(draw, stream.getvalue()))
    return "train.npz"


def _exotic_npz(draw: Draw, folder: Path) -> str:
    """A zip file whose members are packed, named or sized as NumPy would not."""
    header = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({draw(number) or 0}, 4, 4), }}".ljust(117).encode()
        + b"\n"
    )
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(96)
    kind = draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    with zipfile.ZipFile(folder / "train.npz", "w", kind) as file:
        file.writestr("x.npy", draw(st.sampled_from((member, b"", b"no array", b"\x80\x04N.", bytes(1 << 20)))))
        file.writestr(draw(st.sampled_from(("y.npy", "y", "../y.npy"))), member)
    content = bytearray((folder / "train.npz").read_bytes())
    if draw(st.booleans()):
        content[6] |= 1  # says that it is encrypted
    (folder / "train.npz").write_bytes(bytes(content))
    return "train.npz"


def _cifar(draw: Draw, folder: Path) -> str:
    record = bytes([1]) + bytes(3072)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as file:
        for name in draw(st.permutations([f"data_batch_{k}.bin" for k in range(1, 6)])):
            info = tarfile.TarInfo(f"cifar/{name}")
            info.size = len(record)
            if draw(st.booleans()):
                info.pax_headers = {"size": draw(number), "path": draw(text)}
            file.addfile(info, io.BytesIO(record))
    (folder / "cifar-10-binary.tar.gz").write_bytes(damaged(draw, gzip.compress(damaged(draw, archive.getvalue()))))
    return "cifar-10-binary.tar.gz"


def _parquet(draw: Draw, folder: Path) -> str:
    import PIL.Image
    import pyarrow
    import pyarrow.parquet

    stream = io.BytesIO()
    PIL.Image.new("L", (4, 4)).save(stream, "png")
    encoded = [{"bytes": damaged(draw, stream.getvalue()), "path": draw(text)} for _ in range(2)]
    meta = draw(st.sampled_from((b"{}", b"[" * 100_000, b"\xff", b'{"info": {"features": {"label": {"names": 3}}}}')))
    labels = draw(st.sampled_from(([0, 1], [10**12, 0], [None, 1], [-1, 0])))
    for one in encoded:
        one["path"] = one["path"].encode(errors="replace").decode()
    table = pyarrow.table({"image": encoded, "label": labels}).replace_schema_metadata({b"huggingface": meta})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream)
    (folder / "train.parquet").write_bytes(damaged(draw, stream.getvalue()))
    return "train.parquet"


def _folders(draw: Draw, folder: Path) -> str:
    import PIL.Image

    for name in ("a", argument(draw(names)).replace("/", "_").strip(".")[:40] or "b"):
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        size = draw(st.sampled_from(((4, 4), (4, 4), (8000, 8000), (1, 1))))
        PIL.Image.new(draw(st.sampled_from(("L", "RGB", "1", "I;16"))), size).save(stream, "png")
        (folder / "set" / name / "1.png").write_bytes(damaged(draw, stream.getvalue()))
    return "set"


def _no_files(draw: Draw, folder: Path) -> str:
    """Things in the file system that are no files, or never end."""
    os.mkfifo(folder / "pipe")
    (folder / "zero.npz").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    (folder / "train.parquet").symlink_to("pipe")
    (folder / "bomb-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1, 10_000, 10_000) + bytes(120_000_000), 1)
        if draw(st.booleans())
        else gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 2**31))
    )
    for name in "ab":
        (folder / "set" / name).mkdir(parents=True)
        (folder / "set" / name / "1.png").symlink_to(draw(st.sampled_from(("/dev/zero", "../../pipe", "/nowhere"))))
    whole = (
        "pipe",
        "zero.npz",
        "loop",
        "train.parquet",
        "bomb-images-idx3-ubyte.gz",
        "set",
        "/dev/zero",
        "/dev/stdin",
        "a" * 300,
    )
    return str(draw(st.sampled_from(whole) | text)) or "."


FORMATS = (_idx, _npz, _exotic_npz, _cifar, _parquet, _folders, _no_files)


@surface
def data_files(draw: Draw, folder: Path) -> list[str]:
    """Data files of every layout, sound, damaged, or made to harm."""
    path = draw(st.sampled_from(FORMATS))(draw, folder)
    return ["inspect", "mlp:2", f"--data={argument(path)}", "--json"]


# --- stores and tables --------------------------------------------------------------------------------------------

EDITS = (
    "UPDATE runs SET result = '{}'", "UPDATE runs SET result = 'no json' WHERE rowid = 1",
    "UPDATE runs SET run = '{}'",
    "UPDATE runs SET error = '[1]' WHERE state = 'failed'", "UPDATE runs SET error = NULL",
    "UPDATE runs SET seconds = 'x'",
    "UPDATE runs SET architecture = '[/red]'", "UPDATE runs SET version = char(27) || '[31m'", "DROP TABLE runs",
    "UPDATE runs SET result = x'80044e2e'", "ALTER TABLE runs ADD COLUMN more", "DROP INDEX runs_by_version",
    "PRAGMA user_version = 1", "PRAGMA user_version = 3", "PRAGMA user_version = -1", "PRAGMA application_id = 0",
    "SELECT 1",
    "UPDATE runs SET key = 'x' || key", "DELETE FROM runs WHERE rowid < 3", "UPDATE runs SET digest = ''",
    "CREATE TRIGGER t AFTER UPDATE ON runs BEGIN SELECT 1; END", "UPDATE runs SET state = 'pending'",
)  # fmt: skip


def make_store(path: Path, architecture: str = "mlp:2", message: str = "boom") -> None:
    """A store with a few finished and failed runs."""
    from dagscale.bench.sweep import Run, sweep

    def execute(run: Run) -> dict[str, Any]:
        if run.seed % 3 == 2:
            raise ValueError(message)
        return {"loss": run.lr, "curve": [1.0, float("inf")], "name": architecture}

    sweep([Run(architecture, 0.5**k, seed=k, version="v") for k in range(7)], execute, path, jobs=1)


@surface
def stores(draw: Draw, folder: Path) -> list[str]:
    """Stores of sweeps with hostile names in them, edited by hand, or damaged."""
    path = folder / "s.db"
    name = draw(names).encode("utf-8", "replace").decode()
    make_store(path, f"mlp:2?{name}", name)
    match draw(st.sampled_from(("as it is", "edited", "damaged", "link"))):
        case "edited":
            connection = sqlite3.connect(path)
            try:
                connection.execute(draw(st.sampled_from(EDITS)))
                connection.commit()
            except sqlite3.Error:
                pass
            connection.close()
        case "damaged":
            path.write_bytes(damaged(draw, path.read_bytes()))
        case "link":
            path.rename(folder / "t.db")
            path.symlink_to(draw(st.sampled_from(("t.db", "/dev/zero", "s.db", "/"))))
    commands = (
        ["status", "s.db", "--json"],
        ["status", "s.db"],
        ["export", "s.db", "o.csv"],
        ["export", "s.db", "o.parquet"],
    )
    return ["sweep", *draw(st.sampled_from(commands))]


@surface
def tables(draw: Draw, folder: Path) -> list[str]:
    """Tables of a NAS benchmark, and picks of methods."""
    rows = [["code", "dataset", "seed", "test_acc"]]
    dataset = draw(mostly(st.just("cifar10"), names))
    seeds = ("mean", "777", draw(mostly(st.just("888"), names)))
    odd = draw(mostly(st.just(None), number))
    for k, code in enumerate(("3_03_101", "1_11_111", "0_10_120", "3_33_333", "2_22_222", "4_44_441", "3_13_101")):
        for j, seed in enumerate(seeds):
            rows.append([code, dataset, seed, str(80 + k + (7 * j * k) % 5) if odd is None or k != 3 else odd])
    from csv import writer

    stream = io.StringIO()
    writer(stream).writerows(rows)
    content = stream.getvalue().encode("utf-8", "replace")
    (folder / "t.csv").write_bytes(draw(mostly(st.just(content), st.just(b""))) or damaged(draw, content))
    method = draw(names).replace("\n", " ")
    stream = io.StringIO()
    writer(stream).writerows([["method", "arch"], [method, "1_11_111"], ["b", draw(mostly(st.just("0_10_120"), text))]])
    (folder / "picks.csv").write_bytes(stream.getvalue().encode("utf-8", "replace"))
    out = draw(st.sampled_from(([], [], [], ["--out", "out"])))
    shown = draw(st.sampled_from(([], ["--json"])))
    asked = ["--benchmark", "t.csv", "--against", "t.csv", "--against-seed", "777", "--partial", "--unpublished"]
    return ["rerank", *asked, "--picks", "picks.csv", "--bootstrap", "20", *out, *shown]


@surface
def texts(draw: Draw, folder: Path) -> list[str]:
    """Text that is none, in files and folders with hostile names, and options that nobody should write."""
    content = draw(
        st.sampled_from((b"Once upon a time. " * 40, "é漢😀".encode() * 60, b"", b"\0" * 99, b"\xff\xfe" * 50))
    )
    (folder / "book").mkdir()
    for name in ("a.txt", "book/b.txt", "book/c.txt"):
        (folder / name).write_bytes(damaged(draw, content))
    path = draw(st.sampled_from(("a.txt", "book", "none", ".", "/dev/zero", "a.txt/x")) | names)
    option = draw(st.sampled_from(("", "?", "?context=8", "?context=8&files=*.txt", "?files=[", "?tokenizer=a.txt")))
    value = draw(mostly(st.just(""), number.map("?context={}".format)))
    given = argument(f"text:{path}{value or option}")
    return [
        "inspect",
        "hf:gpt2?layers=1&width=8&heads=1",
        "--data",
        given,
        "--limit",
        draw(mostly(st.just("4"), number)),
    ]


# --- the user's own code ------------------------------------------------------------------------------------------


@surface
def module_names(draw: Draw, folder: Path) -> list[str]:
    """Models whose modules, files and output are named as markup, formulas or escape sequences are."""
    first, second = (draw(names).replace(".", "_") or "m" for _ in range(2))
    spoken = draw(st.sampled_from(("", "print('on import')", "import os; os.write(1, b'past print')")))
    stem = argument(draw(st.just("m") | names)).replace("/", "_").replace("\n", "")[:60].strip(":?. ") or "m"
    (folder / f"{stem}.py").write_text(
        "import torch\nfrom torch import nn\n" + spoken + "\n"
        "def make():\n"
        "    net = nn.Sequential()\n"
        f"    net.add_module({first!a}, nn.Linear(4, 4))\n"
        f"    net.add_module({second!a}, nn.ReLU())\n"
        "    net.add_module('last', nn.Linear(4, 2))\n"
        "    return net, torch.ones(2, 4)\n"
    )
    target = argument(f"{stem}.py:make")
    command = draw(st.sampled_from((
        ["inspect", target], ["inspect", target, "--full"], ["inspect", target, "--json"], ["inspect",
        target, "--picture", "p.svg"],
        ["plan", target, "--base-lr", "0.1", "--law", "none"], ["plan", target, "--base-lr", "0.1", "--law", "none",
        "--json"],
    )))  # fmt: skip
    return list(command)
