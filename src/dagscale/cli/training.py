"""The options that say how a network is trained, and the recipe that they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagscale.errors import RecipeError, TargetError

if TYPE_CHECKING:
    from dagscale.bench.data import Dataset
    from dagscale.training.recipe import Recipe

PANEL = "How it is trained"


def _option(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel=PANEL)


RecipeFile = Annotated[
    str | None, _option("All of the training: file.py:name of a dagscale.Recipe, or of a function that returns one.")
]
Optimizer = Annotated[str | None, _option("Its name (`dagscale list optimizers`); sgd by default.")]
Loss = Annotated[str | None, _option("A name in torch.nn.functional, as mse_loss, or file.py:function.")]
BatchSize = Annotated[int | None, _option("Examples a step.")]
Steps = Annotated[int | None, _option("Optimiser steps of a run.")]
Epochs = Annotated[int | None, _option("Passes over the data of a run.")]
WeightDecay = Annotated[float | None, _option("For all but norms and biases.")]
Clip = Annotated[float | None, _option("Largest norm of the gradient.")]
Schedule = Annotated[str | None, _option("constant, linear or cosine.")]
Warmup = Annotated[float | None, _option("Share of the steps, or their number.")]
Setting = Annotated[list[str] | None, _option("Of the optimiser, as momentum=0.9 or betas=0.9,0.95; repeat it.")]


def make_recipe(
    data: Dataset | Any | None,
    *,
    recipe: str | None = None,
    optimizer: str | None = None,
    loss: str | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    schedule: str | None = None,
    warmup: float | None = None,
    setting: list[str] | None = None,
) -> Recipe:
    """The recipe that the options come to.

    Raises:
        RecipeError, TargetError: if they do not hold together.
    """
    from dagscale.training.recipe import Recipe
    from dagscale.training.schedules import Schedule as Shape

    said: dict[str, Any] = {
        "optimizer": optimizer, "batch_size": batch_size, "steps": steps, "epochs": epochs,
        "weight_decay": weight_decay, "clip": clip, "loss": loss, "schedule": schedule, "warmup": warmup,
        "setting": setting or None,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    if recipe is not None:
        if said:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in said)
            raise RecipeError(f"{options}: say it in the recipe, as --recipe is given")
        return _recipe(recipe, data)
    if schedule is not None or warmup is not None:
        said["schedule"] = Shape(schedule or "constant", said.pop("warmup", 0.0))  # type: ignore[arg-type]
    if "loss" in said:
        said["loss"] = _loss(str(loss))
    for item in said.pop("setting", []):
        name, equals, value = str(item).partition("=")
        if not equals:
            raise RecipeError(f"--setting {item!r} is no setting: write it as name=value")
        said[name] = _value(value)
    return Recipe(data, **said)


def _recipe(text: str, data: Any) -> Recipe:
    from dagscale.models.targets import called, find
    from dagscale.training.recipe import Recipe

    found = find(text, "recipe")
    if not isinstance(found, Recipe) and callable(found):
        found = called(found, text)
    if not isinstance(found, Recipe):
        raise TargetError(f"{text} is {type(found).__name__}, not a dagscale.Recipe nor a function that returns one")
    return found if data is None else found.changed(data=data)


def _loss(text: str) -> Any:
    from torch.nn import functional

    from dagscale.models.targets import did_you_mean, find

    if ":" in text:
        return find(text, "loss")
    losses = [name for name in dir(functional) if name.endswith("_loss") or "entropy" in name]
    if text not in losses:
        raise RecipeError(f"there is no loss {text!r} in torch.nn.functional{did_you_mean(text, losses)}")
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
