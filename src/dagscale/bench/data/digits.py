"""Handwritten digits: real data that come with the package, with nothing to download and nothing to install."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dagscale.bench.data.dataset import NAMED, Arrays, Source, Splits, shuffled

TRAIN_SHARE = 0.8

FILE = Path(__file__).with_suffix(".npz")
"""The same arrays as ``sklearn.datasets.load_digits`` gives, as bytes: x (1797, 8, 8), y (1797,). 45 kB in place of the
59 MB of scikit-learn and what it brings."""


@NAMED.add("digits")
def digits() -> Splits:
    """1,797 images of 8×8 grey pixels in 0 … 16, 10 classes; a fixed random 80 % are the train split.

    [Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits, CC BY 4.0]
    """
    return {"train": lambda: _split(test=False), "test": lambda: _split(test=True)}


def _split(test: bool) -> Source:
    with np.load(FILE) as arrays:
        images, labels = arrays["x"], arrays["y"].astype(np.int64)
    rows = shuffled(len(labels))
    cut = int(TRAIN_SHARE * len(rows))
    rows = rows[cut:] if test else rows[:cut]
    return Arrays(images[rows][..., None], labels[rows], classes=10)
