"""Watching a training: what its steps really do, held against what the plan says they do."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from dagscale.arguments import checked, whole_number
from dagscale.errors import WatchError
from dagscale.interrupts import uninterrupted
from dagscale.planning.plans import Plan
from dagscale.shown import one_line
from dagscale.tracing import forward
from dagscale.training.optimizers import resolve
from dagscale.typed import MODEL, PLAN, must_be
from dagscale.watching.against import of_base
from dagscale.watching.causes import find
from dagscale.watching.measure import StepFacts, Window
from dagscale.watching.planned import planned_parameters
from dagscale.watching.rates import Rates
from dagscale.watching.report import Row, WatchReport, middle
from dagscale.watching.seen import Seen
from dagscale.watching.settings import initial
from dagscale.watching.sizes import clipped

REMEMBERED = 32
"""Observed steps that a report's medians are over, the latest ones."""

HOOKED = inspect.getfile(torch.optim.Optimizer)
"""The file whose wrapper of ``step`` runs an optimiser's hooks."""

Log = Callable[[int, dict[str, float]], Any]


@checked(WatchError)
def watch(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    every: int = 50,
    log: Log | None = None,
    base: WatchReport | None = None,
) -> Watch:
    """Watch a training from now on: does each step do what the plan says? ::

        optimizer = plan.optimizer(plan.init_(model))
        with dagscale.watch(model, plan, optimizer) as watch:
            ...  # your own training, or a trainer's
        print(watch.report())

    Nothing of the training changes: clipping, schedule, precision and accumulation are the user's, and no random number
    is drawn. The watch hangs on the optimiser's steps. At each it reads the groups' rates. At the first few (1, 2, 4,
    8, …) and then at every ``every``-th it also measures gradients, the change of each weight, and the change of each
    layer's output by the layer's own step, which takes about as long as one more step.

    Args:
        model: the model that is trained, as the plan knows it; wrappers are looked through.
        plan: what `dagscale.plan` gave for it.
        optimizer: the optimiser that trains it, or several that step one after the other.
        every: how often a step is observed closely.
        base: the report of a watch on the base's training, over as many steps: rules for width and depth promise that a
            step moves outputs as far as there, which then is judged too.
        log: called as ``log(step, scalars)`` after each observed step, with `WatchReport.scalars`.

    Returns:
        A `Watch`: a context manager, with ``report()`` at any time and ``close()``.

    Raises:
        WatchError: if ``every`` is no whole number from 1, or there is no optimiser to hang on.
        PlanError: if the plan is for another model.
    """
    return Watch(model, plan, optimizer, every=every, log=log, base=base)


@checked(WatchError)
class Watch:
    """A training under watch; see `watch`. Leaving it as a context manager, or ``close()``, takes all hooks away."""

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        every: int = 50,
        log: Log | None = None,
        base: WatchReport | None = None,
    ) -> None:
        every = whole_number("every", every, WatchError)
        if log is not None and not callable(log):
            raise WatchError(f"log must be a function of step and scalars, not {type(log).__name__}")
        must_be(model, nn.Module, MODEL, WatchError)
        must_be(plan, Plan, PLAN, WatchError)
        self.optimizers = _optimizers(optimizer)
        if plan.live is not None:  # the model's hooks lead here, and what the model leads to is taken for its constants
            plan = replace(plan, live=plan.live.changed(data=None))
        self.model, self.plan, self.every, self.log = forward.unwrapped(model), plan, every, log
        self.parameters = planned_parameters(model, plan)
        if base is not None and not isinstance(base, WatchReport):
            raise WatchError(f"base must be the report of a watch on the base's training, not {type(base).__name__}")
        self._signals = {} if base is None else of_base(base.rows, self.parameters)
        self.known = plan._record(optional=True)
        self.rates = Rates()
        self.step = self.observed = 0
        self._steps: deque[Mapping[str, StepFacts]] = deque(maxlen=REMEMBERED)
        self._touched: set[str] = set()
        self._forwards = 0
        self._broken = ""
        self._resumed = any(_stepped(state) for one in self.optimizers for state in one.state.values())
        self._drawn = () if self._resumed else initial(self.parameters)
        self._window: Window | None = None
        self._handles: list[Any] = []
        try:
            uninterrupted(lambda waiting: self._hang())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take all hooks away. What was seen stays, and can still be reported."""
        if self._window is not None:
            self._window.leave()
            self._window.deafen()
            self._window = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def scalars(self) -> dict[str, float]:
        """`WatchReport.scalars` of what was seen so far."""
        return self.report().scalars()

    def report(self) -> WatchReport:
        """What was seen so far."""
        steps = list(self._steps)
        frozen = tuple(name for name in self.plan.parameters if name not in self.parameters)
        seen = Seen(
            self.plan, self.parameters, frozen, self.rates, steps, self._groups(), self._drawn,
            frozenset(self._touched), self.observed, self.known, self._signals,
        )  # fmt: skip
        faults, notes = find(seen)
        wrong = {name for name in self.parameters if any(name in fault.where.split(", ") for fault in faults)}
        rates = {name: rate.ratio for rate in self.rates.now for name in rate.names}
        factor = self.rates.factor
        rows = tuple(
            Row(
                name, own.kind, own.lr / self.plan.lr,
                rates[name] / factor * own.lr / self.plan.lr if name in rates and factor else None,
                _middle(steps, name, lambda f: f.expected / f.weight if f.expected is not None and f.weight else None),
                _middle(steps, name, lambda f: f.change / f.weight if f.weight else None),
                _middle(steps, name, lambda f: f.signal),
                name not in wrong,
                self._signals.get(name),
            )
            for name, own in self.parameters.items()
        )  # fmt: skip
        schedule = (self.rates.low, self.rates.high) if self.rates.steps else None
        return WatchReport(
            rows, tuple(faults), (*self._notes(), *notes), self.step, self.observed, schedule, clipped(steps),
            self.plan.optimizer_name,
        )  # fmt: skip

    def _notes(self) -> list[str]:
        """What could not be seen."""
        notes = []
        names = {type(one).__name__ for one in self.optimizers}
        if self.known is None or self.known.step is None:
            notes.append(
                f"nothing is known of the optimizer {self.plan.optimizer_name!r}: sizes of steps are not judged"
            )
        elif len(self.optimizers) == 1 and self._other_class():
            notes.append(f"the plan is for {self.plan.optimizer_name}, and the optimizer is {', '.join(names)}")
        if self._resumed:
            notes.append("the optimizer has stepped before the watch began: initial weights were not looked at")
        if self.observed and not self._forwards:
            notes.append("changes of layers' outputs were not seen: the model is compiled, or called by another way")
        if self._broken:
            notes.append(f"changes of layers' outputs were not seen: {self._broken}")
        return notes

    def _other_class(self) -> bool:
        record = resolve(type(self.optimizers[0]))
        return record.step is not None and self.known is not None and record.step != self.known.step

    # --- hooks -------------------------------------------------------------------------------------------------

    def _due(self, step: int) -> bool:
        """Whether the step of this number, counted from 1, is observed."""
        return step % self.every == 0 or (step < self.every and step & (step - 1) == 0)

    def _hang(self) -> None:
        """On the model's forward and the optimisers' steps."""
        try:
            self._handles.append(self.model.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(self.model.register_forward_hook(self._leave, always_call=True))
        except RuntimeError as error:
            raise WatchError(
                f"the model takes no hooks ({one_line(error)}): watch a training of it as it was before it was scripted"
            ) from None
        for one in self.optimizers:
            self._handles.append(one.register_step_pre_hook(self._before))
            self._handles.append(one.register_step_post_hook(self._after))
        self._open()

    def _open(self) -> None:
        """What follows is the next step's."""
        self._window = None
        if self._due(self.step + 1):
            self._window = Window(self.model, self.parameters, self.known)
            self._window.listen()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.compiler.is_compiling() and self._window is not None and torch.is_grad_enabled():
            self._window.enter((args, kwargs))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        if not torch.compiler.is_compiling() and self._window is not None:
            self._window.leave()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        """A step begins; one that is given a closure has its gradients only after that."""
        if _nested(optimizer):
            return None
        if optimizer is self.optimizers[-1]:
            self.rates.see([group for one in self.optimizers for group in one.param_groups], self.parameters)
        window = self._window
        if window is None:
            return None
        started = False

        def start() -> None:
            nonlocal started
            if not started:
                started = True
                window.start(optimizer)

        rest, given = list(args), dict(kwargs)
        closure = given.get("closure", rest[1] if len(rest) > 1 else None)
        if not callable(closure):
            start()
            return None

        def seen() -> Any:
            loss = closure()
            start()
            return loss

        if "closure" in given:
            given["closure"] = seen
        else:
            rest[1] = seen
        return tuple(rest), given

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _nested(optimizer):
            return
        window = self._window
        if window is not None:
            window.end()
        if optimizer is not self.optimizers[-1]:
            return
        self.step += 1
        if window is not None:
            window.deafen()
            window.leave()
            self._forwards += bool(window.layers)
            facts = window.facts(self.rates.factor)
            self._broken = self._broken or window.broken
            self._steps.append(facts)
            self._touched |= {name for name, f in facts.items() if f.gradient}
            self.observed += 1
        self._open()
        if window is not None and self.log is not None:
            self.log(self.step, self.scalars())

    def _groups(self) -> dict[str, Mapping[str, Any]]:
        """Parameter name → its group."""
        held = {id(p): group for one in self.optimizers for group in one.param_groups for p in group["params"]}
        return {name: held[id(own.parameter)] for name, own in self.parameters.items() if id(own.parameter) in held}


def _optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """The optimisers themselves, what wraps them looked through."""
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    found = []
    for one in listed:
        inner = getattr(one, "optimizer", None)
        one = inner if isinstance(inner, torch.optim.Optimizer) else one
        if not isinstance(one, torch.optim.Optimizer):
            raise WatchError(
                f"optimizer must be a torch optimizer, such as plan.optimizer(model) gives, not {type(one).__name__}"
            )
        found.append(one)
    if not found:
        raise WatchError("there is no optimizer to watch: give the one that trains the model")
    return found


def _nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is the step of a superclass, called by that of the user's class: torch runs the hooks in both."""
    if len(type(optimizer).mro()) < 4:  # itself, torch's Optimizer, object
        return False
    frame, calls = inspect.currentframe(), 0
    while frame is not None:
        given = frame.f_locals.get("args") if frame.f_code.co_filename == HOOKED else None
        calls += frame.f_code.co_name == "wrapper" and given is not None and len(given) > 0 and given[0] is optimizer
        frame = frame.f_back
    return calls > 1


def _middle(
    steps: Sequence[Mapping[str, StepFacts]], name: str, of: Callable[[StepFacts], float | None]
) -> float | None:
    return middle([of(facts[name]) for facts in steps if name in facts])


def _stepped(state: Any) -> bool:
    """Whether an optimiser's state of one parameter is that after a step: Adagrad makes one before the first."""
    return not isinstance(state, Mapping) or float(state.get("step", 1)) > 0
