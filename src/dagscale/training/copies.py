"""A model to train and measure on, while the user's own stays as it is: a copy that was seen to be one, or a loan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dagscale.errors import CopyError
from dagscale.interrupts import between_changes
from dagscale.tracing import forward
from dagscale.tracing._torch import (
    TorchDispatchMode,
    as_in_training,
    deep_copy,
    is_lazy,
    put_storage,
    storage_key,
    unseen,
)
from dagscale.tracing.gradients import with_gradient
from dagscale.tracing.outputs import output_tensors, tensors_within
from dagscale.tracing.state import State
from dagscale.training.batches import dense
from dagscale.training.draws import Fill
from dagscale.training.seeds import seeded

HALF = (torch.float16, torch.bfloat16)

Run = Callable[[nn.Module], Any]

_LOANS: list[Callable[[], None]] = []
"""What puts back that which is changed at present, the latest last. Called twice, it does no harm."""


@contextmanager
def all_put_back() -> Iterator[None]:
    """Whatever ends what runs inside, at whatever moment, models and random states are as they were. What runs is run
    as in a training, whatever the program around it has switched off.

    One thread at a time: models are borrowed, and PyTorch's switches hold for the whole process.

    Each loan is given back where it ends. Where an interrupt comes in between, it is given back here, while signals
    wait.
    """
    with forward.ONE_AT_A_TIME, between_changes():
        gradients, before = torch.is_grad_enabled(), len(_LOANS)
        try:
            with forward.unchanged_random_state(), as_in_training():
                yield
        finally:
            torch.set_grad_enabled(gradients)  # which PyTorch's optimisers turn in no context manager
            with ExitStack() as stack:
                while len(_LOANS) > before:
                    stack.callback(_LOANS.pop(before))


class WorkingCopy:
    """A model to train and measure on, that can be put back to the user's values at any time.

    It is a deep copy of the user's model, where that is seen to be a model of its own: on the same inputs it gives the
    original's output, gradients reach the same parameters, it reads none of the original's tensors and writes to none.
    Where it is not (a wrapped or compiled forward, hooks that close over the original, parameters tied by hand, what
    cannot be copied), the user's model itself is borrowed, and given back to the bit by `give_back`.

    A copy's values come from the original, so that beside training there is one copy of the weights; only when the
    original has changed since does the copy keep what it holds.

    Args:
        model: the user's.
        run: one forward of a model that it is given, by which the copy is seen to be independent; None to trust it.
        float32: whether half precision becomes float32: squares of signals and small steps need more digits than
            bfloat16 has, and more range than float16 has.
        beside: the user's functions that run beside the model, such as the loss: what they reach of it is the original,
            and what they keep is put back with it.

    Raises:
        CopyError: if the model can be neither copied nor borrowed, or is sharded.
    """

    def __init__(
        self, model: nn.Module, run: Run | None = None, *, float32: bool = False, beside: Iterable[Any] = ()
    ) -> None:
        original = forward.unwrapped(model)
        tensors = [*original.parameters(), *original.buffers()]
        if any(forward.is_sharded(t) for t in tensors):
            raise CopyError(
                "the model is sharded (fully_shard) and is measured on whole: search and plan it before that, and make "
                "plan.optimizer(model) after"
            )
        memo: dict[int, Any] = {}
        made: nn.Module | None = None
        self.why = ""
        if any(is_lazy(t) for t in tensors):
            made = _materialised(original, run)
        else:
            self.why = _used_beside(tensors, beside)
            try:
                with forward.unchanged_random_state():  # some draw weights that are then copied over
                    made = None if self.why else copy.deepcopy(original, memo)
            except Exception as error:
                self.why = f"copy.deepcopy raised {type(error).__name__}"
            if made is not None:
                self.why = _dependence(original, made, memo, run)
        half = float32 and any(t.dtype in HALF for t in tensors)
        self.borrowed = bool(self.why) or made is None
        if self.borrowed and half:
            raise CopyError(
                f"the model cannot be copied ({self.why}) and is in half precision, which is measured on a copy in "
                "float32: give it in float32"
            )
        self.model: nn.Module = original if self.borrowed or made is None else made
        if half:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                if tensor.dtype in HALF:
                    tensor.data = tensor.data.float()
        self._beside = tuple(beside)
        self._state = State(*forward.roots(self.model), *self._beside)
        held = _leaves(self.model, self._state)
        theirs = [] if self.borrowed else _leaves(original, State(*forward.roots(original)))
        sources = {id(memo.get(id(t))): t for t in theirs}
        self._values = [_Value(t, sources.get(id(t))) for t in held]
        self.spoilt = False  # changed behind our back: what it holds is no longer the user's

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Those that are trained."""
        return {n: p for n, p in forward.plain_parameters(self.model).items() if p.requires_grad}

    def reset(
        self, fills: Mapping[str, Fill] | None = None, seed: int = 0, *, train: bool = True, but: Collection[str] = ()
    ) -> nn.Module:
        """The model with the user's values, then drawn anew as ``fills`` say, without gradients; in train mode, or in
        the user's own modes. The parameters ``but`` have the values that they have."""
        own = forward.plain_parameters(self.model)
        if self._restore in _LOANS:
            _end_later(self._restore)
            self._restore({id(own[name]) for name in but})
        else:
            self._take()
            _LOANS.append(self._restore)
        if train:  # before drawing: some adapters write to weights here
            self.model.train()
        if fills:
            apply_fills(self.model, fills, seed)
        forward.without_gradients(self.model)
        return self.model

    def give_back(self) -> None:
        """Put everything back: the user's model where that was borrowed, and what its code keeps in either case. What
        an `all_put_back` has seen to already is left alone: a loan within a loan would bring back what the model was
        between them."""
        if self._restore in _LOANS:
            _end(self._restore)

    def _take(self) -> None:
        """Before a loan: what is put back after it is what there is now. Between two loans all but a copy's own values
        is the user's, who may have changed any of it."""
        self._state = State(*forward.roots(self.model), *self._beside)
        linked = {id(value.tensor): value for value in self._values if value.source is not None}
        self._values = []  # before it is made anew: one copy of the weights at a time
        self._values = [linked.get(id(t)) or _Value(t, None) for t in _leaves(self.model, self._state)]
        for value in self._values:
            if value.differs:
                value.keep()

    def _restore(self, but: Collection[int] = ()) -> None:
        if self.spoilt:
            return
        self._state.restore()
        if any(value.changed for value in self._values):
            self.spoilt = True
            raise CopyError(
                "the model was changed while a copy of it was trained: loss, step and hooks must use the model that "
                "they are given"
            )
        with torch.no_grad():
            for value in self._values:
                if id(value.tensor) not in but:
                    value.restore()


class _Value:
    """One tensor of the model, and where the values that it is put back to are: in the original's, or in a clone."""

    def __init__(self, tensor: Tensor, source: Tensor | None) -> None:
        self.tensor, self.source = tensor, source
        self.made = None if source is None else _version(source)
        self.kept = None if source is not None else _kept(tensor)

    @property
    def changed(self) -> bool:
        """Whether the original has changed since."""
        return self.source is not None and _version(self.source) != self.made

    @property
    def differs(self) -> bool:
        """The same where the copy is at rest and holds what the original had: fused optimisers and writes to ``.data``
        leave no other trace."""
        if self.source is None or self.changed:
            return self.changed
        try:
            return not torch.equal(self.tensor.detach(), self.source.detach().to(self.tensor.dtype))
        except (RuntimeError, NotImplementedError):  # sparse, or of a kind that cannot be compared
            return False

    def keep(self) -> None:
        """From now on, put back what the copy holds now: at rest, the original's values from before."""
        self.source, self.kept = None, _kept(self.tensor)

    def restore(self) -> None:
        if self.source is not None:
            _write(self.tensor, self.source.detach())
        elif isinstance(self.kept, torch.UntypedStorage):
            put_storage(self.tensor.untyped_storage(), self.kept)
        elif self.kept is not None:
            _write(self.tensor, self.kept)


def _end(undo: Callable[[], None]) -> None:
    """Put back what a loan has changed."""
    _end_later(undo)
    undo()
    _LOANS.pop()


def _end_later(undo: Callable[[], None]) -> None:
    """Put back what was lent since this loan began, and that an interrupt kept from being put back: after the loan is
    over, it would bring back what the model was during it."""
    while _LOANS[-1] != undo:
        _LOANS[-1]()
        _LOANS.pop()


def _write(tensor: Tensor, values: Tensor) -> None:
    """In place, and unseen by autograd: a graph that the user holds stays valid where the values are its own again."""
    if tensor.layout is torch.strided or tensor._version:  # a sparse tensor that nobody wrote to needs no writing
        tensor.data.copy_(values)


def _kept(tensor: Tensor) -> Tensor | torch.UntypedStorage:
    """A clone of its values; of its storage, where entries of it are one number in memory."""
    if forward.is_sharded(tensor) or tensor.layout is not torch.strided or not _expanded(tensor):
        return tensor.detach().clone()
    return tensor.untyped_storage().clone()  # type: ignore[no-untyped-call,no-any-return]


def _expanded(tensor: Tensor) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _version(tensor: Tensor) -> tuple[int, int]:
    """Changes when somebody writes to the tensor or re-points it."""
    return (0 if tensor.is_inference() else tensor._version, _address(tensor))


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def _leaves(model: nn.Module, state: State) -> list[Tensor]:
    """The tensors whose values are the model's own, each once: parameters, buffers, and what its code keeps.

    Left out is what is larger than all parameters and buffers together: data that some function can reach.
    """
    found = {id(t): t for t in (*model.parameters(), *model.buffers()) if not (t.is_meta or is_lazy(t))}
    most = max((sum(map(_bytes, found.values())), 1 << 20))
    for tensor in state.tensors:
        if tensor.is_leaf and not tensor.is_meta and not is_lazy(tensor) and _bytes(tensor) <= most:
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# --- whether a copy is one ------------------------------------------------------------------------------------------


def _materialised(model: nn.Module, run: Run | None) -> nn.Module:
    """A copy of a model with lazy layers, which ran once and so has shapes and values."""
    try:
        with forward.unchanged_random_state():
            made = deep_copy(model)
    except Exception as error:
        raise CopyError(
            f"the model has lazy layers and cannot be copied (copy.deepcopy raised {type(error).__name__}): run its "
            "forward once first"
        ) from error
    if run is None:
        raise CopyError("the model has lazy layers without values: run its forward once first")
    with seeded(0), forward.eagerly():
        forward.without_record(lambda: run(made))
    return made


def _used_beside(tensors: Iterable[Tensor], functions: Iterable[Any]) -> str:
    """Why the user's functions need the model itself; empty if they do not."""
    theirs = {_key(t) for t in tensors if not (t.is_meta or is_lazy(t))} - {0}
    for function in functions:
        if function is not None and any(_key(t) in theirs for t in State(function).tensors if not is_lazy(t)):
            return f"{getattr(function, '__name__', type(function).__name__)} uses the model itself"
    return ""


def _dependence(original: nn.Module, made: nn.Module, memo: Mapping[int, Any], run: Run | None) -> str:
    """Why a copy is no model of its own; empty if it is one."""
    theirs = [*original.parameters(), *original.buffers()]
    own = [*made.parameters(), *made.buffers()]
    if any(t._backward_hooks or getattr(t, "_post_accumulate_grad_hooks", None) for t in theirs):
        return "its parameters have hooks, which a copy loses"
    if {_key(t) for t in own} & ({_key(t) for t in theirs} - {0}):
        return "its copy shares tensors with it"
    if len(own) != len(theirs):
        return "its copy has other parameters"
    if _ties(own) != _ties(theirs):
        return "two of its parameters share their values, and those of its copy do not"
    if run is None or any(t.is_meta for t in theirs):
        return ""
    reference = State(*forward.roots(original))
    copied = [t for t in reference.tensors if id(t) in memo and memo[id(t)] is not t]
    watched = {_key(t) for t in (*theirs, *copied)} - {0}
    every = watched | {_key(t) for t in reference.tensors} - {0}
    with forward.unchanged_random_state():
        for train in (True, False):
            right = _observed(original, run, _Watch(set(), set()), train, reference)
            if right is not None:
                break
        else:
            return ""  # it is told, and why, when it is measured
        watch = _Watch(watched, every)
        seen = _observed(made, run, watch, train, State(*forward.roots(original), *forward.roots(made)))
    if watch.read:
        return "its copy's forward uses the original's tensors"
    if watch.wrote:
        return "its copy's forward writes to tensors that the original keeps"
    if seen is None:
        return "its copy's forward raises, and its own does not"
    if seen[1] != right[1]:
        return "gradients reach other parameters in its copy"
    if not _alike(seen[0], right[0]):
        with forward.unchanged_random_state():
            again = _observed(original, run, _Watch(set(), set()), train, reference)
        if again is not None and _alike(again[0], right[0]):
            return "its copy gives another output"
    return ""


Seen = tuple[list[Tensor], set[str]]


def _observed(model: nn.Module, run: Run, watch: _Watch, train: bool, state: State) -> Seen | None:
    """The outputs of one forward, and which parameters gradients of them reach; None if it raises. All that the
    forward changes is put back."""
    watch.save(*(t for t in _leaves(model, state) if not isinstance(t, nn.Parameter)))

    def observed() -> Seen | None:
        try:
            with seeded(0), torch.enable_grad(), forward.eagerly(), watch:
                if train:
                    model.train()
                value = run(model)
            outputs = output_tensors(value)
            outputs = outputs or tensors_within(value)
            reached, _ = with_gradient(outputs, list(forward.named_parameters(model)), fake=False)
            return [t.detach() for t in outputs], reached
        except Exception:
            return None

    def undo() -> None:
        state.restore()
        watch.restore()

    _LOANS.append(undo)
    try:
        return observed()
    finally:
        _end(undo)


def _alike(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether outputs are the same but for rounding."""
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return False
    for a, b in zip(ours, theirs, strict=True):
        digits = 1e-2 if a.dtype in HALF else 1e-4
        a, b = dense(a), dense(b)
        if a.is_floating_point() or a.is_complex():
            sizes = b.detach().abs().float().nan_to_num(0, 0, 0)
            most = float(sizes.max()) if sizes.numel() else 0.0
            if not torch.allclose(a, b.to(a.dtype), digits, digits * most, equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether operators read certain storages or write to certain others, and can undo what they write."""

    def __init__(self, reading: set[int], writing: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reading, self.writing = reading, writing
        self.read = self.wrote = False
        self._saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.reading and not self.read:
            self.read = any(_key(t) in self.reading for t in _tensors((args, kwargs)))
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in _tensors(value):
                    self.wrote = self.wrote or _key(tensor) in self.writing
                    self.save(tensor)
        return func(*args, **kwargs)

    def save(self, *tensors: Tensor) -> None:
        """Keep what these hold now."""
        for tensor in tensors:
            key = 0 if is_lazy(tensor) else _key(tensor)
            if key and key not in self._saved:
                with unseen():
                    storage = tensor.untyped_storage()
                    self._saved[key] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        """Put back what was written over."""
        for storage, values in self._saved.values():
            put_storage(storage, values)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _key(tensor: Tensor) -> int:
    """Its storage; 0 where it has none of its own, or an empty one."""
    return storage_key(tensor) if _address(tensor) else 0


def _ties(tensors: Iterable[Tensor]) -> set[frozenset[int]]:
    """Which of the tensors lie over one another in memory, by their places in the list."""
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for i, t in enumerate(tensors):
        if (key := _key(t)) and t.numel():
            last = sum(int((size - 1) * step) for size, step in zip(t.shape, t.stride(), strict=True))
            begin = int(t.storage_offset()) * t.element_size()
            spans.setdefault(key, []).append((begin, begin + (last + 1) * t.element_size(), i))
    found: set[frozenset[int]] = set()
    for own in spans.values():
        end, group = -1, set[int]()
        for begin, stop, i in sorted(own):
            if begin >= end and group:
                found.add(frozenset(group))
                group = set()
            group.add(i)
            end = max(end, stop)
        found.add(frozenset(group))
    return {group for group in found if len(group) > 1}


# --- drawing --------------------------------------------------------------------------------------------------------


def apply_fills(model: nn.Module, fills: Mapping[str, Fill], seed: int) -> None:
    """Draw the trainable parameters that ``fills`` names; an embedding's padding row is 0."""
    padding = padding_rows(model)
    with torch.no_grad():
        for name, parameter in forward.plain_parameters(model).items():
            fill = fills.get(name)
            if fill is not None and parameter.requires_grad:
                parameter.copy_(fill.draw(name, parameter, seed))
                if id(parameter) in padding:
                    parameter[padding[id(parameter)]] = 0


def padding_rows(model: nn.Module) -> dict[int, int]:
    """``id(weight)`` → the row of an embedding that stands for padding: it stays 0, as PyTorch makes it."""
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return {id(m.weight): m.padding_idx for m in embeddings if m.padding_idx is not None}
