"""The options that say how a network is trained, and the recipe that they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from dagscale.cli.app import listed_in
from dagscale.errors import RecipeError, TargetError

if TYPE_CHECKING:
    from dagscale.planning import Base
    from dagscale.training.recipe import Recipe

_option = listed_in("How it is trained")


RecipeFile = Annotated[
    str | None, _option("All of the training: file.py:name of a dagscale.Recipe, or of a function that returns one.")
]
Optimizer = Annotated[str | None, _option("Its name (`dagscale list optimizers`); sgd by default.")]
Loss = Annotated[
    str | None,
    _option(
        "A name in torch.nn.functional, as mse_loss, or file.py:function of output and target; by default "
        "cross-entropy, for text that of the next token."
    ),
]
BatchSize = Annotated[int | None, _option("Examples a step.", min=1, max=10**6)]
Steps = Annotated[int | None, _option("Optimiser steps of a run.", min=1, max=10**8)]
Epochs = Annotated[int | None, _option("Passes over the data of a run.", min=1, max=10**6)]
WeightDecay = Annotated[float | None, _option("For all but norms and biases.", min=0)]
Clip = Annotated[float | None, _option("Largest norm of the gradient, above 0.", min=0)]
Schedule = Annotated[str | None, _option("constant, linear or cosine.")]
Warmup = Annotated[float | None, _option("Share of the steps, or their number.", min=0)]
Setting = Annotated[list[str] | None, _option("Of the optimiser, as momentum=0.9 or betas=0.9,0.95; repeat it.")]


NAMES = ("optimizer", "batch_size", "steps", "epochs", "weight_decay", "clip", "loss", "schedule", "warmup", "setting")
"""The options above, as a command calls them; beside them there may be ``recipe`` and ``limit``."""


def make_recipe(data: Any, options: Mapping[str, Any], base: Base | None = None) -> Recipe:
    """The recipe that the options come to; of data that bring a loss of their own, as text does, with that one.

    Args:
        options: all of the command's, by name (``context.params``).
        base: a base from a file: what the options leave out is as it was for that.

    Raises:
        RecipeError, TargetError: if they do not hold together.
    """
    from dagscale.training.recipe import Recipe, as_described
    from dagscale.training.schedules import Schedule as Shape

    recipe, limit = options.get("recipe"), options["limit"]
    said = {name: value for name in NAMES if (value := options.get(name)) not in (None, (), [])}
    if recipe is not None:
        if said:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise RecipeError(f"{given}: say it in the recipe, as --recipe is given")
        return _recipe(recipe, data, limit)
    if data is None and limit is not None:
        raise RecipeError("--limit is of data, and there are none: name them with --data")
    if "schedule" in said or "warmup" in said:
        said["schedule"] = Shape(said.get("schedule", "constant"), said.pop("warmup", 0.0))
    if "loss" in said:
        said["loss"] = _loss(said["loss"])
    elif callable(getattr(data, "loss", None)):
        said["loss"] = data.loss
    for item in said.pop("setting", []):
        name, equals, value = str(item).partition("=")
        if not equals:
            raise RecipeError(f"--setting {item!r} is no setting: write it as name=value")
        said[name] = _value(value)
    said["data"] = data
    return Recipe(**said, **({} if base is None else as_described(base.recipe, said)))


def _recipe(text: str, data: Any, limit: int | None) -> Recipe:
    from dagscale.cli.data import limited
    from dagscale.models.own_code import find
    from dagscale.training.recipe import Recipe

    found = find(text, "recipe", call=True)
    if not isinstance(found, Recipe):
        raise TargetError(f"{text} is {type(found).__name__}, not a dagscale.Recipe nor a function that returns one")
    if data is None and limit is not None:
        if found.data is None:
            raise RecipeError("--limit is of data, and the recipe has none: name them with --data")
        data = limited(found.data, limit)
    return found if data is None else found.changed(data=data)


def _loss(text: str) -> Any:
    from torch.nn import functional

    from dagscale.models.own_code import find
    from dagscale.registry import did_you_mean
    from dagscale.training.recipe import named_losses

    if ":" in text:
        return find(text, "loss")
    known = named_losses()
    if text not in known:
        near = did_you_mean(f"{text}_loss" if f"{text}_loss" in known else text, known)
        raise RecipeError(f"there is no loss {text!r} in torch.nn.functional{near}")
    return getattr(functional, text)


def _value(text: str) -> Any:
    """A number, several, True, False, None, or a text."""
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    known = {"True": True, "true": True, "False": False, "false": False, "None": None, "none": None}
    if text in known:
        return known[text]
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text
