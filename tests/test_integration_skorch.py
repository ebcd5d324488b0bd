"""skorch, as the page has it: the plan's weights and rates, searches around its rate, a schedule, saving."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

skorch = pytest.importorskip("skorch")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "skorch.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's lines define, run as they stand."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), made)
    return made


def rates(net: Any) -> dict[str, float]:
    names = {id(p): name for name, p in net.module_.named_parameters()}
    return {names[id(p)]: group["lr"] for group in net.optimizer_.param_groups for p in group["params"]}


def test_the_page_runs_and_every_parameter_has_its_rate(page: dict[str, Any]) -> None:
    net, plan = page["net"], page["plan"]
    assert rates(net) == {name: own.lr for name, own in plan.parameters.items()}
    assert net.score(page["x"], page["y"]) > 0.9


def test_it_goes_on_from_saved_parameters_to_the_bit(page: dict[str, Any], tmp_path: Path) -> None:
    from sklearn.base import clone

    files = {"f_params": str(tmp_path / "weights"), "f_optimizer": str(tmp_path / "optimizer")}
    x, y = page["x"][:256], page["y"][:256]
    once = clone(page["net"]).set_params(max_epochs=2, iterator_train__shuffle=False).fit(x, y)
    once.save_params(**files)
    again = clone(once).initialize()
    again.load_params(**files)
    for net in (once, again):
        net.partial_fit(x, y)
    assert all(torch.equal(a, b) for a, b in zip(once.module_.parameters(), again.module_.parameters(), strict=True))
    assert rates(again) == rates(once)


def test_a_search_tries_rates_around_the_plans_from_the_plans_weights(page: dict[str, Any]) -> None:
    from sklearn.model_selection import GridSearchCV

    plan = page["plan"]
    search = GridSearchCV(page["net"], {"lr": [plan.lr / 2, plan.lr], "max_epochs": [1]}, cv=2, refit=True)
    search.fit(page["x"][:256], page["y"][:256])
    best = search.best_estimator_
    assert rates(best) == pytest.approx({name: own.lr * best.lr / plan.lr for name, own in plan.parameters.items()})
    fresh = best.initialize()
    drawn = plan.init_(page["mlp"](6))
    assert all(torch.equal(a, b) for a, b in zip(fresh.module_.parameters(), drawn.parameters(), strict=True))


def test_a_schedule_of_the_recipe_is_a_callback(page: dict[str, Any]) -> None:
    from sklearn.base import clone
    from skorch.callbacks import LRScheduler

    import dagscale

    plan = dagscale.plan(
        page["mlp"](6), torch.zeros(2, 64), base_lr=0.01, law="none", optimizer="adamw",
        schedule=dagscale.cosine(), steps=4,
    )  # fmt: skip
    callback = LRScheduler(lambda optimizer, **_: plan.schedule(optimizer, 4), step_every="batch")
    net = clone(page["net"]).set_params(callbacks=[("schedule", callback)], max_epochs=2, batch_size=128)
    net.fit(page["x"][:256], page["y"][:256])
    assert max(rates(net).values()) == pytest.approx(0.0, abs=1e-9)
