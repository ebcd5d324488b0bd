"""Scikit-learn's embedded handwritten digits: real data with nothing to download."""

from __future__ import annotations

import numpy as np

from dagscale.bench.data.dataset import NAMED, Arrays, Source, Splits, shuffled

TRAIN_SHARE = 0.8


@NAMED.add("digits")
def digits() -> Splits:
    """1,797 images of 8×8 grey pixels in 0 … 16, 10 classes; a fixed random 80 % are the train split.

    [Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits]
    """
    return {"train": lambda: _split(test=False), "test": lambda: _split(test=True)}


def _split(test: bool) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = shuffled(len(bunch.target))
    cut = int(TRAIN_SHARE * len(rows))
    rows = rows[cut:] if test else rows[:cut]
    images = bunch.images[rows].astype(np.uint8)[..., None]
    return Arrays(images, bunch.target[rows].astype(np.int64), classes=10)
