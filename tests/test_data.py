"""Readers of image data: what they return, and what they say about data that are not right."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dagscale.data import Dataset, load
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
    assert "idx, parquet" in error_of(text)
    assert "b'hello, w'" in error_of(text)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert "not a data format" in error_of(empty)


def test_a_pickle_is_refused_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.pkl"
    path.write_bytes(b"cos\nabort\n(tR.")
    assert "not a data format" in error_of(path)


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
