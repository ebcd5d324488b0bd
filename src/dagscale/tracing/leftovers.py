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
from functools import partial
from itertools import filterfalse
from operator import is_
from typing import Any

Find = Callable[[], list[Any]]

ROUNDS = 4
_CACHE = type(functools.lru_cache(lambda: None))

_APART: list[None] = []
"""As many as there are traces under way, one inside the other."""


@contextmanager
def nothing_left(find: Callable[[list[Any]], list[Any]], notes: list[str]) -> Iterator[None]:
    """On leaving, no tensor that ``find(objects)`` picks is alive.

    What a forward leaves in a model's own state is put back beforehand (:class:`~dagscale.tracing.state.State`).
    This is the net below: caches of ``functools``, and containers that no walk from the model leads to. An entry
    that holds a tensor made meanwhile was made meanwhile, and is taken out. The objects of before are set apart
    (``gc.freeze``), so that looking through those of meanwhile costs next to nothing.

    Args:
        notes: gets a line for each place where a tensor was and what was there before is not known.
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
                notes.extend(_take_out(lambda: find(gc.get_objects()), fresh))
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


def _take_out(find: Find, fresh: frozenset[int]) -> list[str]:
    """Cut every way from an older object to a tensor that ``find`` finds.

    Args:
        fresh: ids of the objects made meanwhile, through which the way may lead.
    """
    places: list[str] = []
    for again in range(ROUNDS):
        found = find()
        if not found:
            break
        ours = {id(found)}
        for tensor in found:
            _let_go(tensor, fresh, ours, places, bool(again))
        del tensor, found  # they would keep alive what is looked for
    notes = [
        f"the forward left a tensor of the trace in {place} and what was there before is not known: set it anew"
        for place in dict.fromkeys(places)
    ]
    if find():
        notes.append("the forward keeps a tensor of the trace where it cannot be taken out: make the model anew")
    return notes


def _let_go(thing: Any, fresh: frozenset[int], ours: set[int], places: list[str], cut: bool) -> None:
    """Take ``thing`` out of whatever holds it, or what it is held by out of what holds that.

    Neither a generator nor a closure, here and below: the collector would count them among the holders.

    Args:
        ours: ids of objects that are to be passed over: our own lists, and those already seen.
        places: gets the names of the variables that it was taken out of.
        cut: whether to empty new closures too, which the frames of an exception keep when nothing else does.
    """
    holders = gc.get_referrers(thing)
    ours.add(id(holders))
    for holder in holders:
        if id(holder) in ours or isinstance(holder, types.FrameType):
            continue
        if isinstance(holder, _CACHE):
            holder.cache_clear()
        elif isinstance(holder, types.CellType) and cut and id(holder) in fresh:
            del holder.cell_contents
        elif type(holder) is dict and _is_variable(holder, ours):
            _out_of_dict(holder, thing, ours, places)
        elif id(holder) in fresh or isinstance(holder, (tuple, frozenset, types.FunctionType, types.MethodType)):
            ours.add(id(holder))
            _let_go(holder, fresh, ours, places, cut)
        elif isinstance(holder, dict):
            _out_of_dict(holder, thing, ours, places)
        elif isinstance(holder, list):
            holder[:] = _without(thing, holder)
        elif isinstance(holder, set):
            holder.discard(thing)
        elif isinstance(holder, deque):
            kept = _without(thing, holder)
            holder.clear()
            holder.extend(kept)
        elif isinstance(holder, types.CellType):
            del holder.cell_contents
            places.append("a variable of a closure")
        else:
            _out_of_attributes(holder, thing, places)


def _without(thing: Any, items: Iterable[Any]) -> list[Any]:
    return list(filterfalse(partial(is_, thing), items))


def _is_variable(holder: dict[Any, Any], ours: set[int]) -> bool:
    """Whether a dict is what a global variable or an attribute names.

    The collector does not track a dict before it holds something it tracks, so that an empty one of before looks
    like one of meanwhile.
    """
    owners = gc.get_referrers(holder)
    ours.add(id(owners))
    for owner in owners:
        if isinstance(owner, dict):
            if any(map(_is_of_a_thread, owner)):
                return True
            further = gc.get_referrers(owner)
            ours.add(id(further))
            if any(map(partial(_is_namespace_of, owner), further)):
                return True
        elif not _is_namespace_of(holder, owner) and any(map(partial(is_, holder), _values_of(owner))):
            return True
    return False


def _is_of_a_thread(key: Any) -> bool:
    """Whether it stands for a thread in the table of a ``threading.local``, which is Python's own to change."""
    return isinstance(key, weakref.ref) and type(key()).__name__ == "_localdummy"


def _is_namespace_of(mapping: dict[Any, Any], owner: Any) -> bool:
    return getattr(owner, "__dict__", None) is mapping


def _values_of(owner: Any) -> Iterable[Any]:
    return getattr(owner, "__dict__", {}).values()


def _out_of_dict(holder: dict[Any, Any], thing: Any, ours: set[int], places: list[str]) -> None:
    owners = gc.get_referrers(holder)
    ours.add(id(owners))
    owner = None
    for candidate in owners:
        if isinstance(candidate, type) or getattr(candidate, "__dict__", None) is holder:
            owner = candidate
    for key, value in list(holder.items()):
        if value is not thing and key is not thing:
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


def _out_of_attributes(holder: Any, thing: Any, places: list[str]) -> None:
    """Attributes of an object that keeps them in slots, or in no dict yet."""
    names = [n for c in type(holder).__mro__ for n, v in vars(c).items() if type(v) is types.MemberDescriptorType]
    for name in (*names, *getattr(holder, "__dict__", ())):
        if getattr(holder, name, None) is thing:
            object.__delattr__(holder, name)
            places.append(f"{type(holder).__name__}.{name}")
