"""What is measured around one optimiser step: gradients, weights before and after, and layers' outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.shown import one_line
from dagscale.tracing.calls import LayerCalls, Use
from dagscale.tracing.eager import biases_made_unseen
from dagscale.tracing.recorder import tensors_in
from dagscale.training.batches import cuttable
from dagscale.training.clipping import entries, local
from dagscale.training.muon import matrices, shape_factor
from dagscale.training.optimizers import Optimizer
from dagscale.watching.planned import Planned, rms_of_spectral

WHOLE, SAMPLE = 65_536, 16_384
"""Parameters with at most so many entries are compared whole; of larger ones about so many evenly spaced entries."""

EXAMPLES = 8
"""Rows of a layer's input that its output is compared on."""

POWER = 6
"""Power iterations for a spectral norm."""


@dataclass(frozen=True)
class StepFacts:
    """One parameter in one observed step.

    Attributes:
        lr: the rate of its group.
        weight: rms of the weight before the step.
        change: rms of its change.
        expected: rms of the change that the *plan's* rate implies under this step's schedule; None where the optimiser
            does not tell: of a kind of step that nobody knows.
        ratio: size of the step over what the rate *of its group* implies, decoupled decay taken off; None likewise.
        gradient: rms of its gradient as the optimiser got it; None where it had none.
        kept: that gradient over what the backward passes left: what clipping kept; None if it was not seen.
        signal: rms of ``(W' - W) x`` over that of ``W x``; None where the layer was not seen.
    """

    lr: float
    weight: float
    change: float
    expected: float | None
    ratio: float | None
    gradient: float | None
    kept: float | None
    signal: float | None


@dataclass
class _Before:
    """A parameter just before a step."""

    group: Mapping[str, Any]
    lr: float
    decay: float
    weight: Tensor
    gradient: Tensor | None
    norm: Tensor | None


@dataclass
class _Layer:
    """A layer as the forward used it: as a function of its weight on a few rows, and what that gave."""

    run: Callable[[Tensor], Tensor]
    weight: Tensor
    z: Tensor


@dataclass
class Window:
    """Everything seen from the end of one step to the end of the next one.

    Args:
        parameters: what is watched.
        optimizer: what is known of the optimiser.
    """

    model: nn.Module
    parameters: Mapping[str, Planned]
    optimizer: Optimizer | None
    raw: dict[str, Tensor] = field(default_factory=dict)
    before: dict[str, _Before] = field(default_factory=dict)
    after: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    layers: dict[str, list[_Layer]] = field(default_factory=dict)
    broken: str = ""
    _calls: LayerCalls | None = None
    _looking: ExitStack = field(default_factory=ExitStack)
    _handles: list[Any] = field(default_factory=list)

    # --- forward and backward ----------------------------------------------------------------------------------

    def listen(self) -> None:
        """Keep the norm of every gradient as the backward passes leave it."""
        for name, own in self.parameters.items():
            if own.parameter.requires_grad and own.parameter.is_leaf:
                keep = lambda p, name=name: self._keep(name, p)  # noqa: E731
                self._handles.append(own.parameter.register_post_accumulate_grad_hook(keep))  # type: ignore[no-untyped-call]

    def deafen(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.raw[name] = torch.linalg.vector_norm(_wide(entries(local(parameter.grad.detach()))))

    def enter(self, inputs: Any) -> None:
        """A forward begins on these inputs: look at the first one."""
        if self._calls is None:
            self._calls = LayerCalls(self.model, after=self._used, inputs=inputs)
            self._looking.enter_context(biases_made_unseen())
            self._looking.enter_context(self._calls)

    def leave(self) -> None:
        """It has ended, or raised."""
        self._looking.close()

    def _used(self, use: Use, out: Any) -> None:
        """Keep a layer; whatever goes wrong in it must not reach the user's training."""
        try:
            self._keep_layer(use, out)
        except Exception as error:
            self.broken = one_line(error)

    def _keep_layer(self, use: Use, out: Any) -> None:
        """Run the layer's operator again, on a few rows, without its bias."""
        name = next((n for n in sorted(use.names) if n in self.parameters), None)
        if name is None or use.func._schema.is_mutable:  # run again, it would write to what is the user's
            return
        few = all(_by_rows(use, signal, out) for signal in use.signals.values())
        run = use.kept(EXAMPLES if few else None, bias=False)
        self.layers.setdefault(name, []).append(_Layer(run, use.weight, run(use.weight).detach()))

    # --- the step ----------------------------------------------------------------------------------------------

    def start(self, optimizer: torch.optim.Optimizer) -> None:
        """Just before a step of this optimiser: its parameters' weights and gradients."""
        held = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        with torch.no_grad():
            for name, own in self.parameters.items():
                group = held.get(id(own.parameter))
                if group is None:
                    continue
                p, lr, grad = local(own.parameter.detach()), float(group["lr"]), own.parameter.grad
                decay = float(group.get("weight_decay") or 0.0)
                whole = own.matrix
                here = None if grad is None else entries(local(grad.detach()))
                norm = None if here is None else torch.linalg.vector_norm(_wide(here))
                part = None if here is None else _sampled(here, whole)
                self.before[name] = _Before(group, lr, decay, _sampled(p, whole), part, norm)

    def end(self) -> None:
        """Just after a step of an optimiser: sizes of the changes, still on the device."""
        with torch.no_grad():
            for name, old in self.before.items():
                if name not in self.after:
                    self.after[name] = self._changes(self.parameters[name], old)

    def _changes(self, own: Planned, old: _Before) -> dict[str, Tensor]:
        new = _sampled(local(own.parameter.detach()), own.matrix)
        change = _wide(new - old.weight)
        found = {"weight": _rms(old.weight), "change": _rms(change)}
        known = self.optimizer
        step = change
        if known is not None and known.decay == "decoupled" and old.decay:
            decayed = change + (old.lr * old.decay) * _wide(old.weight)
            step = torch.where(change == 0, change, decayed)  # what rounding loses, it loses with its decay
        found["step"] = _rms(step)
        if old.gradient is not None:
            gradient = _wide(old.gradient)
            found["gradient"] = _rms(gradient)
            coupled = known is not None and known.decay == "coupled" and old.decay
            found["pull"] = _rms(gradient + old.decay * _wide(old.weight)) if coupled else found["gradient"]
        if own.matrix:
            parts = list(matrices(step.contiguous(), old.group))
            found["top"] = torch.stack([_top(part) for part in parts]).square().mean().sqrt()
        return found

    def facts(self, common: float) -> dict[str, StepFacts]:
        """All of it as numbers; one synchronisation with the device.

        Args:
            common: this step's rate over the plan's, by the schedule.
        """
        signals = self._signals()
        flat: list[Tensor] = []
        keys: list[tuple[str, str]] = []
        for name, values in self.after.items():
            more = {"norm": self.before[name].norm, "raw": self.raw.get(name), **signals.get(name, {})}
            for key, value in {**values, **more}.items():
                if value is not None:
                    keys.append((name, key))
                    flat.append(
                        value.detach().double().cpu() if value.device.type == "mps" else value.detach().double()
                    )
        if not flat:
            return {}
        device = flat[0].device
        numbers = torch.stack([value.to(device).reshape(()) for value in flat]).tolist()
        table: dict[str, dict[str, float]] = {name: {} for name in self.after}
        for (name, key), number in zip(keys, numbers, strict=True):
            table[name][key] = number
        return {name: self._fact(self.parameters[name], values, common) for name, values in table.items()}

    def _fact(self, own: Planned, v: Mapping[str, float], common: float) -> StepFacts:
        old = self.before[own.name]
        per_rate, size = self._per_rate(own, old, v), v.get("top", v["step"])
        ratio = size / (old.lr * per_rate) if per_rate and old.lr else None
        rms = per_rate
        if per_rate is not None and "top" in v:
            rms = rms_of_spectral(next(matrices(own.parameter.detach().contiguous(), old.group)), per_rate)
        expected = None if rms is None else rms * own.lr * common
        raw, norm = v.get("raw"), v.get("norm")
        z = v.get("z")
        return StepFacts(
            old.lr, v["weight"], v["change"], expected, ratio, v.get("gradient"),
            norm / raw if raw and norm is not None else None,
            math.sqrt(v["dz"] / z) if z else None,
        )  # fmt: skip

    def _per_rate(self, own: Planned, old: _Before, v: Mapping[str, float]) -> float | None:
        """The size of a step at rate 1, by the optimiser's kind: rms of its entries, of a matrix its spectral norm."""
        known = self.optimizer
        if known is None or "gradient" not in v:
            return None
        if "top" in v:
            matrix = next(matrices(own.parameter.detach().contiguous(), old.group))
            return shape_factor(matrix.shape, implementation(known))  # the spectral norm of each step
        if known.step in ("sign", "spectral"):
            return 1.0
        if known.step == "gradient":
            return v["pull"]
        return max(v["weight"], 1e-3) if known.step == "relative" else None

    def _signals(self) -> dict[str, dict[str, Tensor]]:
        """Mean squares of each layer's output on the rows kept, and of its change by its own weight."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, layers in self.layers.items():
            z, dz = [], []
            try:
                for layer in layers:
                    new, old = _wide(self._again(layer)), _wide(layer.z)
                    z.append(old.abs().square().mean())
                    dz.append((new - old).abs().square().mean())
            except Exception as error:
                self.broken = one_line(error)
                continue
            found[name] = {"z": torch.stack(z).mean(), "dz": torch.stack(dz).mean()}
        return found

    def _again(self, layer: _Layer) -> Tensor:
        """What the layer gives now for what entered it then."""
        with torch.no_grad():
            return layer.run(self._calls.now(layer.weight) if self._calls is not None else layer.weight)


def implementation(known: Optimizer | None) -> str:
    """Which implementation's shape factor the rates of a spectral optimiser are for."""
    return str((known.settings if known is not None else {}).get("adjust_lr_fn") or "match_rms_adamw")


def _by_rows(use: Use, rows: Tensor, out: Any) -> bool:
    """Whether the operator works on each row of its input alone, so that a few of them can be looked at."""
    z = next(tensors_in(out))
    plain = (use.weight.dim() <= 2 or "conv" in str(use.func)) and cuttable(rows)
    return plain and rows.dim() >= 1 and z.dim() >= 1 and rows.shape[0] == z.shape[0] > EXAMPLES


def _sampled(tensor: Tensor, whole: bool) -> Tensor:
    """A copy of it, or of evenly spaced entries of a large one."""
    if whole or tensor.numel() <= WHOLE:
        return tensor.clone()
    stride = tensor.numel() // SAMPLE | 1
    while math.gcd(stride, tensor.shape[-1]) > 1:  # all columns take part
        stride += 2 if tensor.shape[-1] % 2 == 0 else 1
    return tensor.reshape(-1)[::stride].clone()


def _rms(tensor: Tensor) -> Tensor:
    return _wide(tensor).abs().square().mean().sqrt()


def _wide(tensor: Tensor) -> Tensor:
    """In single precision; complex if it is."""
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)


def _top(matrix: Tensor) -> Tensor:
    """The largest singular value, by power iteration from a fixed vector: no random number is drawn."""
    v = torch.cos(torch.arange(1, matrix.shape[1] + 1, device=matrix.device, dtype=torch.float32))
    for _ in range(POWER):
        u = matrix @ v
        v = matrix.T @ (u / u.norm().clamp(min=1e-30))
    size: Tensor = v.norm()
    return size
