"""Batches to train and measure on, whatever the data come as.

Data are two tensors, anything with an ``x`` and a ``y`` (such as `dagscale.bench.data.Dataset`), a torch ``Dataset``, a
``DataLoader``, or any other iterable of batches that can be iterated again. Only batches that are used are read, and
nothing is moved to a device but the batch at hand.

A batch is what the model takes and, if there is one, a target for the loss. Of ``(x, y)`` the first is the model's
input and the second the target; a lone tensor, or a tuple of one, is an input without a target; a dict is given to the
model by keywords, and its ``labels`` are the target too. For other structures, give a recipe ``unpack``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dagscale.errors import BatchError, DagscaleError, RecipeError
from dagscale.shown import one_line
from dagscale.tracing.forward import bind_inputs
from dagscale.tracing.state import State
from dagscale.training.seeds import seeded

T = TypeVar("T")

Inputs = Any
"""What a model takes: a tensor, a tuple of positional arguments or a dict of keyword arguments, of tensors whose first
dimension counts examples."""

LARGEST = 1 << 24
"""Examples of which an order is kept in memory."""

LABELS = ("labels", "label")
"""Keys of a batch that is a dict under which its target stands."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is given and what its output is held against.

    Attributes:
        inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        target: what ``loss(output, target)`` takes; None if there is none.
        labelled: whether the model is given its labels too, and so may answer with its own loss.
        whole: whether its rows may depend on one another, as the nodes of a graph do, so that none is left out.
    """

    inputs: Inputs
    target: Any = None
    labelled: bool = False
    whole: bool = False

    @property
    def size(self) -> int:
        """Examples in it: the length of its first tensor; or of its lists, where it holds nothing else and they are all
        as long, as images and boxes one by one are."""
        inputs, target = self.inputs, self.target
        given = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
        parts = [*given] if target is None else [*given, target]
        lengths = {len(part) if isinstance(part, list) else 0 for part in parts}
        if len(parts) > 1 and len(lengths) == 1 and lengths != {0}:
            return lengths.pop()
        return next((len(t) for t in tree_leaves(self.inputs) if isinstance(t, Tensor) and t.ndim), 1)

    def first(self, n: int) -> Batch:
        """Its first ``n`` examples; itself where it has no more, or cannot be cut.

        Tensors of a graph differ in length, are sparse, or hold a number for every two nodes: such are not cut.
        """
        size = self.size
        parts = [t for t in tree_leaves((self.inputs, self.target)) if isinstance(t, Tensor) and t.ndim]
        if self.whole or size <= n or any(not cuttable(t) or len(t) != size or pairwise(t) for t in parts):
            return self
        return replace(self, inputs=take(self.inputs, slice(n)), target=take(self.target, slice(n)))

    def to(self, model: nn.Module) -> Batch:
        """On the model's device and, what is floating, in its floating type; in tensors of its own, since some forwards
        and losses write to theirs."""
        return replace(self, inputs=_own(model, self.inputs), target=_own(model, self.target))


Unpack = Callable[[Any], tuple[Inputs, Any]]
"""A user's function from one batch of the data to (inputs, target)."""


def unpacked(batch: Any, unpack: Unpack | None = None) -> Batch:
    """A `Batch` of whatever the data hold.

    Raises:
        RecipeError: if it has no structure that is known.
    """
    if unpack is not None:
        try:
            inputs, target = unpack(batch)
        except Exception as error:
            raise BatchError(
                f"unpack raised {one_line(error)}, on a batch of {type(batch).__name__}; it "
                "must return (inputs, target)"
            ) from error
        return Batch(detached(inputs), detached(target))
    batch = detached(batch)
    if isinstance(batch, Tensor):
        return Batch(batch)
    if isinstance(batch, Mapping):
        key = next((key for key in LABELS if key in batch), None)
        return Batch(dict(batch), None if key is None else batch[key], labelled=key is not None)
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        x = batch[0]
        x = dict(x) if isinstance(x, Mapping) else tuple(x) if isinstance(x, list) else x
        return Batch(x, batch[1] if len(batch) == 2 else None)
    found, such = type(batch).__name__, ""
    if isinstance(batch, (tuple, list)):
        found = f"{len(batch)} things"
        such = (
            ", as in (tuple(batch[:-1]), batch[-1]) where all but the last are what the model takes, or "
            "((batch,), None) where it takes the whole as one"
        ) if batch else ""  # fmt: skip
    raise BatchError(
        f"a batch must be (inputs, target), a tensor or a dict, and is {found}: give the recipe unpack=lambda batch: "
        f"(inputs, target){such}"
    )


class Source(Protocol):
    """Where batches come from."""

    @property
    def batch_size(self) -> int | None:
        """Examples a batch, if they are all as long."""

    @property
    def examples(self) -> int | None:
        """How many there are; None if nobody knows."""

    def steps(self, epochs: int) -> int | None:
        """Batches in so many passes over the data; None if nobody knows."""

    def batches(self, seed: int, size: int | None = None) -> Iterator[Batch]:
        """Without end, in the order that training sees under this seed.

        Args:
            size: examples a batch, where the source can choose; at most so many where it cannot.
        """

    def sample(self, examples: int, size: int) -> Iterator[Batch]:
        """Some fixed examples, in batches of at most ``size``: always the same ones."""


def source(data: Any, batch_size: int | None, unpack: Unpack | None = None) -> Source:
    """The source of a person's data.

    Args:
        data: tensors, something with ``x`` and ``y``, a ``Dataset``, a ``DataLoader``, or an iterable of batches. A
            tuple of equally long tensors is what a ``TensorDataset`` has; but tensors that are all alike, as
            ``x.split(32)`` gives them, are batches where no ``batch_size`` says otherwise.
        batch_size: examples a batch, 128 by default; a ``DataLoader`` or an iterable of batches has its own.

    Raises:
        RecipeError: if the data are none of these, or there is too little of them.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and _is_pair_of_tensors(data):
        return Rows(_Tensors(*checked(data), unpack), batch_size or 128)
    if not isinstance(data, (torch.utils.data.Dataset, torch.utils.data.DataLoader)) and hasattr(data, "x"):
        return Rows(_Tensors(*checked(data), unpack), batch_size or 128)
    tensors = isinstance(data, tuple) and all(isinstance(t, Tensor) and t.ndim for t in data)
    alike = tensors and len(data) > 1 and len({(t.shape[1:], t.dtype) for t in data}) == 1
    if tensors and len({len(t) for t in data}) == 1 and (batch_size is not None or not alike):
        data = torch.utils.data.TensorDataset(*data)
    indexed = isinstance(data, torch.utils.data.Dataset) and not isinstance(data, torch.utils.data.IterableDataset)
    if indexed or _is_column_store(data):
        return Rows(_Indexed(data, unpack), batch_size or 128)
    if isinstance(data, Tensor):
        raise RecipeError(f"data is one tensor, {tuple(data.shape)}: give data=(x, y), or batches of tensors alone")
    if isinstance(data, (str, bytes, dict)) or not isinstance(data, Iterable):
        raise RecipeError(
            f"data must be (x, y), a torch Dataset or DataLoader, or an iterable of batches, not {type(data).__name__}"
        )
    if isinstance(data, Iterator):
        raise RecipeError(
            f"data can be iterated once only ({type(data).__name__}): give what makes it anew, such as a list, a "
            "DataLoader, or an object whose __iter__ is a generator function"
        )
    if isinstance(data, torch.utils.data.IterableDataset):
        raise RecipeError("an IterableDataset has no batches yet: wrap it, DataLoader(data, batch_size=...)")
    own = getattr(data, "batch_size", None)
    if batch_size is not None and own is not None and batch_size != own:
        raise RecipeError(f"batch_size={batch_size}, and the DataLoader has {own}: leave batch_size out")
    if batch_size is not None and own is None:
        if tensors and len({len(t) for t in data}) > 1:
            raise RecipeError(
                f"the columns of data must have one length, got {', '.join(str(len(t)) for t in data)}; batches have "
                "their own size, and no batch_size"
            )
        raise RecipeError(
            f"batch_size={batch_size}, and the data are a {type(data).__name__} of batches, which have their own size: "
            "leave batch_size out, or give the examples, as a tuple of tensors or a Dataset"
        )
    return Stream(data, unpack)


def _is_pair_of_tensors(data: Any) -> bool:
    """Whether it is (x, y) in memory, rather than a list of two batches."""
    return isinstance(data, tuple) or isinstance(data[1], Tensor)


def _is_column_store(data: Any) -> bool:
    """Whether it is a table of a library such as Hugging Face's datasets: a length, rows, and named columns."""
    return hasattr(data, "column_names") and hasattr(data, "__getitem__") and hasattr(data, "__len__")


# --- examples that can be had by number ------------------------------------------------------------------------


class _Examples(Protocol):
    def __len__(self) -> int: ...
    def rows(self, numbers: Tensor) -> Batch: ...
    def stream(self, seed: int) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True, eq=False)
class _Tensors:
    """Examples in memory."""

    x: Inputs
    y: Any
    unpack: Unpack | None = None

    def __len__(self) -> int:
        return next(len(t) for t in tree_leaves(self.x) if isinstance(t, Tensor))

    def rows(self, numbers: Tensor) -> Batch:
        batch = take(self.x, numbers), take(self.y, numbers)
        return Batch(*batch) if self.unpack is None else unpacked(batch, self.unpack)

    def stream(self, seed: int) -> AbstractContextManager[Any]:
        return nullcontext() if self.unpack is None else _Foreign(None, self.unpack).stream(seed)


class _Foreign:
    """Data of the user's, whose code may draw random numbers and may keep generators of its own."""

    def __init__(self, data: Any, unpack: Unpack | None = None) -> None:
        self.data, self.unpack = data, unpack

    def stream(self, seed: int) -> AbstractContextManager[Any]:
        """Around every read of the data: gives them one stream of random numbers, the same under the same seed."""
        return seeded(seed, self._generators)

    @cached_property
    def _generators(self) -> list[Any]:
        return State(self.data, self.unpack, values=False).generators


class _Indexed(_Foreign):
    """A torch ``Dataset``, or a table, collated as ``DataLoader`` does."""

    def __init__(self, data: Any, unpack: Unpack | None) -> None:
        if len(data) < 2:
            raise RecipeError(f"at least 2 examples are needed, got {len(data)}")
        super().__init__(data, unpack)

    def __len__(self) -> int:
        return len(self.data)

    def rows(self, numbers: Tensor) -> Batch:
        examples = []
        for i in numbers.tolist():
            try:
                examples.append(self.data[i])
            except Exception as error:
                raise BatchError(f"example {i} of the data set raised {one_line(error)}") from error
        try:
            batch = torch.utils.data.default_collate(examples)
        except Exception as error:
            raise BatchError(
                f"the data set cannot be read into a batch, {one_line(error)}; give a "
                "DataLoader with a collate_fn of its own"
            ) from error
        return unpacked(batch, self.unpack)


@dataclass(frozen=True, eq=False)
class Rows:
    """Batches of numbered examples, reshuffled at every pass; the last incomplete batch is dropped.

    Of more than ``LARGEST`` examples each batch is drawn by itself. What a data set draws at random, such as an
    augmentation, is seeded: batches under one seed are always the same.
    """

    numbered: _Examples
    batch_size: int

    @property
    def examples(self) -> int:
        return len(self.numbered)

    def steps(self, epochs: int) -> int:
        return epochs * max(1, len(self.numbered) // self.batch_size)

    def batches(self, seed: int, size: int | None = None) -> Iterator[Batch]:
        n = len(self.numbered)
        size = min(n, size or self.batch_size)
        generator, own = torch.Generator().manual_seed(seed), self.numbered.stream(seed)
        while True:
            if n > LARGEST:  # an order of so many numbers is as large as the data
                yield self._rows(torch.randint(n, (size,), generator=generator), own)
                continue
            order = torch.randperm(n, generator=generator)
            for rows in torch.split(order[: n - n % size], size):
                yield self._rows(rows, own)

    def _rows(self, numbers: Tensor, own: AbstractContextManager[Any]) -> Batch:
        with own:
            return self.numbered.rows(numbers)

    def sample(self, examples: int, size: int) -> Iterator[Batch]:
        """Batch sizes differ by at most one: no batch statistics come from a lone last example."""
        n, generator = len(self.numbered), torch.Generator().manual_seed(0)
        small = n <= LARGEST
        rows = (
            torch.randperm(n, generator=generator)[:examples]
            if small
            else torch.randint(n, (examples,), generator=generator)
        )
        own = self.numbered.stream(0)
        for part in rows.tensor_split(-(-len(rows) // size)):
            yield self._rows(part, own)


# --- batches that come as they come ----------------------------------------------------------------------------


class Stream(_Foreign):
    """A ``DataLoader``, or any iterable of batches, read anew for every pass.

    What it draws at random, such as an order or an augmentation, is seeded: a pass under one seed is always the same.
    So are generators of its own, such as a sampler's, and they are as they were between batches.
    """

    _structure: Any = None

    @property
    def batch_size(self) -> int | None:
        own = getattr(self.data, "batch_size", None)
        return own if isinstance(own, int) else None

    @property
    def examples(self) -> int | None:
        return None

    def steps(self, epochs: int) -> int | None:
        with suppress(TypeError, NotImplementedError):
            return epochs * max(1, len(self.data))
        return None

    def _pass(self, seed: int) -> Iterator[Batch]:
        """One pass, with one stream of random numbers of its own; the user's go on between batches."""
        own = self.stream(seed)
        with own:
            iterator = _read(iter, with_own_workers(self.data))
        if self._structure is None and not isinstance(self.data, torch.utils.data.DataLoader):
            with self.stream(seed):  # it may draw an order at once
                once = _read(iter, self.data) is iterator
            if once:  # known before anything is taken from it
                raise BatchError(ONCE)
        while True:
            with own:
                raw = _read(next, iterator, _END)
            if raw is _END:
                return
            yield self._checked(raw)

    def _checked(self, raw: Any) -> Batch:
        structure = _structure(raw)
        if self._structure is None:
            self._structure = structure
        elif structure != self._structure:
            raise BatchError(
                f"the batches change their structure: {self._structure} before, {structure} now; give a collate_fn "
                "that makes them alike"
            )
        batch, size = unpacked(raw, self.unpack), self.batch_size
        return replace(batch, whole=size is None or batch.size > size)

    def batches(self, seed: int, size: int | None = None) -> Iterator[Batch]:
        for number in range(1 << 62):
            empty = True
            for batch in self._pass(seed + 7919 * number):
                empty = False
                yield batch if size is None else batch.first(size)
            if empty:
                raise BatchError("the data hold no batch: the loader is empty" if number == 0 else ONCE)

    def sample(self, examples: int, size: int) -> Iterator[Batch]:
        left = examples
        for batch in self._pass(0):
            batch = batch.first(min(size, left))
            left -= batch.size
            yield batch
            if left <= 0:
                return


def with_own_workers(data: Any) -> Any:
    """The data as they are; of a ``DataLoader`` whose workers persist, a copy whose workers end with each pass. The
    loader itself has one iterator for all who read it: another pass would begin the user's anew, and workers that have
    begun already cannot be seeded."""
    if not (isinstance(data, torch.utils.data.DataLoader) and data.persistent_workers):
        return data
    made = copy.copy(data)
    vars(made).update(_iterator=None, persistent_workers=False)  # past a guard on setting attributes
    return made


ONCE = "the data can be iterated once only: give what makes them anew, such as a DataLoader"
_END = object()


def _read(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of the user's data gives.

    Raises:
        BatchError: on one line, whatever it raises.
    """
    try:
        return function(*arguments)
    except DagscaleError:
        raise
    except Exception as error:
        raise BatchError(f"reading the data raised {one_line(error)}") from error


def _structure(raw: Any, inside: bool = False) -> str:
    """The structure of a batch without its sizes, for messages."""
    if isinstance(raw, Mapping):
        return "{" + ", ".join(f"{key}: {_structure(value, True)}" for key, value in raw.items()) + "}"
    if isinstance(raw, (tuple, list)):
        kinds = [_structure(item, True) for item in raw]
        if (inside or isinstance(raw, list)) and len(set(kinds)) == 1:
            return f"[{kinds[0]}, …]"  # examples one by one, as detectors take them: batches differ in their number
        return "(" + ", ".join(kinds) + ")"
    return f"{raw.ndim}-d tensor" if isinstance(raw, Tensor) else type(raw).__name__


# --- tensors in memory -----------------------------------------------------------------------------------------


def checked(data: Any) -> tuple[Inputs, Any]:
    """``(x, y)``, if it can be trained on; a mapping of inputs as a dict, a list of them as a tuple.

    Raises:
        RecipeError: if it cannot.
    """
    pair = data if isinstance(data, (tuple, list)) else (getattr(data, "x", None), getattr(data, "y", None))
    if len(pair) != 2 or pair[0] is None:
        raise RecipeError(f"data must be two tensors, data=(x, y), got {type(data).__name__}")
    x, y = pair
    x = dict(x) if isinstance(x, Mapping) else tuple(x) if isinstance(x, list) else x
    leaves = tree_leaves(x)
    targets = tree_leaves(y)
    if not (leaves and all(isinstance(t, Tensor) for t in leaves) and targets) or not all(
        isinstance(t, Tensor) for t in targets
    ):
        raise RecipeError(
            f"data must be two tensors, x and y, got {type(x).__name__} and {type(y).__name__}; x may also be a tuple "
            "or a dict of tensors, as the model takes them, and data a torch Dataset or DataLoader"
        )
    length = len(targets[0]) if targets[0].ndim else -1
    if any(t.ndim == 0 for t in (*leaves, *targets)) or any(len(t) != length for t in (*leaves, *targets)):
        raise RecipeError(f"x and y must have one length, got shapes {shapes(x)} and {shapes(y)}")
    if length < 2:
        raise RecipeError(f"at least 2 examples are needed, got {length}")
    if any(not cuttable(t) for t in (*leaves, *targets)) or (len(leaves) > 1 and any(map(pairwise, leaves))):
        raise RecipeError(
            f"x of shapes {shapes(x)} holds a sparse tensor, or numbers for every two examples, and no batch of rows "
            "can be taken from it: give whole batches, data=[(x, y)], or keep it in the model as a buffer"
        )
    for leaf in leaves:
        alone = isinstance(x, Tensor) and not leaf.is_floating_point()  # among several, one may be a mask
        if leaf.ndim > 2 and (leaf.dtype == torch.uint8 or alone):
            raise RecipeError(
                f"x of shape {tuple(leaf.shape)} holds {leaf.dtype}: make images floating, as in x.float() / 255"
            )
        if alone and leaf.dtype in (torch.uint8, torch.bool):
            raise RecipeError(
                f"x of shape {tuple(leaf.shape)} holds {leaf.dtype}: make features floating, x.float(), and tokens "
                "int64, x.long()"
            )
    check_finite(x, y)
    return detached(x), detached(y)


def cuttable(tensor: Tensor) -> bool:
    """Whether rows can be taken from it: neither sparse nor nested."""
    return tensor.layout is torch.strided and not tensor.is_nested


def dense(tensor: Tensor) -> Tensor:
    """All its numbers, in rows of one length; those of a nested tensor one after the other."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor.values() if tensor.layout is torch.jagged else tensor.to_dense()


def pairwise(tensor: Tensor) -> bool:
    """Whether it looks like a number for every two examples, as a graph's adjacency does."""
    return tensor.ndim > 1 and len(tensor) == tensor.shape[1]


def detached(values: Any) -> Any:
    """The same without gradients: a backward goes through the model alone, and each batch anew."""
    return each(lambda t: t.detach() if t.requires_grad else t, values)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all of their floating numbers are finite."""
    return all(bool(dense(t).isfinite().all()) for t in tensors if t.is_floating_point())


def check_finite(x: Inputs, y: Any) -> None:
    """Raise RecipeError where there are NaN or infinite values."""
    for name, values in (("x", tree_leaves(x)), ("y", tree_leaves(y))):
        if not all_finite(values):
            gaps = ", or give batches, data=[(x, y), …], to a loss that leaves gaps out" if name == "y" else ""
            raise RecipeError(f"{name} holds NaN or infinite values: clean the data first{gaps}")


def take(values: Inputs, rows: Tensor | slice) -> Inputs:
    """The examples with these numbers, on the device where they lie."""
    return each(lambda t: t[rows.to(t.device) if isinstance(rows, Tensor) else rows] if t.ndim else t, values)


def to_model(model: nn.Module, values: Inputs) -> Inputs:
    """``values`` on the model's device and, if floating, in its floating type."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return values
    return each(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), values)


def _own(model: nn.Module, values: Inputs) -> Inputs:
    """As `to_model`, in tensors that nobody else holds."""
    given = {id(t) for t in tree_leaves(values)}
    return each(lambda t: t.clone() if id(t) in given else t, to_model(model, values))


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output for these inputs."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = bind_inputs(model, inputs)
    return model(*args, **kwargs)


def logits(output: Any) -> Any:
    """The tensor in a model's output: itself, ``output.logits``, ``output["logits"]``; else the output as it is."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def shapes(values: Any) -> str:
    """Shapes of the tensors, for messages: ``(8, 3)`` or ``{'ids': (8, 5), 'mask': (8, 5)}``."""

    def named(value: Any) -> Any:
        if isinstance(value, Tensor):
            return tuple(value.shape)
        return f"{len(value)} strings" if _strings(value) else type(value).__name__

    return str(tree_map(named, values, is_leaf=_strings))


def _strings(value: Any) -> bool:
    """Whether it is a list of strings, as collated names of files are."""
    return isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(one, str) for one in value)


def typed(values: Any) -> str:
    """Shape and type of a tensor, shapes of several, for messages: ``(8, 3) torch.float32``."""
    return f"{shapes(values)} {values.dtype}" if isinstance(values, Tensor) else shapes(values)


def each(function: Callable[[Tensor], Any], values: Any) -> Any:
    """The same structure, a function's value in place of every tensor."""
    if isinstance(values, Tensor):
        return function(values)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, values)
