"""Lightning, with the real package: plans before the fit, their rates on the right parameters, resuming, errors."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import dagscale
from dagscale.errors import DagscaleError, PlanError, RecipeError

pytorch = pytest.importorskip("lightning.pytorch")
from dagscale.integrations import requirement  # noqa: E402
from dagscale.integrations.lightning import PlanCallback, WatchCallback, configure_optimizers  # noqa: E402
from dagscale.integrations.training_step import by_training_step  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(does not have many workers|log_every_n_steps|GPU available).*"),
    pytest.mark.filterwarnings("ignore:.*`?isinstance\\(treespec, LeafSpec\\).*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .*"),
]


class Net(pytorch.LightningModule):  # type: ignore[misc]
    """Writes its training step as people do: it logs, and asks its trainer where it stands."""

    def __init__(self, width: int = 8, depth: int = 1, plan: dagscale.Plan | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x.relu())
        return self.head(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("loss", loss)
        self.log_dict({"epoch": float(self.current_epoch), "step": float(self.trainer.global_step)})
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, self.hparams.plan)


class Parts(Net):
    """Never calls itself."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(Net.forward(self, batch[0]), batch[1])


def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(1)


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*examples()), batch_size=16, shuffle=True)


def trainer(tmp_path: Path, *callbacks: Any, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pytorch.Trainer(
        default_root_dir=tmp_path, callbacks=list(callbacks), **{"max_steps": 2, "max_epochs": 1, **quiet, **options}
    )


def planner(base: Any = None, **more: Any) -> PlanCallback:
    said = {"optimizer": "adamw", "weight_decay": 0.1, "schedule": dagscale.cosine(warmup=1), **more}
    return PlanCallback(base, search={"seeds": 1, "grid": (0.003, 0.01, 0.03), "widen": 0}, **said)


def given(**more: Any) -> PlanCallback:
    """A plan without a measurement, for what is not about the plan."""
    said = {"optimizer": "adamw", "schedule": dagscale.cosine(warmup=1), "law": "none", "base_lr": 0.01, **more}
    return PlanCallback(init="in-degree", **said)


def rates(fitted: Any, plan: dagscale.Plan) -> dict[str, float]:
    """Each parameter's rate over the plan's, of the optimiser that trains it, by the parameter itself."""
    names = {id(p): name for name, p in fitted.lightning_module.named_parameters()}
    groups = fitted.optimizers[0].param_groups
    held = {names[id(p)]: group["initial_lr"] for group in groups for p in group["params"]}
    return {name: held[name] / plan.parameters[name].lr for name in plan.parameters}


def test_a_base_is_searched_and_carried_over_before_the_fit(tmp_path: Path) -> None:
    asked = planner(Net, width="mup")
    fit = trainer(tmp_path, asked, gradient_clip_val=0.5, accumulate_grad_batches=2)
    module = Net(32)
    fit.fit(module, loader())
    plan = asked.plan
    assert plan is not None
    assert asked.base is not None
    assert plan.recipe["clip"] == 0.5
    assert plan.recipe["accumulate"] == 2
    assert plan.recipe["steps"] == 2
    assert len({own.lr for own in plan.parameters.values()}) > 1, "wider layers learn more slowly"
    assert rates(fit, plan) == pytest.approx(dict.fromkeys(plan.parameters, 1.0))
    decays = {name: g["weight_decay"] for g in fit.optimizers[0].param_groups for name in g["param_names"]}
    assert decays["stem.bias"] == 0 < decays["blocks.0.weight"]
    assert fit.lr_scheduler_configs[0].interval == "step"
    assert fit.global_step == 2
    fresh = plan.init_(Net(32))
    assert not torch.equal(fresh.head.weight, module.head.weight), "it was trained"
    assert "_stepping" not in vars(module)
    assert "setup" not in vars(fit.strategy)


def test_a_schedule_that_begins_far_below_its_highest_rate_is_the_plan_s(tmp_path: Path) -> None:
    """OneCycleLR writes its first rates into the groups, all in the plan's ratios."""

    def one_cycle(optimizer: Any, steps: int) -> Any:
        highest = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, total_steps=steps + 1)

    asked = given(schedule=one_cycle, lr_scale={"head": 0.5})
    fit = trainer(tmp_path, asked)
    fit.fit(Net(8), loader())
    assert asked.plan is not None
    seen = {name: group["max_lr"] for group in fit.optimizers[0].param_groups for name in group["param_names"]}
    assert seen == pytest.approx({name: own.lr for name, own in asked.plan.parameters.items()})


@pytest.mark.parametrize("kind", [Net, Parts])
def test_what_the_training_step_trains_is_what_a_loss_would_train(kind: Any) -> None:
    torch.manual_seed(0)
    module = kind()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    batches = list(loader())
    said: dict[str, Any] = {"optimizer": "adamw", "steps": 4}
    by_step = [{"batch": batch, "label": 1} for batch in batches]
    own = dagscale.plan(by_training_step(module), recipe=dagscale.Recipe(by_step, **said))
    usual = dagscale.plan(module, recipe=dagscale.Recipe(batches, cross_entropy, **said))
    assert own.parameters == usual.parameters
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_batch_and_horizon_are_rules_of_the_plan(tmp_path: Path) -> None:
    base = dagscale.search(
        Net(8),
        dagscale.Recipe(loader(), cross_entropy, "adamw", steps=2, weight_decay=0.1),
        seeds=1, grid=(0.01, 0.02), widen=0,
    )  # fmt: skip
    asked = PlanCallback(
        base, loss=cross_entropy, batch="sqrt", horizon="timescale", optimizer="adamw", weight_decay=0.1
    )
    trainer(tmp_path, asked, accumulate_grad_batches=2).fit(Net(8), loader())
    assert asked.plan is not None
    assert asked.plan.lr != base.lr


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_workers_that_persist_lose_no_batch(tmp_path: Path, several: bool) -> None:
    rows = TensorDataset(*examples())
    loaders = [DataLoader(rows, batch_size=16, num_workers=1, persistent_workers=True) for _ in range(1 + several)]

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0] if several else batch, batch_idx)

    class Count(pytorch.Callback):  # type: ignore[misc]
        began = 0

        def on_train_batch_start(self, *given: Any) -> None:
            self.began += 1

    count = Count()
    trainer(tmp_path, planner(Both), count, max_steps=-1).fit(Both(8), loaders if several else loaders[0])
    assert count.began == 4


def test_precision_data_module_and_loss(tmp_path: Path) -> None:
    class Data(pytorch.LightningDataModule):  # type: ignore[misc]
        def setup(self, stage: str) -> None:
            self.made = loader()

        def train_dataloader(self) -> Any:
            return self.made

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 2, batch[1]

    class Late(Net):
        def configure_model(self) -> None:
            if not hasattr(self, "more"):
                self.more = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.more(super().forward(x))

    asked = planner(loss=cross_entropy)
    fit = trainer(tmp_path, asked, precision="bf16-mixed")
    fit.fit(Late(), datamodule=Data())
    assert asked.plan is not None
    assert asked.plan.recipe["autocast"] == "bfloat16"
    assert "more.weight" in rates(fit, asked.plan)
    twice = next(iter(asked.plan.live.data))[0]  # type: ignore[union-attr]
    assert float(twice.abs().max()) == pytest.approx(2 * float(examples()[0].abs().max()), rel=0.6)


def test_a_fit_goes_on_from_a_checkpoint_with_the_plan_and_the_weights_in_it(tmp_path: Path) -> None:
    first, module = given(), Net()
    fit = trainer(tmp_path, first, max_steps=4)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "at.ckpt")

    class Seen(pytorch.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
            self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    again, seen = given(), Seen()
    more = trainer(tmp_path, again, seen, max_steps=6, max_epochs=3)
    more.fit(Net(), loader(), ckpt_path=tmp_path / "at.ckpt")
    assert again.plan == first.plan
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in seen.weights.items())
    assert seen.rate == fit.optimizers[0].param_groups[0]["lr"]
    assert more.global_step == 6
    assert rates(more, again.plan) == pytest.approx(dict.fromkeys(again.plan.parameters, 1.0))  # type: ignore[union-attr,arg-type]


def test_a_second_fit_trains_on_and_another_module_is_drawn(tmp_path: Path) -> None:
    asked, module = given(), Net()
    trainer(tmp_path, asked).fit(module, loader())
    trained = module.head.weight.clone()
    copy.deepcopy(asked)

    class Seen(pytorch.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.weight = pl_module.head.weight.clone()

    seen = Seen()
    for again in (asked, pickle.loads(pickle.dumps(asked))):
        trainer(tmp_path, again, seen).fit(module if again is asked else Net(), loader())
        assert torch.equal(seen.weight, trained) is (again is asked)
    assert asked.plan is not None
    assert torch.equal(seen.weight, asked.plan.init_(Net()).head.weight)


def test_hyperparameters_may_hold_a_plan(tmp_path: Path) -> None:
    plan = dagscale.plan(Net(), examples()[0], base_lr=0.01, law="none", optimizer="adamw")
    module = plan.init_(Net(plan=plan))
    fit = trainer(tmp_path)
    fit.fit(module, loader())
    fit.save_checkpoint(tmp_path / "with.ckpt")
    loaded = Net.load_from_checkpoint(tmp_path / "with.ckpt")
    assert loaded.hparams.plan == plan
    assert torch.load(tmp_path / "with.ckpt", weights_only=True)["hyper_parameters"]["plan"] == plan


@pytest.mark.parametrize("kind", [Net, Parts])
def test_the_watch_sees_the_steps_and_its_scalars_reach_the_loggers(tmp_path: Path, kind: Any) -> None:
    from lightning.pytorch.loggers import CSVLogger

    watcher = WatchCallback(every=1)
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer(tmp_path, given(), watcher, logger=logger, max_steps=4).fit(kind(), loader())
    report = watcher.report()
    assert report is not None
    assert (report.steps, report.observed) == (4, 4)
    assert report.ok, report.verdict
    assert all(row.signal is not None for row in report.rows if row.name.endswith("weight"))
    assert "dagscale/update/hidden" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert watcher.watch is None


def test_clipping_knows_of_folded_multipliers(tmp_path: Path) -> None:
    base = dagscale.search(
        Net(8),
        dagscale.Recipe(loader(), cross_entropy, "adamw", steps=2, clip=1e-3),
        seeds=1, grid=(0.01, 0.02), widen=0,
    )  # fmt: skip
    norms = []

    class Norm(pytorch.Callback):  # type: ignore[misc]
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            found = [
                g.get("fold", 1.0) * p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None
            ]
            norms.extend([float(torch.cat([g.flatten() for g in found]).norm())] if found else [])

    asked = PlanCallback(base, loss=cross_entropy, depth="completep", optimizer="adamw")
    fit = trainer(tmp_path, asked, Norm(), gradient_clip_val=1e-3)
    fit.fit(Net(8, depth=3), loader())
    assert asked.plan is not None
    assert any(own.fold != 1 for own in asked.plan.parameters.values())
    assert norms[-1] == pytest.approx(1e-3, rel=1e-3)
    assert "configure_gradient_clipping" not in vars(fit.lightning_module)

    class Broken(pytorch.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, *of: Any) -> None:
            raise KeyError("broken")

    module = Net(8, depth=3)
    with pytest.raises(KeyError, match="broken"):
        trainer(tmp_path, PlanCallback(plan=asked.plan), Broken(), gradient_clip_val=1e-3).fit(module, loader())
    assert "configure_gradient_clipping" not in vars(module)


# --- errors ------------------------------------------------------------------------------------------------------


class Own(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Named(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.named_parameters(), lr=1.23e-3)


class Halved(Net):
    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, lr=0.005)


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Curious(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(self(batch[0]), batch[1]) * self.trainer.my_factor


class Lossless(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self(batch[0])


@pytest.mark.parametrize(
    ("module", "asked", "data", "text"),
    [
        (Net, {}, None, "Net has no training data: give trainer.fit a loader"),
        (Own, {}, loader, "configure_optimizers of Own made AdamW without the plan's rates: let it return"),
        (Named, {}, loader, "configure_optimizers of Named made AdamW without the plan's rates: let it return"),
        (Manual, {}, loader, "Manual optimises by hand .* give loss="),
        (Curious, {}, loader, "asks its trainer for 'my_factor', which there is none of while a plan is made"),
        (Lossless, {}, loader, "the training_step of Lossless returned NoneType, no loss"),
        (Net, {"optimizer": "adamv"}, loader, "did you mean 'adam'"),
        (Net, {"law": "nonsense"}, loader, "unknown law"),
    ],
)
def test_one_line_with_the_mend(tmp_path: Path, module: Any, asked: Any, data: Any, text: str) -> None:
    made = module()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(DagscaleError, match=text) as raised:
        trainer(tmp_path, planner(**asked)).fit(made, data and data())
    assert "\n" not in str(raised.value)
    if module not in (Own, Named):
        assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_another_rate_may_be_said_where_the_optimizer_is_made(tmp_path: Path) -> None:
    asked = given(lr_scale={"head": 0.5})
    fit = trainer(tmp_path, asked)
    fit.fit(Halved(), loader())
    assert asked.plan is not None
    assert rates(fit, asked.plan) == pytest.approx(dict.fromkeys(asked.plan.parameters, 0.5))


def test_more_lines_with_the_mend(tmp_path: Path) -> None:
    other = dagscale.plan(Net(16), examples()[0], base_lr=0.01, law="none", optimizer="adamw")
    with pytest.raises(PlanError, match="the plan is for another model"):
        trainer(tmp_path, PlanCallback(plan=other)).fit(Net(8), loader())
    with pytest.raises(PlanError, match="no plan: give the Trainer callbacks"):
        trainer(tmp_path).fit(Net(8), loader())
    with pytest.raises(PlanError, match=r"base must be .* a function that makes the small module"):
        PlanCallback(Net())
    with pytest.raises(PlanError, match="leave one of them out"):
        PlanCallback(plan=other, optimizer="sgd")
    with pytest.raises(RecipeError, match="give it steps= in place of epochs="):
        PlanCallback(epochs=3)
    with pytest.raises(PlanError, match="clips by value"):
        trainer(tmp_path, planner(), gradient_clip_val=1.0, gradient_clip_algorithm="value").fit(Net(), loader())
    with pytest.raises(RecipeError, match="Linear is no LightningModule"):
        by_training_step(nn.Linear(2, 2))


def test_lightning_absent_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DagscaleError, match=r"this needs nothing, and nothing_at_all cannot be imported .* pip install"
    ):
        requirement.require("nothing_at_all", "nothing")
    monkeypatch.setattr(sys.modules["lightning"], "__version__", "1.9.5")
    with pytest.raises(DagscaleError, match=r"this needs lightning 2.1 or newer, and 1.9.5 is installed: pip install"):
        by_training_step(Net())


# --- several processes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_with_one_plan_under_ddp_and_fsdp(tmp_path: Path) -> None:
    script = Path(__file__).parent / "fixtures" / "lightning_distributed.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for strategy in ("ddp", "fsdp"):
        facts = [torch.load(tmp_path / f"{strategy}{rank}.pt") for rank in range(2)]
        plan = facts[0]["plan"]
        assert plan == facts[1]["plan"]
        assert plan.recipe["accumulate"] == 2, "two processes are as many accumulated batches"
        for own in facts:
            assert own["steps"] == 2
            assert own["rates"] == {name: p.lr for name, p in plan.parameters.items()}
            assert own["drawn"]
            assert own["sharded"] == (strategy == "fsdp")
            assert own["report"] == list(plan.parameters)


def test_a_module_that_fsdp_has_flattened_gets_the_plans_rates_and_is_not_drawn() -> None:
    module = Net()
    plan = dagscale.plan(module, examples()[0], base_lr=0.01, law="none", optimizer="adamw", lr_scale={"head": 0.5})
    for name in ("stem", "head"):
        layer = getattr(module, name)
        layer.weight = nn.Parameter(layer.weight.detach().flatten()[:5])  # what one process holds of it
        layer.weight._fsdp_flattened = True  # as torch marks it
    groups = configure_optimizers(module, plan)["optimizer"].param_groups
    held = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert held == {name: own.lr for name, own in plan.parameters.items()}
    with pytest.raises(PlanError, match="a stretch of FSDP's flat parameter: call init_ before FSDP wraps the model"):
        plan.init_(module)
