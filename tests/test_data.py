"""Readers of image data: what they return, and what they say about data that are not right."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dagscale.bench.data import Dataset, load
from dagscale.bench.data.dataset import shuffled
from dagscale.errors import DataError

SIDE = 6


def pictures(n: int, channels: int = 0, seed: int = 0) -> np.ndarray[Any, Any]:
    """(n, 6, 6[, channels]) random bytes; the very first pixel is the image's number."""
    shape = (n, SIDE, SIDE, channels) if channels else (n, SIDE, SIDE)
    images = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    images[:, 0, 0] = np.arange(n).reshape(-1, 1) if channels else np.arange(n)
    return images


def idx_bytes(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, n: int = 30, name: str = "train", suffix: str = "", seed: int = 0) -> Path:
    """Images whose label is their number modulo 5; the path of the images file."""
    write = gzip.compress if suffix else bytes
    path = folder / f"{name}-images-idx3-ubyte{suffix}"
    path.write_bytes(write(idx_bytes(pictures(n, seed=seed))))
    (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(write(idx_bytes(np.arange(n) % 5)))
    return path


def encoded(image: np.ndarray[Any, Any], kind: str = "PNG") -> bytes:
    image_module = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image_module.fromarray(image).save(stream, kind)
    return stream.getvalue()


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[Any],
    names: tuple[str, str] = ("img", "label"),
    classes: int = 0,
) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = arrow.array(
        [{"bytes": image, "path": None} for image in images],
        type=arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
    )
    table = arrow.table({names[0]: column, names[1]: arrow.array(labels, type=arrow.int64())})
    if classes:
        features = {names[1]: {"names": [str(k) for k in range(classes)], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=7)
    return path


def error_of(source: str | Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def number(dataset: Dataset, images: np.ndarray[Any, Any]) -> torch.Tensor:
    """Which of the original images each loaded one is, by the pixels: invariant to shift and positive scale."""
    original = torch.from_numpy(images).float().flatten(1)
    original = (original - original.mean(1, keepdim=True)) / original.std(1, keepdim=True)
    found = dataset.x.movedim(1, -1).flatten(1)
    found = (found - found.mean(1, keepdim=True)) / found.std(1, keepdim=True)
    return (found @ original.T).argmax(1)


# --- the value


def test_dataset_refuses_what_it_does_not_promise() -> None:
    x, y = torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0])
    assert Dataset("d", x, y, 3).shape == (1, 2, 2)
    wrong = [
        (x[0], y, 3, "float32"),
        (x.double(), y, 3, "float64"),
        (x, y.int(), 3, "int64"),
        (x[:3], y, 3, "3 images but 4 labels"),
        (x, y, 2, "from 0 to 2, outside 0 to 1"),
        (x, y - 1, 3, "from -1"),
        (x / 0, y, 3, "NaN"),
        (x[:0], y[:0], 3, "no pixels"),
    ]
    for bad_x, bad_y, classes, words in wrong:
        with pytest.raises(DataError, match=words):
            Dataset("d", bad_x, bad_y, classes)


def test_subset_is_a_repeatable_draw_in_the_old_order() -> None:
    x = torch.arange(50.0).view(50, 1, 1, 1)
    data = Dataset("d", x, torch.arange(50) % 7, 7)
    part = data.subset(10, seed=3)
    rows = part.x.flatten().long()
    assert len(part) == len(set(rows.tolist())) == 10
    assert torch.equal(rows, rows.sort().values)
    assert torch.equal(part.y, rows % 7)
    assert part.classes == 7
    assert torch.equal(part.x, data.subset(10, seed=3).x)
    assert not torch.equal(part.x, data.subset(10, seed=4).x)
    for n in (0, 51):
        with pytest.raises(DataError, match=f"subset of {n} examples out of 50"):
            data.subset(n)


# --- digits, and what load promises for all


def test_digits_splits_are_fixed_disjoint_and_normalised() -> None:
    train, test = load("digits"), load("digits", split="test")
    assert (len(train), len(test), train.shape, train.classes) == (1437, 360, (1, 8, 8), 10)
    assert torch.equal(train.x, load("digits").x)
    assert train.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.x.var(correction=0).item() == pytest.approx(1, abs=1e-4)
    # the test split is normalised by the train split's numbers: near 0 and 1, not exactly
    assert 1e-5 < abs(test.x.mean().item()) < 0.05
    scale = train.x.unique()
    assert torch.isin(test.x.unique(), scale).all(), "the same 17 grey levels map to the same 17 numbers"
    assert train.y.bincount().min() > 100


def test_limit_takes_the_first_of_the_same_order() -> None:
    whole, part = load("digits"), load("digits", limit=200)
    assert torch.equal(part.y, whole.y[:200])
    assert part.y.bincount(minlength=10).min() > 5
    assert part.classes == 10
    assert part.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert len(load("digits", limit=10**6)) == 1437


def test_nonsense_arguments() -> None:
    assert "unknown split 'dev'" in error_of("digits", split="dev")
    assert "limit must be at least 1" in error_of("digits", limit=0)
    assert "digitz" in error_of("digitz")
    assert "digits" in error_of("digitz"), "the names known are listed"


def test_paths_that_hold_no_data(tmp_path: Path) -> None:
    assert "neither a path" in error_of(tmp_path / "missing")
    assert "no data set in this folder" in error_of(tmp_path)
    text = tmp_path / "notes.txt"
    text.write_text("hello, world")
    assert "cifar, idx, images, npz, parquet" in error_of(text)
    assert "b'hello, w'" in error_of(text)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert "not a data format" in error_of(empty)


@pytest.mark.parametrize(
    ("name", "mend"),
    [
        ("data.pkl", "convert it to .npz"),
        ("cifar-10-batches-py/data_batch_1", "cifar-10-binary.tar.gz"),
        ("cifar-100-python/train", "cifar-100-binary.tar.gz"),
        ("ImageNet16/train_data_batch_10", "convert it to .npz"),
        ("ImageNet16/val_data", "convert it to .npz"),
    ],
)
def test_a_pickle_is_refused_not_loaded(tmp_path: Path, name: str, mend: str) -> None:
    """These two would end the process if loaded."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"cos\nabort\n(tR." if name == "data.pkl" else b"\x80\x02cos\nabort\n)R.")
    for source in [path] if name == "data.pkl" else [path, path.parent, tmp_path]:
        for split in ("train", "test"):
            message = error_of(source, split=split)
            assert "never loaded" in message
            assert mend in message


def test_several_layouts_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_npz(tmp_path / "train.npz")
    assert "several data sets (idx, npz)" in error_of(tmp_path)
    assert len(load(tmp_path / "train.npz")) == 30


# --- cifar


def cifar_bytes(n: int, columns: int, seed: int = 0) -> bytes:
    """Records whose fine (last) label is their number; the coarse one, if any, is 7."""
    planes = np.random.default_rng(seed).integers(0, 256, (n, 3 * 32 * 32), dtype=np.uint8)
    labels = np.full((n, columns), 7, dtype=np.uint8)
    labels[:, -1] = np.arange(n)
    return np.hstack([labels, planes]).tobytes()


def write_cifar10(folder: Path) -> list[bytes]:
    folder.mkdir(exist_ok=True)
    parts = [cifar_bytes(10, 1, seed) for seed in range(6)]
    for part, name in zip(parts, [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"], strict=True):
        (folder / f"{name}.bin").write_bytes(part)
    (folder / "readme.html").write_text("CIFAR")
    return parts


def write_tar(path: Path, folder: Path, prefix: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{prefix}/{file.name}")
    return path


def planes_of(data: Dataset, row: int) -> np.ndarray[Any, Any]:
    return data.x[row].flatten().numpy()


def test_cifar10_files_folder_and_archive_are_one_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    parts = write_cifar10(folder)
    archive = write_tar(tmp_path / "c.tar.gz", folder, "../../cifar-10-batches-bin")
    train = load(folder)
    assert (len(train), train.shape, train.classes) == (50, (3, 32, 32), 10)
    raw = np.frombuffer(b"".join(parts[:5]), np.uint8).reshape(50, -1)
    means, stds = (f(raw[:, 1:].reshape(50, 3, 1024), (0, 2)).repeat(1024) for f in (np.mean, np.std))
    for row in range(50):
        distance = np.abs((raw[:, 1:] - means) / stds - planes_of(train, row)).max(1)
        assert distance.min() < 1e-4
        assert int(train.y[row]) == raw[distance.argmin(), 0], "the label stays with its image"
    for source in (tmp_path, archive):
        assert torch.equal(load(source).x, train.x)
    for source in (folder, archive):
        test = load(source, split="test")
        assert sorted(test.y.tolist()) == list(range(10))
        assert torch.equal(test.x, load(folder, split="test").x)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.tar.gz", "cifar-10-batches-bin"], "nothing is unpacked"
    one = load(folder / "data_batch_2.bin")
    assert len(one) == 10
    assert len(load(folder / "data_batch_2.bin", split="test")) == 10
    assert torch.equal(load(folder, limit=7).y, train.y[:7])


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(cifar_bytes(30, 2))
    assert sorted(load(folder).y.tolist()) == list(range(30))
    assert load(folder).classes == 100
    assert "no test split" in error_of(folder, split="test")
    (folder / "test.bin").write_bytes(cifar_bytes(100, 2))
    assert load(tmp_path, split="test").y.max() == 99
    (folder / "test.bin").write_bytes(cifar_bytes(101, 2))
    assert "has the label 100, outside 0 to 99" in error_of(folder, split="test")


def test_broken_cifar_files(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    write_cifar10(folder)
    archive = write_tar(tmp_path / "c.tar.gz", folder, "c")
    archive.write_bytes(archive.read_bytes()[:-20_000])
    assert str(archive) in error_of(archive)
    batch = folder / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    assert "data_batch_3.bin is truncated" in error_of(folder)
    batch.write_bytes(b"")
    assert "data_batch_3.bin is truncated" in error_of(folder)
    batch.write_bytes(whole[: 3 * 3073] + b"\x0a" + whole[3 * 3073 + 1 :])
    assert "record 23 of" in error_of(folder)
    assert "label 10, outside 0 to 9" in error_of(folder)
    batch.unlink()
    assert "lacks data_batch_3.bin of CIFAR-10" in error_of(folder)
    (folder / "train.bin").write_bytes(cifar_bytes(1, 2))
    assert "CIFAR-10 and CIFAR-100" in error_of(folder)
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("hello")
    assert "not a data format" in error_of(write_tar(tmp_path / "notes.tar.gz", other, "notes"))
    (other / "data_batch_1").write_bytes(b"\x80\x02}.")
    message = error_of(write_tar(tmp_path / "python.tar.gz", other, "cifar-10-batches-py"))
    assert "cifar-10-binary.tar.gz" in message


# --- folders of images


def write_classes(
    folder: Path, counts: dict[str, int], kind: str = "PNG", suffix: str = ".png"
) -> dict[str, list[np.ndarray[Any, Any]]]:
    """``counts`` images in each class folder; their pixels."""
    written = {}
    for seed, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        written[name] = list(pictures(count, channels=3, seed=seed + 1))
        for k, image in enumerate(written[name]):
            (folder / name / f"{k}{suffix}").write_bytes(encoded(image, kind))
    return written


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("BMP", ".BMP"), ("WEBP", ".webp"), ("JPEG", ".jpeg")])
def test_image_folder_classes_are_sorted_by_name(tmp_path: Path, kind: str, suffix: str) -> None:
    written = write_classes(tmp_path, {"dog": 4, "cat": 3, "Eel": 5}, kind, suffix)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_bytes(b"x")
    data = load(tmp_path)
    assert (data.shape, data.classes) == ((3, SIDE, SIDE), 3)
    assert data.y.bincount().tolist() == [5, 3, 4], "Eel, cat, dog: as sorted() has them"
    if kind != "JPEG":
        images = np.stack([*written["Eel"], *written["cat"], *written["dog"]])
        rows = number(data, images)
        assert sorted(rows.tolist()) == list(range(12))
        assert torch.equal(data.y, torch.tensor([0] * 5 + [1] * 3 + [2] * 4)[rows])


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder_splits_share_their_classes(tmp_path: Path, held_out: str) -> None:
    write_classes(tmp_path / "train", {"a": 4, "b": 4, "c": 4})
    assert "no test split" in error_of(tmp_path, split="test")
    write_classes(tmp_path / held_out, {"a": 1, "c": 2})
    for source in (tmp_path, tmp_path / "train"):
        test = load(source, split="test")
        assert sorted(test.y.tolist()) == [0, 2, 2], "numbered as in the train split"
        assert (len(load(source)), test.classes) == (12, 3)
    assert load(tmp_path / held_out).y.max() == 1, "named alone, a folder is a data set of its own"
    write_classes(tmp_path / held_out, {"d": 1})
    assert f"{held_out}/d is none of the 3 classes" in error_of(tmp_path, split="test")


def test_image_folder_decodes_only_what_is_asked_for(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 10, "b": 10})
    first = load(tmp_path, limit=5)
    files = sorted(tmp_path.glob("*/*.png"), key=lambda file: (file.parent.name, file.name))
    wanted = {files[row] for row in shuffled(20)[:5]}
    for file in files:
        if file not in wanted:
            file.write_bytes(b"rubbish")
    assert len(wanted) == 5
    assert torch.equal(load(tmp_path, limit=5).x, first.x)
    assert "corrupt image bytes" in error_of(tmp_path, limit=6)


def test_an_image_that_is_a_program_is_not_executed(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "0.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n0 0 moveto\nshowpage\n"
    )
    message = error_of(tmp_path)
    assert "corrupt image bytes: cannot identify any of PNG, JPEG" in message, (
        "Pillow would have given it to Ghostscript"
    )


def test_image_folders_that_are_not_right(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 3, "b": 3})
    note = tmp_path / "a" / "notes.txt"
    note.write_text("hello")
    assert "a/notes.txt is no image (.png, .jpg" in error_of(tmp_path)
    note.unlink()
    (tmp_path / "c").mkdir()
    assert "c holds no images: remove the folder" in error_of(tmp_path)
    (tmp_path / "c" / "0.png").write_bytes(encoded(pictures(1)[0][:4]))
    assert "images of different sizes" in error_of(tmp_path)
    assert "resize them to one size" in error_of(tmp_path)
    (tmp_path / "c" / "0.png").write_bytes(b"")
    assert "c/0.png holds no image bytes" in error_of(tmp_path)
    flat = tmp_path / "flat"
    write_classes(flat, {"train": 3, "test": 3})
    assert "train holds images without a class" in error_of(flat)
    assert "one folder a class" in error_of(flat / "train")


# --- npz


def write_npz(path: Path, **changed: Any) -> Path:
    np.savez(path, **{"x": pictures(30, channels=3), "y": np.arange(30) % 5, **changed})
    return path


@pytest.mark.parametrize("layout", ["last", "first", "grey"])
def test_npz_layouts(tmp_path: Path, layout: str) -> None:
    images = pictures(30, channels=0 if layout == "grey" else 3)
    x = np.moveaxis(images, 3, 1) if layout == "first" else images
    path = write_npz(tmp_path / "some.npz", x=x)
    data = load(path)
    rows = number(data, images)
    assert sorted(rows.tolist()) == list(range(30))
    assert torch.equal(data.y, rows % 5)
    assert data.shape == (1 if layout == "grey" else 3, SIDE, SIDE)


def test_npz_splits(tmp_path: Path) -> None:
    train = write_npz(tmp_path / "train.npz")
    write_npz(tmp_path / "val.npz", y=np.full(30, 3))
    for source in (tmp_path, train):
        assert load(source, split="test").y.unique().tolist() == [3]
        assert load(source).classes == 5


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": pictures(30) / 255}, "x must be 8-bit pixels, got float64"),
        ({"x": pictures(20)}, "20 images but 30 labels"),
        ({"x": pictures(30)[..., :0]}, "no pixels"),
        ({"x": np.zeros((30, 4, 4, 2), np.uint8)}, "x must be (n, height, width)"),
        ({"x": np.zeros((30, 3, 4, 3), np.uint8)}, "x must be (n, height, width)"),
        ({"y": np.arange(30) / 2}, "y must be (n,) integers"),
        ({"y": np.arange(30) - 1}, "label -1"),
        ({"y": np.array([{}] * 30)}, "holds Python objects"),
    ],
)
def test_npz_that_is_not_right(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    assert words in error_of(write_npz(tmp_path / "x.npz", **changed))


def test_an_npz_with_two_arrays_of_one_name(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("y.npy", file.read("y.npy"))
    assert "two arrays of one name" in error_of(path)


def test_broken_npz_files(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=pictures(3), y=np.arange(3))
    assert "needs the arrays x (pixels) and y (labels), and has images, y" in error_of(path)
    write_npz(path)
    path.write_bytes(path.read_bytes()[:-40])
    assert "broken npz file" in error_of(path)
    path.write_bytes(b"hello")
    assert "is not an npz file" in error_of(path)


# --- idx


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_images_keep_their_labels(tmp_path: Path, suffix: str) -> None:
    path = write_idx(tmp_path, suffix=suffix)
    for source in (tmp_path, path, str(path)):
        data = load(source)
        rows = number(data, pictures(30))
        assert sorted(rows.tolist()) == list(range(30))
        assert torch.equal(data.y, rows % 5)
        assert (data.shape, data.classes) == ((1, SIDE, SIDE), 5)
        assert data.x.var(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_idx_splits(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    train = write_idx(raw)
    assert "no test split" in error_of(tmp_path, split="test")
    t10k = write_idx(raw, 12, "t10k", ".gz", seed=1)
    tests = [load(source, split="test") for source in (tmp_path, raw, train)]
    assert all(torch.equal(tests[0].x, test.x) for test in tests)
    assert sorted(number(tests[0], pictures(12, seed=1)).tolist()) == list(range(12))
    mean, std = pictures(30).mean(), pictures(30).std()
    first = int(number(tests[0], pictures(12, seed=1))[0])
    expected = (torch.from_numpy(pictures(12, seed=1)[first]).float() - mean) / std
    torch.testing.assert_close(tests[0].x[0, 0], expected, atol=1e-5, rtol=1e-5)
    assert len(load(t10k)) == 12, "a file that is named is the file that is read"


def test_idx_broken_files(tmp_path: Path) -> None:
    path = write_idx(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    good, good_labels = path.read_bytes(), labels.read_bytes()

    assert "holds labels" in error_of(labels)
    path.write_bytes(good[:-1])
    assert "truncated: 1079 bytes where its header says 1080" in error_of(path)
    path.write_bytes(good + b"!")
    assert "too long" in error_of(path)
    path.write_bytes(good[:10])
    assert "within its header" in error_of(path)
    path.write_bytes(b"\x00\x00\x0d\x03" + good[4:])
    assert "wrong magic" in error_of(path)
    assert "wrong magic" in error_of(tmp_path)
    path.write_bytes(good)
    labels.write_bytes(idx_bytes(np.zeros(29)))
    assert "30 images but train-labels-idx1-ubyte 29 labels" in error_of(path)
    labels.write_bytes(good)
    assert "wrong magic" in error_of(path)
    labels.unlink()
    assert "must lie beside it" in error_of(path)
    labels.write_bytes(good_labels)
    assert len(load(path)) == 30

    packed = tmp_path / "train-images-idx3-ubyte.gz"
    packed.write_bytes(gzip.compress(good)[:-200])
    assert "cannot be read to its end" in error_of(packed)
    packed.write_bytes(b"\x1f\x8bnot gzip at all")
    assert "broken gzip" in error_of(packed)


def test_a_folder_with_two_sets_is_ambiguous(tmp_path: Path) -> None:
    one = write_idx(tmp_path, name="emnist-letters-train")
    write_idx(tmp_path, name="emnist-digits-train")
    assert "several train sets" in error_of(tmp_path)
    assert len(load(one)) == 30
    above = tmp_path / "above"
    for name in ("a", "b"):
        (above / name).mkdir(parents=True)
        write_idx(above / name)
    assert "several data sets (a, b)" in error_of(above)


# --- parquet


@pytest.mark.parametrize("names", [("img", "label"), ("image", "fine_label"), ("picture", "kind")])
def test_parquet_images_keep_their_labels(tmp_path: Path, names: tuple[str, str]) -> None:
    images = pictures(30, channels=3)
    path = write_parquet(tmp_path / "x.parquet", [encoded(i) for i in images], [k % 4 for k in range(30)], names)
    data = load(path)
    rows = number(data, images)
    assert sorted(rows.tolist()) == list(range(30))
    assert torch.equal(data.y, rows % 4)
    assert (data.shape, data.classes) == ((3, SIDE, SIDE), 4)
    torch.testing.assert_close(data.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.x.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    assert torch.equal(load(path, limit=9).y, data.y[:9])


def test_parquet_grey_images_and_class_names(tmp_path: Path) -> None:
    grey = [encoded(i) for i in pictures(10)]
    data = load(write_parquet(tmp_path / "x.parquet", grey, [0] * 10, classes=7))
    assert (data.shape, data.classes) == ((1, SIDE, SIDE), 7)
    mixed = [*grey[:5], *(encoded(i) for i in pictures(5, channels=3))]
    assert load(write_parquet(tmp_path / "y.parquet", mixed, [0] * 10)).shape == (3, SIDE, SIDE)


def test_parquet_folders_and_shards(tmp_path: Path) -> None:
    images = [encoded(i) for i in pictures(20, channels=3)]
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00002.parquet", images[:12], list(range(12)))
    assert "1 of 2 shards" in error_of(tmp_path)
    write_parquet(folder / "train-00001-of-00002.parquet", images[12:], list(range(12, 20)))
    write_parquet(folder / "test-00000-of-00001.parquet", images[:3], [0, 1, 2])
    train, test = load(tmp_path), load(tmp_path, split="test")
    assert torch.equal(train.y, number(train, pictures(20, channels=3)))
    assert (len(test), test.classes) == (3, 20)
    for k in range(3):
        assert torch.equal(test.x[test.y == k], train.x[train.y == k]), "one normalisation for both"


def test_only_what_is_asked_for_is_decoded(tmp_path: Path) -> None:
    images: list[bytes | None] = [encoded(i) for i in pictures(30)]
    path = write_parquet(tmp_path / "x.parquet", images, list(range(30)))
    unread = set(range(30)) - set(load(path, limit=5).y.tolist())
    for row in unread:
        images[row] = b"rubbish"
    write_parquet(path, images, list(range(30)))
    assert len(load(path, limit=5)) == 5
    assert "corrupt image bytes" in error_of(path, limit=6)


def test_parquet_broken_images_name_their_row(tmp_path: Path) -> None:
    good: list[bytes | None] = [encoded(i) for i in pictures(10)]
    path = tmp_path / "x.parquet"
    write_parquet(path, [*good[:8], b"no image", good[9]], [0] * 10)
    assert "row 8: corrupt image bytes" in error_of(path)
    write_parquet(path, [*good[:8], encoded(pictures(1)[0])[:-30], good[9]], [0] * 10)
    assert "row 8: corrupt image bytes" in error_of(path)
    write_parquet(path, [*good[:4], None, *good[5:]], [0] * 10)
    assert "row 4 holds no image bytes" in error_of(path)
    write_parquet(path, [*good[:9], encoded(pictures(1)[0][:4])], [0] * 10)
    assert "row 9: images of different sizes (6×4 and 6×6 pixels)" in error_of(path)
    deep = encoded(pictures(1)[0].astype(np.uint16) * 200)
    write_parquet(path, [*good[:9], deep], [0] * 10)
    assert "not 8 bits a channel" in error_of(path)


def test_parquet_without_images_or_labels(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    parquet.write_table(arrow.table({"arch": ["a"], "accuracy": [0.5]}), path)
    assert "arch: string, accuracy: double" in error_of(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "broken parquet file" in error_of(path)
    path.write_bytes(b"not parquet")
    assert "is not a parquet file" in error_of(path)
    images = [encoded(i) for i in pictures(4)]
    assert "unlabelled" in error_of(write_parquet(path, images, [-1] * 4))
    assert "1 rows have no label" in error_of(write_parquet(path, images, [0, 1, None, 0]))
    assert "holds no examples" in error_of(write_parquet(path, [], []))


@pytest.mark.parametrize("library", ["pyarrow", "PIL.Image"])
def test_missing_libraries_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", [encoded(i) for i in pictures(4)], [0] * 4)
    monkeypatch.setitem(sys.modules, library, None)
    assert "pip install dagscale[images]" in error_of(path)


# --- files that lie


def npz(path: Path, x: Any, y: Any) -> Path:
    np.savez(path, x=x, y=y)
    return path


def zipped(path: Path, x: bytes, kind: int = zipfile.ZIP_STORED, flags: int = 0) -> Path:
    """An npz file whose member x holds these bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(2, np.int64))
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("x.npy", x)
        file.writestr("y.npy", stream.getvalue())
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= flags
    path.write_bytes(bytes(content))
    return path


def array_header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: zipped(p, array_header("(1000000000000, 9, 9)") + bytes(64)), "unpacks to 81,000,000,000,000 bytes"),
        (lambda p: zipped(p, bytes(100), flags=1), "encrypted"),
        (lambda p: zipped(p, bytes(100), zipfile.ZIP_LZMA), "encrypted, or packed|packed in a way"),
        (lambda p: zipped(p, bytes(100), zipfile.ZIP_BZIP2), "encrypted, or packed|packed in a way"),
        (lambda p: zipped(p, b"no array at all"), "broken npz file"),
        (lambda p: zipped(p, array_header("('a',)")), "broken npz file"),
        (lambda p: npz(p, np.zeros((2, 4, 4), np.uint8), np.array([{}, {}])), "Python objects"),
        (lambda p: npz(p, np.zeros((2, 4, 4), np.uint8), np.array([2**64 - 1] * 2, np.uint64)), "classes are the most"),
        (lambda p: npz(p, np.zeros((2, 4, 4), np.uint8), np.array([10**12] * 2)), "classes are the most"),
    ],
)
def test_npz_files_that_lie(tmp_path: Path, make: Any, text: str) -> None:
    assert re.search(text, error_of(make(tmp_path / "train.npz")))


def test_a_compressed_file_is_read_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = write_idx(tmp_path, suffix=".gz")
    path.write_bytes(gzip.compress(idx_bytes(pictures(30)) + bytes(300_000_000), 1))
    with bounded_memory(200):
        assert "it goes on after the 1080 bytes that its header says" in error_of(path)
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 30_000, 100, 100) + bytes(300_000_000), 1))
    with bounded_memory(200):
        assert "over 50 times its size" in error_of(path)


@contextmanager
def bounded_memory(mebibytes: int) -> Iterator[None]:
    """Within, Python and NumPy take no more than this at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()


def test_images_that_are_made_to_fill_the_memory(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    for name in "ab":
        (tmp_path / name).mkdir()
        image_module.new("L", (9000, 9000)).save(tmp_path / name / "1.png")
    assert "9,000×9,000 pixels in" in error_of(tmp_path)


def test_an_archive_with_a_huge_member_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("zeros")
        info.size = 400_000_000
        with open("/dev/zero", "rb") as zeros:
            archive.addfile(info, zeros)
    assert "over 50 times its size" in error_of(path)


@pytest.mark.parametrize("name", ["x", "x.npz", "x.parquet", "train-images-idx3-ubyte"])
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    assert "no plain file" in error_of(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "no plain file" in error_of(path)


def test_an_image_that_is_a_device(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").symlink_to("/dev/zero")
    assert "no plain file" in error_of(tmp_path)


@pytest.mark.parametrize("metadata", [b"[" * 100_000, b"\xff", b"{"])
def test_parquet_metadata_of_others_are_no_matter(tmp_path: Path, metadata: bytes) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_parquet(tmp_path / "train.parquet", [encoded(i) for i in pictures(4)], [0, 1, 2, 0])
    table = parquet.read_table(path).replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(table, path)
    assert load(path).classes == 3


@pytest.mark.parametrize("path", ["~nobodyhere/x", "a" * 300, "x\0y"])
def test_paths_that_cannot_be(path: str) -> None:
    assert error_of(path)


# --- what the data are


def test_a_digest_is_of_the_examples_and_not_of_their_place(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    x, y = pictures(20), np.arange(20) % 3
    first, moved = (load(npz(tmp_path / f / "train.npz", x, y)).digest for f in ("one", "two"))
    assert first == moved
    other = x.copy()
    other[7, 3, 3] ^= 1
    assert load(npz(tmp_path / "one" / "train.npz", other, y)).digest != first
    assert load(npz(tmp_path / "one" / "train.npz", x, y[::-1].copy())).digest != first
    assert load(tmp_path / "two" / "train.npz", limit=10).digest != first


def test_a_sampled_digest_sees_labels_and_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits")
    monkeypatch.setattr("dagscale.bench.data.dataset.DIGESTED", 100 * 64 * 4)
    sampled = Dataset("a", data.x, data.y, 10).digest
    assert sampled == Dataset("b", data.x.clone(), data.y, 10).digest
    y = data.y.clone()
    y[-1] = (y[-1] + 1) % 10
    assert Dataset("a", data.x, y, 10).digest != sampled
    row = int(shuffled(len(data))[5])
    x = data.x.clone()
    x[row] += 1
    assert Dataset("a", x, data.y, 10).digest != sampled
