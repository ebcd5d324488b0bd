"""The Trainer of transformers trains by a plan: rates by name, the norm it clips by, resumed, watched; refusals."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

import dagscale
from dagscale.errors import DagscaleError, OptimizerError, PlanError, RecipeError, WatchError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
hf = pytest.importorskip("dagscale.integrations.huggingface")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def gpt(layers: int) -> nn.Module:
    torch.manual_seed(layers)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=layers, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def rows(n: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (n, 16), generator=generator)
    return [{"input_ids": row, "labels": row, "not the model's": torch.zeros(1)} for row in ids]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return tmp_path


def trainer_of(folder: Path, model: nn.Module | None = None, trainer: Any = None, **said: Any) -> Any:
    own = {
        "max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "weight_decay": 0.1,
        "adam_beta2": 0.95, "adam_epsilon": 1e-6, "warmup_steps": 1, "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.5, "save_steps": 2, "report_to": [], "disable_tqdm": True, "use_cpu": True,
        "logging_strategy": "no",
    }  # fmt: skip
    data = said.pop("train_dataset", rows())
    more = {
        key: said.pop(key) for key in ("optimizers", "compute_loss_func", "eval_dataset", "model_init") if key in said
    }
    args = transformers.TrainingArguments(output_dir=str(folder), **{**own, **said})
    own = model if "model_init" in more else model or gpt(4)
    return (trainer or transformers.Trainer)(own, args, train_dataset=data, **more)


def planned(trainer: Any, **more: Any) -> dagscale.Plan:
    return dagscale.plan(
        trainer.model, base=(gpt(1), {"input_ids": torch.zeros(2, 16, dtype=torch.long)}), base_lr=0.02,
        recipe=hf.recipe_of(trainer), init="in-degree", depth="completep", **more,
    )  # fmt: skip


# --- what the Trainer says ---------------------------------------------------------------------------------------


def test_the_recipe_is_what_the_trainer_was_told(folder: Path) -> None:
    trainer = trainer_of(folder, bf16=True)
    recipe = hf.recipe_of(trainer)
    assert recipe.describe() == {
        "optimizer": {"name": "adamw", "settings": {"betas": [0.9, 0.95], "eps": 1e-6, "fused": True}},
        "loss": None, "batch_size": 4, "steps": 4, "epochs": None,
        "schedule": {"shape": "cosine", "warmup": 0.25, "final": 0.0}, "step": None, "clip": 0.5, "accumulate": 2,
        "autocast": "bfloat16", "weight_decay": 0.1, "no_decay": "NoDecay", "select": None,
    }  # fmt: skip
    assert recipe.example.inputs.keys() == {"input_ids", "labels"}  # what the model does not take is left out
    assert trainer.optimizer is None


def test_names_without_decay_are_the_trainers_own_and_hold_for_the_base(folder: Path) -> None:
    trainer = trainer_of(folder)
    rule = hf.recipe_of(trainer).no_decay
    decay = set(trainer.get_decay_parameter_names(trainer.model))
    for model in (trainer.model, gpt(2)):
        for name, parameter in model.named_parameters():
            assert rule(name, parameter) is (name not in decay), name
    deeper = dict(gpt(6).named_parameters())
    assert rule("transformer.h.5.ln_1.weight", deeper["transformer.h.5.ln_1.weight"])
    assert not rule("transformer.h.5.mlp.c_fc.weight", deeper["transformer.h.5.mlp.c_fc.weight"])


@pytest.mark.parametrize(("epochs", "batch", "accumulate"), [(1, 4, 2), (1.5, 5, 3), (2, 64, 4)])
def test_the_length_is_what_the_trainer_trains(folder: Path, epochs: float, batch: int, accumulate: int) -> None:
    trainer = trainer_of(
        folder, gpt(1), max_steps=-1, num_train_epochs=epochs, per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate, save_strategy="no",
    )  # fmt: skip
    steps = hf.recipe_of(trainer).total_steps
    trainer.train()
    assert trainer.state.global_step == steps


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"])
def test_schedules_are_the_trainers_to_the_step_of_the_warm_up(folder: Path, kind: str) -> None:
    trainer = trainer_of(folder, lr_scheduler_type=kind, max_steps=40, warmup_steps=0.25)
    schedule = hf.recipe_of(trainer).schedule

    def factors(make: Any) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, found = make(optimizer), []
        for _ in range(40):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    ours = factors(lambda optimizer: schedule(optimizer, 40))
    trainer.lr_scheduler = None
    theirs = factors(lambda optimizer: trainer.create_scheduler(40, optimizer))
    assert ours == pytest.approx(theirs, abs=0.1)
    if kind == "constant_with_warmup":
        assert [f < 1 for f in ours] == [f < 1 for f in theirs]


def test_schedules_end_at_the_rate_that_they_name(folder: Path) -> None:
    """The Trainer's schedules take the share that they end at from the rate that the optimizer has by default."""
    said: dict[str, Any] = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 2e-3}}
    trainer = trainer_of(folder, save_strategy="no", warmup_steps=0, **said)
    hf.use_plan(trainer, planned(trainer, width="none"))
    trainer.train()
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["initial_lr"] * 2e-3 / 0.02)
    assert dagscale.search(gpt(1), hf.recipe_of(trainer), grid=[0.02, 0.04], seeds=1).lr > 2e-3


def test_order_is_drawn_by_the_seed_and_a_sequence_stays_one(folder: Path) -> None:
    source = hf.recipe_of(trainer_of(folder)).source

    def first(seed: int) -> Tensor:
        return next(source.batches(seed)).inputs["input_ids"]

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))

    class InOrder(transformers.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *dataset: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    source = hf.recipe_of(trainer_of(folder, trainer=InOrder)).source
    assert torch.equal(first(1), torch.stack([row["input_ids"] for row in rows()[:4]]))


def test_the_loss_is_the_trainers(folder: Path) -> None:
    """Label smoothing and a function of the user's are the Trainer's, number for number."""
    from dagscale.training.engine import batch_loss

    def own(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return outputs.logits.square().mean() + labels.float().mean()

    for said in ({}, {"label_smoothing_factor": 0.3}, {"compute_loss_func": own}):
        trainer = trainer_of(folder, gpt(1), **said)
        recipe = hf.recipe_of(trainer)
        batch = recipe.example
        want = trainer.compute_loss(trainer.model, dict(batch.inputs))
        assert batch_loss(trainer.model, recipe, batch).item() == pytest.approx(want.item(), rel=1e-6)


def test_optimisers_of_other_packages_count_as_what_they_step_like(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes' AdamW is AdamW: planned with its traits, and made of its own class, from a file too."""

    class EightBit(torch.optim.AdamW):
        pass

    monkeypatch.setattr(
        transformers.Trainer, "get_optimizer_cls_and_kwargs", lambda *_: (EightBit, {"lr": 5e-5, "eps": 1e-6})
    )
    trainer = trainer_of(folder, optim="paged_adamw_8bit")
    record = hf.recipe_of(trainer).optimizer
    assert (record.name, record.step, record.decay, dict(record.settings)) == (
        "paged_adamw_8bit", "sign", "decoupled", {"eps": 1e-6},
    )  # fmt: skip
    hf.use_plan(trainer, dagscale.Plan.from_json(planned(trainer).to_json()))
    assert type(trainer.optimizer) is EightBit


# --- training by a plan ------------------------------------------------------------------------------------------


def test_it_trains_resumes_and_every_parameter_has_its_own_rate(folder: Path) -> None:
    """Two steps, a checkpoint, two more: the same as four; clipped by the norm that weighs folds; nothing to accuse."""
    whole = trainer_of(folder)
    plan = planned(whole)
    watching = hf.WatchCallback(plan, every=1)
    norms: list[float] = []
    for trainer, checkpoint in ((whole, None), (trainer_of(folder), str(folder / "checkpoint-2"))):
        plan.init_(trainer.model)
        hf.use_plan(trainer, plan)
        if checkpoint is None:
            trainer.add_callback(watching)
            trainer.optimizer.register_step_pre_hook(lambda opt, *_: norms.append(weighed(opt)))
        trainer.train(resume_from_checkpoint=checkpoint)
        held = {
            id(p): (group["initial_lr"], group["weight_decay"])
            for group in trainer.optimizer.param_groups for p in group["params"]
        }  # fmt: skip
        decay = trainer.get_decay_parameter_names(trainer.model)
        for name, p in trainer.model.named_parameters():
            own = plan.parameters[name]
            assert held[id(p)] == pytest.approx((own.lr, 0.1 * own.weight_decay * (name in decay))), name
        assert trainer.state.global_step == 4
    for (name, a), b in zip(whole.model.named_parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert len({own.lr for own in plan.parameters.values()}) > 1
    assert norms == pytest.approx([0.5] * 4, rel=1e-3)
    report = watching.report()
    assert not report.faults, report
    assert report.steps == 4


def weighed(optimizer: torch.optim.Optimizer) -> float:
    held = [(p.grad, group.get("fold", 1.0)) for group in optimizer.param_groups for p in group["params"]]
    assert any(fold != 1 for _, fold in held)
    return float(sum((g.norm() * fold) ** 2 for g, fold in held) ** 0.5)


def test_arguments_shared_with_another_trainer_stay_as_they_are(folder: Path) -> None:
    trainer = trainer_of(folder)
    args = trainer.args
    hf.use_plan(trainer, planned(trainer))
    assert args.max_grad_norm == 0.5
    assert trainer.args.max_grad_norm == 0


def test_a_plan_without_folds_leaves_clipping_to_the_trainer_and_takes_its_decay(folder: Path) -> None:
    trainer = trainer_of(folder)
    inputs = {"input_ids": torch.zeros(2, 16, dtype=torch.long)}
    plan = dagscale.plan(trainer.model, inputs, base_lr=0.01, law="none", optimizer="adamw")
    hf.use_plan(trainer, plan)
    assert trainer.args.max_grad_norm == 0.5
    decay = trainer.get_decay_parameter_names(trainer.model)
    for group in trainer.optimizer.param_groups:
        assert {name in decay for name in group["param_names"]} == {group["weight_decay"] == 0.1}


def test_a_plan_that_was_read_from_a_file_serves_too(folder: Path) -> None:
    trainer = trainer_of(folder)
    plan = planned(trainer)
    hf.use_plan(trainer, dagscale.Plan.from_json(plan.to_json()))
    want = plan.optimizer(trainer.model).param_groups
    assert [(g["lr"], g["weight_decay"], g["param_names"]) for g in trainer.optimizer.param_groups] == [
        (g["lr"], g["weight_decay"], g["param_names"]) for g in want
    ]


def test_a_trainer_that_makes_its_model_itself_trains_each_by_the_plan(folder: Path) -> None:
    trainer = trainer_of(folder, model_init=lambda: gpt(4), save_strategy="no", max_steps=1)
    plan = planned(trainer)
    hf.use_plan(trainer, plan)
    seen: list[Any] = []

    class Look(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
            seen.append(
                (of["model"], of["optimizer"].param_groups, {n: p.clone() for n, p in of["model"].named_parameters()})
            )

    trainer.add_callback(Look())
    for _ in range(2):
        trainer.train()
        model, groups, weights = seen[-1]
        held = {name: group["initial_lr"] for group in groups for name in group["param_names"]}
        assert held == {name: plan.parameters[name].lr for name in held}
        assert all(torch.equal(weights[name], p) for name, p in plan.init_(gpt(4)).named_parameters())
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
        (clip,) = trainer.optimizer.optimizer._optimizer_step_pre_hooks.values()
        assert clip == hf.Clip(0.5)
    assert seen[0][0] is not seen[1][0]


def test_under_a_loss_scale_the_scaled_norm_is_clipped() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([{"params": [weight], "fold": 2.0}], lr=0.1)
    weight.grad = torch.tensor([3.0, 4.0]) * 8
    optimizer.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]
    hf.Clip(1.0)(optimizer, (), {})
    assert float(weight.grad.norm() / 8 * 2) == pytest.approx(1.0)


def test_a_search_over_the_recipe_finds_a_rate_for_the_trainer(folder: Path) -> None:
    trainer = trainer_of(folder, gpt(2))
    found = dagscale.search(gpt(1), hf.recipe_of(trainer), grid=[1e-4, 1e-2], seeds=1)
    plan = dagscale.plan(trainer.model, base=found, depth="completep")
    hf.use_plan(trainer, plan)
    assert plan.base_lr == found.lr


# --- adapters ----------------------------------------------------------------------------------------------------


def test_adapters_of_peft_are_planned_alone_and_start_at_zero(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(gpt(2), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trainer = trainer_of(folder, model, save_strategy="no", max_steps=2)
    recipe = hf.recipe_of(trainer)
    plan = dagscale.plan(model, recipe=recipe, base_lr=1e-2, law="none", init="keep", lr_scale={"*lora_B*": 16})
    plan.init_(model)
    assert all(not p.any() for n, p in model.named_parameters() if "lora_B" in n)
    hf.use_plan(trainer, plan)
    held = {name: g["lr"] for g in trainer.optimizer.param_groups for name in g["param_names"]}
    assert held == {
        n: pytest.approx(1e-2 * (16 if "lora_B" in n else 1)) for n, p in model.named_parameters() if p.requires_grad
    }
    trainer.train()
    after = dict(model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in frozen.items())
    assert all(p.any() for n, p in after.items() if "lora_B" in n)


# --- one line each -----------------------------------------------------------------------------------------------


class OwnLoss(transformers.Trainer):  # type: ignore[misc, name-defined]
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs, *args, **kwargs)


PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_dataset": rows(2)}


@pytest.mark.parametrize(
    ("said", "error", "text"),
    [
        ({"train_dataset": None}, RecipeError, "no train_dataset: give it one"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, OptimizerError, "optim='galore_adamw'"),
        ({"optim": "adamw_8bit"}, OptimizerError, "the Trainer cannot make optim='adamw_8bit'"),
        ({"trainer": OwnLoss}, RecipeError, "OwnLoss has a compute_loss of its own: give recipe_of"),
        (PLATEAU, RecipeError, "lr_scheduler_type='reduce_lr_on_plateau' follows a metric"),
    ],
)
def test_what_a_recipe_cannot_hold_is_refused(folder: Path, said: dict[str, Any], error: Any, text: str) -> None:
    trainer = trainer_of(folder, gpt(1), **said)
    with pytest.raises(error, match=text) as caught:
        hf.recipe_of(trainer)
    assert "\n" not in str(caught.value)


def test_what_is_refused_can_be_said_in_its_place(folder: Path) -> None:
    trainer = trainer_of(folder, gpt(1), trainer=OwnLoss, optim="adafactor", **PLATEAU)
    recipe = hf.recipe_of(trainer, loss=None, optimizer="lion", schedule=None, clip=None)
    assert (recipe.optimizer.name, recipe.loss, recipe.schedule, recipe.clip) == ("lion", None, None, None)


def test_length_follows_accumulation_and_epochs_are_refused(folder: Path) -> None:
    trainer = trainer_of(folder, gpt(1), max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=1)
    assert [hf.recipe_of(trainer, accumulate=n).total_steps for n in (1, 2)] == [32, 16]
    with pytest.raises(RecipeError, match="give it steps= in place of epochs="):
        hf.recipe_of(trainer, epochs=2)


def test_an_optimizer_of_which_nothing_is_known_is_searched(folder: Path) -> None:
    trainer = trainer_of(folder, gpt(1), optim="adafactor")
    record = hf.recipe_of(trainer).optimizer
    assert (record.name, record.step) == ("transformers.optimization.adafactor", None)
    found = dagscale.search(gpt(1), hf.recipe_of(trainer), grid=[1e-4, 1e-2], seeds=1, widen=0)
    hf.use_plan(trainer, dagscale.plan(trainer.model, base=found))
    assert type(trainer.optimizer).__name__ == "Adafactor"


def test_a_trainer_with_an_optimizer_is_refused(folder: Path) -> None:
    model = gpt(4)
    trainer = trainer_of(folder, model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    plan = planned(trainer)
    with pytest.raises(PlanError, match=r"has an optimizer already, .* make a new Trainer"):
        hf.use_plan(trainer, plan)
    assert type(trainer.optimizer) is torch.optim.SGD


@pytest.mark.slow
def test_under_fsdp_2_two_processes_train_as_one_does(folder: Path) -> None:
    """The plan's rates by name, clipped by the folded norm, and the weights of one process with the same batches."""
    script = Path(__file__).parent / "fixtures" / "trainer_distributed.py"
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    facts = torch.load(folder / "facts")
    assert (facts["processes"], facts["rates"]) == (2, True)
    alone = trainer_of(folder, gpt(2), save_strategy="no", gradient_accumulation_steps=4)
    plan = planned(alone)
    plan.init_(alone.model)
    hf.use_plan(alone, plan)
    alone.train()
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(facts["weights"][name], parameter.detach(), rtol=1e-3, atol=1e-4)


def test_what_flattens_parameters_of_several_rates_is_refused(folder: Path) -> None:
    trainer = trainer_of(folder)
    plan = planned(trainer)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(PlanError, match=r"DeepSpeed is not supported under the Trainer.*loop of your own"):
        hf.use_plan(trainer, plan)
    trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = False, True
    for version in (1, 2):
        trainer.accelerator = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version)))
        with pytest.raises(PlanError, match="FSDP 1 flattens parameters") if version == 1 else nullcontext():
            hf.use_plan(trainer, plan)
        assert (trainer.optimizer is None) is (version == 1)


def test_a_plan_for_another_model_changes_nothing(folder: Path) -> None:
    plan, trainer = planned(trainer_of(folder)), trainer_of(folder, gpt(2))
    with pytest.raises(PlanError, match="the plan is for another model"):
        hf.use_plan(trainer, plan)
    assert trainer.optimizer is None
    assert trainer.args.max_grad_norm == 0.5


def test_no_trainer(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"a transformers\.Trainer is needed, not GPT2LMHeadModel"):
        hf.recipe_of(gpt(1))
    with pytest.raises(WatchError, match="nothing was seen yet"):
        hf.WatchCallback(planned(trainer_of(folder))).report()


def error_of_importing(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the module says, in one line, where it is imported anew and cannot be."""
    monkeypatch.delitem(sys.modules, "dagscale.integrations.huggingface")
    with pytest.raises(DagscaleError) as caught:
        importlib.import_module("dagscale.integrations.huggingface")
    assert "\n" not in str(caught.value)
    assert dagscale.integrations.huggingface is hf  # type: ignore[attr-defined]
    return str(caught.value)


@pytest.mark.parametrize("version", [None, "4.44.0"])
def test_transformers_absent_or_too_old(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    if version is None:
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        monkeypatch.setattr(sys.modules["transformers"], "__version__", version)  # its lazy twin
    text = error_of_importing(monkeypatch)
    assert re.search(r"this needs transformers.*: pip install 'transformers>=5\.0'", text)


def test_the_cause_is_named_where_transformers_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.trainer", None)
    text = error_of_importing(monkeypatch)
    assert "transformers.trainer cannot be imported" in text
    assert "or newer" not in text
