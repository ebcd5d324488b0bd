"""Runs a model's forward under the recorder and leaves the model, and the process, exactly as they were."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dagscale.errors import DagscaleError, TraceError
from dagscale.shown import one_line, said
from dagscale.tracing._torch import (
    constant_of,
    deep_copy,
    fake_mode,
    is_fake,
    is_lazy,
    module_hooks,
    plain_arithmetic,
    put_storage,
    storage_key,
    unseen,
)
from dagscale.tracing.eager import eagerly
from dagscale.tracing.faults import forward_error, looks_at_values
from dagscale.tracing.gradients import with_gradient
from dagscale.tracing.inputs import bind_inputs, check_devices, copied, named_leaves
from dagscale.tracing.leftovers import nothing_left
from dagscale.tracing.outputs import objects_among, output_tensors, tensors_within
from dagscale.tracing.recorder import Recorder
from dagscale.tracing.state import State
from dagscale.tracing.wrappers import (
    is_sharded,
    module_names,
    named_parameters,
    placed_like,
    plain_name,
    plain_parameters,
    unwrapped,
    without_gradients,
    without_sharding,
)

__all__ = [
    "ONE_AT_A_TIME",
    "Read",
    "bind_inputs",
    "check_devices",
    "eagerly",
    "forward_error",
    "held_tensors",
    "is_sharded",
    "looks_at_values",
    "materialised",
    "named_leaves",
    "named_parameters",
    "output_tensors",
    "placed_like",
    "plain_eager",
    "plain_name",
    "plain_parameters",
    "recorded",
    "run_fake",
    "run_real",
    "unchanged_random_state",
    "unchanged_state",
    "undisturbed",
    "unwrapped",
    "without_gradients",
    "without_record",
]

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is borrowed, or process-wide settings of PyTorch are changed."""

Select = Callable[[Any], Any]
T = TypeVar("T")


class Read:
    """What one recorded forward told.

    Attributes:
        outputs: the nodes of the output tensors.
        hidden: nodes of tensors inside other objects that the forward returned.
        passed_over: names of the types of what it returned that holds no tensor.
        reached: names of the parameters that autograd has a gradient for.
        custom: whether a custom ``autograd.Function`` is on the way of one.
    """

    def __init__(self, recorder: Recorder, value: Any, select: Select) -> None:
        recorder.finished = True
        if recorder.elsewhere:
            raise TraceError(
                f"the forward runs {recorder.elsewhere[0] or 'the model'} in a thread of its own, where nothing can be "
                "seen of it: run it in the forward's own thread"
            )
        try:
            chosen = select(value)
        except Exception as error:
            raise TraceError(f"select raised {one_line(error)}, on the forward's {type(value).__name__}") from error
        tensors = output_tensors(chosen)
        hidden = {type(o).__name__: tensors_within(o) for o in objects_among(chosen)}
        self.tensors = [*tensors, *(t for inside in hidden.values() for t in inside)]
        if not self.tensors:
            raise TraceError(
                f"the forward returned no tensor but {type(chosen).__name__}: return what is to count as output, as a "
                "tensor or in tuples, lists, dicts, dataclasses and distributions"
            )
        self.outputs = _nodes_of(recorder, tensors)
        self.hidden = _nodes_of(recorder, [t for inside in hidden.values() for t in inside])
        self.passed_over = [name for name, inside in hidden.items() if not inside]
        self.reached: set[str] = set()
        self.custom = False


def _nodes_of(recorder: Recorder, tensors: Iterable[Tensor]) -> list[int]:
    return [n for t in tensors if (n := recorder.memory.read(t)) is not None]


# --- what stays as it is ----------------------------------------------------------------------------------


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put Python's, NumPy's and every torch device's random state back on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _random_state() -> tuple[Any, ...]:
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The flags of evaluation mode, until leaving; nothing that the model's own ``eval`` does besides."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def unchanged_state(state: State) -> Iterator[None]:
    """Put everything that ``state`` holds back on leaving; again, if an exception comes between."""
    try:
        yield
    finally:
        try:
            state.restore()
        except BaseException:
            state.restore()
            raise


def roots(model: nn.Module) -> Iterator[Any]:
    """Where the walk through a model's state begins: its modules, and what a scripted one keeps in C++."""
    yield from model.modules()
    yield from model.parameters()
    yield from model.buffers()


def check_parameters(model: nn.Module, names: set[str]) -> None:
    """Raise TraceError if the forward that just ran has made parameters: a copy would make others in each run."""
    if made := [name for name in dict(named_parameters(model)) if name not in names]:
        raise TraceError(
            f"the forward makes parameters where it runs for the first time ({', '.join(made[:4])}): run it once on "
            "example inputs first"
        )


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and all other tensors that the model's state leads to, however deep."""
    yield from model.parameters()
    yield from model.buffers()
    yield from State(*roots(model)).tensors


@contextmanager
def unchanged_values(recorder: Recorder, tensors: Iterable[Tensor], at_once: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put the values of ``tensors`` back on leaving.

    They are saved before the forward first writes to them, those ``at_once`` before it starts.
    """
    owned = {storage_key(t): t.untyped_storage() for t in tensors if storage_key(t) and not is_sharded(t)}
    saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def save(tensor: Tensor) -> None:
        key = storage_key(tensor)
        if key in owned and key not in saved:
            with unseen():
                saved[key] = (owned[key], owned[key].clone())  # type: ignore[no-untyped-call]

    for tensor in at_once:
        save(tensor)
    recorder.on_write = save
    try:
        yield
    finally:
        recorder.on_write = None
        for storage, copy in saved.values():
            put_storage(storage, copy)


@contextmanager
def module_paths(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Keep ``recorder.path`` at the qualified name of the module that runs in this thread, by global hooks."""
    names = module_names(model)
    path = recorder.path
    thread = threading.get_ident()

    def enter(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == thread:
            path.append(names.get(id(module), path[-1] if path else ""))
        elif id(module) in names:
            recorder.elsewhere.append(names[id(module)])

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if path and threading.get_ident() == thread:
            path.pop()

    with module_hooks(enter, leave):
        yield


@contextmanager
def plain_eager() -> Iterator[None]:
    """Gradients on, attention and recurrence as plain arithmetic, compiled submodules run eagerly.

    One thread at a time: PyTorch keeps these settings for the whole process.
    """
    with ONE_AT_A_TIME, torch.enable_grad(), plain_arithmetic(), eagerly():
        yield


def without_record(run: Callable[[], T]) -> T:
    """What a forward gives, without autograd's record where it can do without: models of energies and of differential
    equations, and those that learn in the forward, take gradients of their own, and then ``run`` is called again."""
    try:
        with torch.no_grad():
            return run()
    except Exception as error:
        if "does not require grad" not in said(error):
            raise
    with torch.enable_grad():
        return run()


@contextmanager
def undisturbed(recorder: Recorder, model: nn.Module, state: State | None = None) -> Iterator[None]:
    """Everything around the forward that makes it plain to record and leaves no trace of its own."""
    with ONE_AT_A_TIME, unchanged_state(state or State(*roots(model))), unchanged_random_state():
        before = _random_state()
        with module_paths(recorder, model), plain_eager():
            yield
        recorder.drew = _random_state() != before


def materialised(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """``model`` itself, or a copy that ran once if some of its parameters have no shape yet (lazy modules).

    Raises:
        TraceError: if the model has to be copied and cannot be.
    """
    if not any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return model
    try:
        with unchanged_random_state():
            copy = deep_copy(model)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} has lazy layers, and copying it to run them once raised "
            f"{one_line(error)}; run its forward once yourself, then trace"
        ) from error
    args, kwargs = copied((args, kwargs))
    with unchanged_random_state():
        without_record(lambda: copy(*args, **kwargs))
    return copy


# --- running ----------------------------------------------------------------------------------------------


def recorded(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Select,
    waiting: Sequence[int],
    notes: list[str],
) -> tuple[Recorder, Read]:
    """One forward, recorded: on fake tensors if it runs on them, else for real.

    Args:
        waiting: signals that have come; the forward is left at the next operator.
        notes: gets a line where the forward had to be run for real, and what else is to be told.

    Raises:
        ForwardError: if the forward itself raises.
    """
    recorder = Recorder()
    recorder.waiting = waiting
    real = not any(p.is_meta or is_sharded(p) for p in parameters.values())
    try:
        failing = looks_at_values if real else None
        read = run_fake(recorder, model, parameters, args, kwargs, select, notes, failing)
    except DagscaleError:
        raise
    except Exception as error:
        raise forward_error(model, recorder, error, (args, kwargs)) from error
    if isinstance(read, Read):
        return recorder, read
    why = read
    recorder = Recorder()
    recorder.waiting = waiting
    try:
        read = run_real(recorder, model, parameters, args, kwargs, select, notes)
    except DagscaleError:
        raise
    except Exception as error:
        raise forward_error(model, recorder, error, (args, kwargs)) from error
    notes.append(why)
    return recorder, read


# --- the two ways to run ----------------------------------------------------------------------------------


def run_fake(
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Select,
    notes: list[str],
    failing: Callable[[Exception], str] | None = None,
) -> Read | str:
    """The forward on fake tensors: shapes and dependencies without arithmetic or memory.

    Args:
        failing: what to say of a forward that raises, instead of letting its exception through. The exception is
            let go here, since what its frames hold is fake.
    """
    mode = fake_mode()
    compiled = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    with nothing_left(lambda objects: [o for o in objects if is_fake(o, mode)], notes, compiled=compiled):
        try:
            return _run_fake(mode, recorder, model, parameters, args, kwargs, select)
        except DagscaleError:
            raise
        except Exception as error:
            if failing is None:
                raise
            why = failing(error)
        finally:
            recorder.forget()
        return why


def _run_fake(
    mode: Any,
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Select,
) -> Read:
    state, names = State(*roots(model), select), set(dict(named_parameters(model)))
    stand_ins = {id(t): _stand_in(t, mode) for t in (*parameters.values(), *model.buffers())}
    recorder.numbers = {
        id(stand_ins[id(buffer)]): (stand_ins[id(buffer)], number)
        for buffer in model.buffers()
        if buffer.is_floating_point() and (number := constant_of(buffer)) is not None
    }
    versions = []
    for name, parameter in parameters.items():
        both = [stand_ins[id(parameter)]] if is_sharded(parameter) else [parameter, stand_ins[id(parameter)]]
        recorder.add_parameter(name, *both)
        versions += [(name, tensor) for tensor in both]
    with mode:
        args, kwargs = copied((args, kwargs), mode.from_tensor)
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    with undisturbed(recorder, model, state):
        if any(is_sharded(p) for p in parameters.values()):
            without_sharding(model)
        for module in model.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # its tables lie in C++, where what is put in them cannot be put back
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for table in tables:
                for name, tensor in table.items():
                    table[name] = stand_ins.get(id(tensor), tensor)
        with unchanged_values(recorder, (*parameters.values(), *state.tensors)), mode:
            with recorder:
                read = Read(recorder, model(*args, **kwargs), select)
            check_parameters(model, names)
            read.reached, read.custom = with_gradient(read.tensors, versions, fake=True)
    del read.tensors
    return read


def _stand_in(tensor: Tensor, mode: Any) -> Any:
    """A fake tensor for it; for a shard, one of the whole's shape."""
    if not is_sharded(tensor):
        return mode.from_tensor(tensor)
    with mode:
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return nn.Parameter(whole, requires_grad=tensor.requires_grad)


def run_real(
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Select,
    notes: list[str] | None = None,
) -> Read:
    """The forward for real, for models whose control flow looks at values; only the branch taken is seen."""
    made: list[weakref.ref[Tensor]] = []
    recorder.made = made

    def alive(objects: list[Any]) -> list[Any]:
        return [tensor for reference in made if (tensor := reference()) is not None]

    with nothing_left(alive, [] if notes is None else notes):
        try:
            return _run_real(recorder, model, parameters, args, kwargs, select)
        finally:
            recorder.forget()


def _run_real(
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Select,
) -> Read:
    state, names = State(*roots(model), select), set(dict(named_parameters(model)))
    for name, parameter in parameters.items():
        recorder.add_parameter(name, parameter)
    args, kwargs = copied((args, kwargs))
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    # Batch norm's schema does not own up to writing its running statistics, and NumPy writes unseen: what is no
    # parameter is saved beforehand.
    known = {id(parameter) for parameter in parameters.values()}
    others = [t for t in (*model.buffers(), *state.tensors) if id(t) not in known]
    with unchanged_values(recorder, (*parameters.values(), *others), others), undisturbed(recorder, model, state):
        with recorder:
            read = Read(recorder, model(*args, **kwargs), select)
        check_parameters(model, names)
        read.reached, read.custom = with_gradient(read.tensors, list(parameters.items()), fake=False)
    del read.tensors
    return read
