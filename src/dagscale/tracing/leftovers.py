"""Tensors of a trace that the model's code has put somewhere: found by the garbage collector, and taken out."""

from __future__ import annotations

import functools
import gc
import traceback
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Find = Callable[[], list[Any]]

ROUNDS = 4
_CACHE = type(functools.lru_cache(lambda: None))

_APART: list[None] = []
"""As many as there are traces under way, one inside the other."""


@contextmanager
def nothing_left(find: Callable[[list[Any]], list[Any]], notes: list[str], *, compiled: bool = False) -> Iterator[None]:
    """On leaving, no tensor that ``find(objects)`` picks is alive.

    What a forward leaves in a model's own state is put back beforehand (:class:`~dagscale.tracing.state.State`).
    This is the net below: caches of ``functools``, and containers that no walk from the model leads to. An entry
    that holds a tensor made meanwhile was made meanwhile, and is taken out. The objects of before are set apart
    (``gc.freeze``), so that looking through those of meanwhile costs next to nothing.

    Args:
        notes: gets a line for each place where a tensor was and what was there before is not known.
        compiled: whether the model has code that may hold tensors where Python does not see them.
    """
    depth = len(_APART)
    outermost = depth == 0
    frozen = outermost and gc.get_freeze_count() > 0  # by the user: they would hide what holds a tensor
    if outermost:
        gc.freeze()
    try:
        _APART.append(None)
        yield
    except BaseException as error:
        clear_frames(error)
        raise
    finally:
        fresh: frozenset[int] = frozenset()
        try:
            left = bool(find(gc.get_objects()))
            if left:
                gc.collect()
                objects = gc.get_objects()
                left = bool(find(objects))
                fresh = frozenset(map(id, objects)) if outermost and left else fresh
                del objects
        finally:
            del _APART[depth:]
            if outermost:
                gc.unfreeze()
        try:
            if left:
                notes.extend(_take_out(lambda: find(gc.get_objects()), fresh, compiled))
        finally:
            if frozen:
                gc.freeze()


def clear_frames(error: BaseException | None) -> None:
    """Let go of the local variables of the frames that ``error`` came through; its text and lines stay."""
    seen: set[int] = set()
    chain = [error]
    while chain:
        error = chain.pop()
        if error is not None and id(error) not in seen:
            seen.add(id(error))
            traceback.clear_frames(error.__traceback__)
            chain += [error.__cause__, error.__context__]


def _take_out(find: Find, fresh: frozenset[int], compiled: bool) -> list[str]:
    """Cut every way from an older object to a tensor that ``find`` finds.

    Args:
        fresh: ids of the objects made meanwhile, through which the way may lead.
    """
    places: list[str] = []
    for again in range(ROUNDS):
        found = find()
        if not found:
            break
        _let_go(found, fresh, set(), places, bool(again))
        del found  # it would keep alive what is looked for
    notes = [
        f"the forward left a tensor of the trace in {place} and what was there before is not known: set it anew"
        for place in dict.fromkeys(places)
    ]
    found = find()
    held = [holder for holder in _holders(found) if holder is not found and not isinstance(holder, types.FrameType)]
    if found and (held or compiled):  # else by autograd's record alone, for a counter of operations that runs beside
        notes.append("the forward keeps a tensor of the trace where it cannot be taken out: make the model anew")
    return notes


def _let_go(things: list[Any], fresh: frozenset[int], ours: set[int], places: list[str], cut: bool) -> None:
    """Take ``things`` out of whatever holds them, or what they are held by out of what holds that.

    All at once, for the collector goes through every object of the process to find who holds something. Neither a
    generator nor a closure, here and below: the collector would count them among the holders.

    Args:
        ours: ids of objects that are to be passed over: our own lists, and those already seen.
        places: gets the names of the variables that they were taken out of.
        cut: whether to empty new closures too, which the frames of an exception keep when nothing else does.
    """
    holders = _holders(things)
    ours.update((id(things), id(holders)))
    wanted = frozenset(map(id, things))
    variables = _variables([holder for holder in holders if type(holder) is dict and id(holder) not in ours], ours)
    further: list[Any] = []
    for holder in holders:
        if id(holder) in ours or isinstance(holder, types.FrameType):
            continue
        if isinstance(holder, _CACHE):
            holder.cache_clear()
        elif isinstance(holder, types.CellType) and cut and id(holder) in fresh:
            del holder.cell_contents
        elif id(holder) in variables:
            _out_of_dict(holder, wanted, ours, places)
        elif id(holder) in fresh or isinstance(holder, (tuple, frozenset, types.FunctionType, types.MethodType)):
            ours.add(id(holder))
            further.append(holder)
        elif isinstance(holder, dict):
            _out_of_dict(holder, wanted, ours, places)
        elif isinstance(holder, list):
            holder[:] = _without(wanted, holder)
        elif isinstance(holder, set):
            kept = _without(wanted, holder)
            holder.clear()
            holder.update(kept)
        elif isinstance(holder, deque):
            kept = _without(wanted, holder)
            holder.clear()
            holder.extend(kept)
        elif isinstance(holder, types.CellType):
            del holder.cell_contents
            places.append("a variable of a closure")
        else:
            _out_of_attributes(holder, wanted, places)
    if further:
        _let_go(further, fresh, ours, places, cut)


def _holders(things: list[Any]) -> list[Any]:
    """What holds them, without the tuple of the call's own arguments, which Python 3.13 and newer count among these."""
    last, kept = object(), []
    for holder in gc.get_referrers(*things, last):
        if not (type(holder) is tuple and holder and holder[-1] is last):
            kept.append(holder)
    return kept


def _without(wanted: frozenset[int], items: Iterable[Any]) -> list[Any]:
    return [item for item in items if id(item) not in wanted]


def _variables(dicts: list[dict[Any, Any]], ours: set[int]) -> frozenset[int]:
    """The ids of those dicts that a global variable or an attribute names.

    The collector does not track a dict before it holds something it tracks, so that an empty one of before looks
    like one of meanwhile.
    """
    if not dicts:
        return frozenset()
    owners = _holders(dicts)
    ours.update((id(dicts), id(owners)))
    tables = [owner for owner in owners if isinstance(owner, dict) and id(owner) not in ours]
    further = _holders(tables) if tables else []
    ours.update((id(tables), id(further)))
    namespaces = frozenset(id(getattr(owner, "__dict__", None)) for owner in further)
    named: set[int] = set()
    for owner in owners:
        if id(owner) in ours:
            continue
        if not isinstance(owner, dict):
            named.update(map(id, _values_of(owner)))
        elif id(owner) in namespaces or any(map(_is_of_a_thread, owner)):
            named.update(map(id, owner.values()))
    return frozenset(named.intersection(map(id, dicts)))


def _is_of_a_thread(key: Any) -> bool:
    """Whether it stands for a thread in the table of a ``threading.local``, which is Python's own to change."""
    return isinstance(key, weakref.ref) and type(key()).__name__ == "_localdummy"


def _values_of(owner: Any) -> Iterable[Any]:
    return getattr(owner, "__dict__", {}).values()


def _out_of_dict(holder: dict[Any, Any], wanted: frozenset[int], ours: set[int], places: list[str]) -> None:
    owners = _holders([holder])
    ours.add(id(owners))
    owner = None
    for candidate in owners:
        if isinstance(candidate, type) or getattr(candidate, "__dict__", None) is holder:
            owner = candidate
    for key, value in list(holder.items()):
        if id(value) not in wanted and id(key) not in wanted:
            continue
        if isinstance(owner, type):
            type.__delattr__(owner, key)
        elif isinstance(owner, types.ModuleType):  # code that makes its global variables late begins with None
            holder[key] = None
        else:
            del holder[key]
        if owner is not None and not _is_torch(owner):
            named = owner if isinstance(owner, (type, types.ModuleType)) else type(owner)
            places.append(f"{named.__name__}.{key}")


def _is_torch(owner: Any) -> bool:
    """Whether it is a module of PyTorch's own, which makes what it finds empty anew."""
    return isinstance(owner, types.ModuleType) and owner.__name__.partition(".")[0] == "torch"


def _out_of_attributes(holder: Any, wanted: frozenset[int], places: list[str]) -> None:
    """Attributes of an object that keeps them in slots, or in no dict yet."""
    names = [n for c in type(holder).__mro__ for n, v in vars(c).items() if type(v) is types.MemberDescriptorType]
    for name in (*names, *getattr(holder, "__dict__", ())):
        if id(getattr(holder, name, None)) in wanted:
            object.__delattr__(holder, name)
            places.append(f"{type(holder).__name__}.{name}")
