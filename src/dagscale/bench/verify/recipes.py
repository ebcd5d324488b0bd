"""Recipes that people use, by name: how the networks of a suite are trained, and on what where nobody says it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dagscale.bench.data import Dataset, load
from dagscale.bench.data.augment import Augment, padding
from dagscale.bench.data.places import check, place
from dagscale.bench.data.text import Text, library_text, named_text
from dagscale.errors import DataError
from dagscale.registry import Registry
from dagscale.training.optimizers import Optimizer, resolve
from dagscale.training.recipe import Recipe
from dagscale.training.schedules import cosine

HELD = 512
"""Examples at most that a run is validated on, and as many of the training data that its loss is taken on."""

CONTEXT = 64
"""Bytes of an example of text, where nobody says it."""

LIBRARY, TEXT = "text", "text:"


@dataclass(frozen=True, eq=False)
class Examples:
    """Data to train on, and others of the same kind that no run trains on."""

    train: Dataset | Text
    held: Dataset | Text

    @cached_property
    def digest(self) -> str:
        """Of both parts, wherever they lie."""
        return f"sha256:{sha256((self.train.digest + self.held.digest).encode()).hexdigest()[:32]}"


def examples(source: str, limit: int | None = None) -> Examples:
    """Read data.

    Args:
        source: ``text`` for bytes of Python's standard library, every tenth module held out; ``text:PATH`` for a text,
            whose last tenth of windows, in their fixed random order, is held out; else images as `dagscale.bench.data`
            reads them, with their own test split, or the last tenth where they have none.
        limit: training examples at most.

    Raises:
        DataError: if they cannot be read, or are too few.
    """
    if limit == 1:
        raise DataError("limit=1: training needs at least 2 examples")
    if source == LIBRARY:
        return Examples(library_text(CONTEXT, limit=limit), library_text(CONTEXT, held=True, limit=HELD))
    if source.startswith(TEXT):
        return _divided(named_text(source.removeprefix(TEXT), None, CONTEXT), limit)
    try:
        held = load(source, split="test", limit=limit)
    except DataError as error:
        if "has no test split" not in str(error):
            raise
        return _divided(load(source), limit)
    return Examples(load(source, limit=limit), held.rows(slice(HELD)))


def _divided(data: Dataset | Text, limit: int | None) -> Examples:
    count = min(HELD, len(data) // 10)
    if count < 1:
        raise DataError(f"{data.name} has {len(data)} examples, too few to hold a tenth out: give at least 10")
    train = data.rows(slice(len(data) - count))
    return Examples(train.rows(slice(limit)), data.rows(slice(len(data) - count, None)))


@cache
def named_examples(name: str, limit: int | None) -> Examples:
    """`examples` of what a run names, read once a process: a digest with a known place, or a source."""
    return check(examples(place(name), limit), name)


@dataclass(frozen=True)
class Practice:
    """How people train networks of a kind.

    Attributes:
        data: what they are trained on where nobody says it.
        optimizer: with its settings.
        steps, batch_size: where nobody says them.
        training: further arguments of a `dagscale.Recipe`.
        augment: what is done to images, each anew in every pass: ``crop``, shifts by up to an eighth of their side,
            and ``flip``, left to right, which only coloured ones are: a mirrored digit is none.
    """

    data: str
    optimizer: Optimizer
    steps: int
    batch_size: int
    training: Mapping[str, Any] = field(default_factory=dict)
    augment: tuple[str, ...] = ()

    def recipe(self, train: Dataset | Text, steps: int, batch_size: int) -> Recipe:
        """The recipe on these data."""
        loss = train.loss if isinstance(train, Text) else cross_entropy
        said = {"steps": steps, **self.training}
        if isinstance(train, Text) or not self.augment:
            return Recipe((train.x, train.y), loss, self.optimizer, batch_size=batch_size, **said)
        kinds = tuple(kind for kind in self.augment if kind != "flip" or train.shape[0] == 3)
        return Recipe(Augmented(train, min(batch_size, len(train)), kinds), loss, self.optimizer, **said)


@dataclass(frozen=True, eq=False)
class Augmented:
    """Batches of augmented images, in another order at every pass; the last incomplete one is left out."""

    data: Dataset
    batch_size: int
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        augment = Augment(self.kinds, padding(self.data.shape[1]))
        order = torch.randperm(len(self.data))
        for rows in torch.split(order[: len(self) * self.batch_size], self.batch_size):
            yield augment(self.data.x[rows]), self.data.y[rows]


RECIPES: Registry[Practice] = Registry("recipe")

# As the paper trains [arXiv 2402.17440]: plain SGD at a constant rate, nothing else.
RECIPES.add("plain")(Practice("digits", resolve("sgd"), 200, 32))
# The same with Adam, for who may choose the optimiser.
RECIPES.add("plain-adam")(Practice("digits", resolve("adam"), 200, 32))
RECIPES.add("language")(
    Practice(
        "text", resolve(torch.optim.AdamW, {"betas": (0.9, 0.95)}), 200, 16,
        {"weight_decay": 0.1, "schedule": cosine(warmup=0.05), "clip": 1.0},
    )
)  # fmt: skip
# Decay on all parameters, norms and biases too, as with the published residual networks [He et al. 2016, Sec. 4.2].
RECIPES.add("residual")(
    Practice(
        "digits", resolve("nesterov"), 400, 64, {"weight_decay": 5e-4, "no_decay": (), "schedule": cosine()},
        augment=("flip", "crop"),
    )
)  # fmt: skip
RECIPES.add("vit")(
    Practice(
        "digits", resolve(torch.optim.AdamW), 300, 64,
        {"weight_decay": 0.05, "schedule": cosine(warmup=0.05), "clip": 1.0}, augment=("flip", "crop"),
    )
)  # fmt: skip
