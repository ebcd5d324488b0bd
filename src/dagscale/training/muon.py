"""Muon for hidden matrices and AdamW for the rest, as one optimiser; and the shape factors of Muon's implementations.

A Muon step is an orthogonal matrix times a factor of the matrix's shape. That every layer's output moves by as much at
every width asks for ``√(d_out/d_in)`` [Large et al. 2024, arXiv 2405.14813]; implementations differ, and
:func:`shape_correction` is what each leaves to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.errors import OptimizerError
from dagscale.registry import Registry

Shape = Sequence[int]

SHAPE_FACTORS: Registry[Callable[[int, int], float]] = Registry("Muon implementation")
"""Name → (d_out, d_in) → what that implementation multiplies the rate by."""


@SHAPE_FACTORS.add("original")
def _original(out: int, into: int) -> float:
    """``√max(1, out/in)``: Keller Jordan's, and torch's default."""
    return sqrt(max(1.0, out / into))


@SHAPE_FACTORS.add("match_rms_adamw")
def _match_rms_adamw(out: int, into: int) -> float:
    """``0.2 √max(out, in)``: entries as large as AdamW's [Moonlight: Liu et al. 2025, arXiv 2502.16982]."""
    return 0.2 * sqrt(max(out, into))


@SHAPE_FACTORS.add("spectral")
def _spectral(out: int, into: int) -> float:
    """``√(out/in)``: Dion's, and what the others are corrected to."""
    return sqrt(out / into)


def matrix_shape(shape: Shape) -> tuple[int, int]:
    """(d_out, d_in) of a weight as the matrix that it is: a convolution's ``out × (in · kernel)``.

    Raises:
        OptimizerError: if it has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise OptimizerError(
            f"a parameter of shape {tuple(shape)} is no matrix: leave it to AdamW, without 'matrix' in its group"
        )
    return int(shape[0]), prod(int(n) for n in shape[1:])


def shape_factor(shape: Shape, implementation: str = "original") -> float:
    """What an implementation of Muon multiplies its rate by for a weight of this shape, flattened to a matrix first."""
    return SHAPE_FACTORS[implementation](*matrix_shape(shape))


def shape_correction(shape: Shape, implementation: str = "original", base: Shape | None = None) -> float:
    """The factor on the rate that makes an implementation's shape factor ``√(d_out/d_in)``.

    Args:
        base: the shape of the same weight in the network whose rate is carried over, trained without correction. The
            factor is then that of the growth alone: ``m^-½`` for ``match_rms_adamw`` and a square matrix m times as
            wide, 1 for ``original``.
    """
    out, into = matrix_shape(shape)
    correction = sqrt(out / into) / shape_factor(shape, implementation)
    return correction if base is None else correction / shape_correction(base, implementation)


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` for the groups that say ``"matrix": True``, ``torch.optim.AdamW`` for all others.

    One optimiser to the outside: one list of groups for schedulers, one state to save. Groups may say besides

        split       numbers of rows, such as (d, d, d): each part of the weight is a matrix of its own (fused QKV)
        stacked     True: the first dimension counts matrices (a layer's experts)
        transposed  True: written ``in × out`` (GPT-2); ``split`` is then of columns

    A convolution is the matrix ``out × (in · kernel)``, and its shape factor that matrix's.

    Args:
        groups: parameter groups, or parameters (all AdamW's).
        lr, weight_decay: of both.
        momentum, nesterov, ns_steps, adjust_lr_fn: Muon's; ``adjust_lr_fn`` is ``match_rms_adamw`` by default, so that
            one rate serves both, or ``original``.
        betas, eps: AdamW's.

    Raises:
        OptimizerError: if this torch has no Muon, or a group's matrices are none.
    """

    def __init__(
        self,
        groups: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise OptimizerError(f"torch {torch.__version__} has no Muon: install torch 2.9 or newer, or use adamw")
        if adjust_lr_fn not in ("original", "match_rms_adamw"):
            raise OptimizerError(f"adjust_lr_fn={adjust_lr_fn!r}: torch's Muon knows 'original' and 'match_rms_adamw'")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "betas": betas,
            "eps": eps,
            "matrix": False,
            "split": None,
            "stacked": False,
            "transposed": False,
        }
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; refused before anything has changed if its parameters are not the matrices that it says."""
        if param_group.get("matrix"):
            params = param_group["params"]
            params = [params] if isinstance(params, Tensor) else list(params)
            for p in params:
                _check(p, param_group)
            param_group = {**param_group, "params": params}
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [{**g, "params": [p for p in g["params"] if p.grad is not None]} for g in self.param_groups]
        hidden = [g for g in moving if g["params"] and g["matrix"]]
        rest = [g for g in moving if g["params"] and not g["matrix"]]
        if hidden:
            self._step_matrices(hidden)
        if rest:
            inner = torch.optim.AdamW(_only(rest, "lr", "weight_decay", "betas", "eps"))
            for group in rest:
                for p in group["params"]:
                    inner.state[p] = self.state[p]
            inner.step()
        return loss

    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        """Muon on views of the weights, of their gradients and of their momenta, as the matrices that they are."""
        listed, copied = [], []
        momenta: dict[nn.Parameter, Tensor] = {}
        for group in groups:
            listing: list[nn.Parameter] = []
            for p in group["params"]:
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                weight = p.detach().contiguous()
                if weight.data_ptr() != p.data_ptr():  # channels last, transposed
                    copied.append((p, weight))
                parts = (matrices(t, group) for t in (weight, p.grad.contiguous(), state["momentum_buffer"]))
                for part, grad, momentum in zip(*parts, strict=True):
                    matrix = nn.Parameter(part, requires_grad=False)
                    matrix.grad = grad
                    momenta[matrix] = momentum
                    listing.append(matrix)
            listed.append({**group, "params": listing})
        keys = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")
        inner = torch.optim.Muon(_only(listed, *keys))
        for matrix, momentum in momenta.items():
            inner.state[matrix]["momentum_buffer"] = momentum
        inner.step()  # type: ignore[no-untyped-call]
        for p, weight in copied:
            p.copy_(weight)


def _only(groups: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    return [{"params": g["params"], **{key: g[key] for key in keys}} for g in groups]


def matrices(tensor: Tensor, group: Mapping[str, Any]) -> Iterator[Tensor]:
    """A contiguous weight, or its change, seen as the matrices that a spectral step takes, ``out × (in · kernel)``."""
    for piece in tensor.unbind(0) if group.get("stacked") else (tensor,):
        matrix = piece.view(matrix_shape(piece.shape))
        matrix = matrix.T if group.get("transposed") else matrix
        yield from torch.split(matrix, list(group["split"])) if group.get("split") else (matrix,)


def _check(p: Tensor, group: dict[str, Any]) -> None:
    shape = p.shape[1:] if group.get("stacked") else p.shape
    rows = matrix_shape(shape)[1 if group.get("transposed") else 0]
    split = group.get("split")
    if split and sum(split) != rows:
        raise OptimizerError(
            f"split={tuple(split)} does not add up to the {rows} rows of a weight of shape {tuple(shape)}"
        )
